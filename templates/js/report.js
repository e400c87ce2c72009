// Conveniences only: the report reads without them. No storage, no requests, no pop-ups: all three fail in MLflow's sandboxed frame.
"use strict";

// In a blob: frame an anchor does not scroll, so every in-page link is followed by hand.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  const place = link && document.getElementById(decodeURIComponent(link.getAttribute("href").slice(1)));
  if (!place) return;
  event.preventDefault();
  place.scrollIntoView({ block: place.tagName === "TR" ? "center" : "start" });
  if (place.tagName === "TR") {
    document.querySelectorAll("tr.found").forEach((row) => row.classList.remove("found"));
    place.classList.add("found");
  }
  if (!place.hasAttribute("tabindex")) place.setAttribute("tabindex", "-1");
  place.focus({ preventScroll: true });
});

// Wide tables scroll by themselves instead of the page.
document.querySelectorAll("main table").forEach((table) => {
  if (table.scrollWidth <= table.parentElement.clientWidth + 1) return;
  const scroller = document.createElement("div");
  scroller.className = "scroller";
  scroller.tabIndex = 0;
  table.replaceWith(scroller);
  scroller.append(table);
});

document.querySelectorAll("table.filterable").forEach((table) => {
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
  if (rows.length < 12) return;
  const field = document.createElement("input");
  field.type = "search";
  field.className = "filter";
  field.placeholder = `Filter ${rows.length} rows`;
  field.setAttribute("aria-label", "Filter the rows of the table below");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  (table.closest(".scroller") || table).before(field);
});

document.querySelectorAll("table.sortable").forEach((table) => {
  const head = table.tHead.rows[table.tHead.rows.length - 1];
  const offset = table.tHead.rows.length > 1 ? [...table.tHead.rows[0].cells].filter((cell) => cell.rowSpan > 1).length : 0;
  let column = offset;
  const headers = [...head.cells].map((cell) => {
    const place = column;
    column += cell.colSpan;
    return [cell, place];
  });
  if (offset) headers.unshift(...[...table.tHead.rows[0].cells].filter((cell) => cell.rowSpan > 1).map((cell, place) => [cell, place]));
  const value = (row, place) => {
    const cell = row.cells[place];
    const text = cell ? cell.dataset.sort || cell.textContent.trim() : "";
    const numeric = Number.parseFloat(text.replace(/,/g, ""));
    const unit = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 }[text.slice(-1)] || 1;
    return /^[-−\d.]/.test(text) && !Number.isNaN(numeric) ? numeric * unit : text.toLowerCase();
  };
  for (const [header, place] of headers) {
    if (!header.textContent.trim() || header.querySelector("button")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") !== "descending";
      headers.forEach(([other]) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const order = (a, b) => (typeof a === typeof b ? (a > b ? 1 : a < b ? -1 : 0) : typeof a === "number" ? 1 : -1);
      rows.sort((a, b) => order(value(a, place), value(b, place)) * (descending ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  }
});

// A picture opens large; arrow keys walk through the pictures, Escape closes.
const pictures = [...document.querySelectorAll("main img:not(.bar)")];
if (pictures.length && typeof HTMLDialogElement === "function") {
  const dialog = document.createElement("dialog");
  const large = document.createElement("img");
  const text = document.createElement("p");
  dialog.setAttribute("aria-label", "Picture, enlarged");
  dialog.append(large, text);
  document.body.append(dialog);
  let current = 0;
  const show = (index) => {
    current = (index + pictures.length) % pictures.length;
    large.src = pictures[current].src;
    large.alt = text.textContent = pictures[current].alt;
    large.className = pictures[current].className;
    if (!dialog.open) dialog.showModal();
  };
  pictures.forEach((picture, index) => {
    picture.classList.add("zoomable");
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.addEventListener("click", () => show(index));
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); show(index); }
    });
  });
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(current + 1);
    if (event.key === "ArrowLeft") show(current - 1);
  });
}
