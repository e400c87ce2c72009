// Conveniences only: the report reads without them. No storage, no requests, no pop-ups: all three fail in MLflow's sandboxed frame.
// No words either: every label stands in layout/screen.html.jinja.
"use strict";

const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const copyOf = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);
const wordsOf = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const holds = (text, words) => words.every((word) => text.toLowerCase().includes(word));
const placeOf = (hash) => {
  try { return document.getElementById(decodeURIComponent(hash.slice(1))); } catch { return null; }
};

// Links: in a blob: frame an anchor does not scroll, so every in-page link is followed by hand. ---------------------------------------

const contents = one("nav.contents details");
const narrow = matchMedia("(max-width: 899px)");
const fold = () => { contents.open = !narrow.matches; }; // markup has it open, for readers without scripts
narrow.addEventListener("change", fold);
fold();

const show = (place) => {
  const row = place.tagName === "TR";
  if (contents.contains(document.activeElement) || narrow.matches) fold();
  place.hidden = false; // a filter may have put the row away
  place.scrollIntoView({ block: row ? "center" : "start" });
  all("tr.found").forEach((other) => other.classList.remove("found"));
  place.classList.toggle("found", row);
  if (!place.hasAttribute("tabindex")) place.setAttribute("tabindex", "-1");
  place.focus({ preventScroll: true });
};
const follow = (hash) => {
  const place = placeOf(hash);
  if (!place) return false;
  show(place);
  // Each place is a step of the history, but a frame's history is that of the page around it.
  try { history[self === top ? "pushState" : "replaceState"](null, "", hash); } catch { /* not allowed in this frame */ }
  return true;
};
const land = () => {
  const place = location.hash && placeOf(location.hash);
  if (place) show(place);
};
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !follow(link.getAttribute("href"))) return;
  event.preventDefault();
  if (link.className !== "self" || location.protocol === "blob:") return;
  navigator.clipboard?.writeText(location.href).then(() => {
    link.classList.add("copied");
    setTimeout(() => link.classList.remove("copied"), 1500);
  }, () => {});
});
addEventListener("popstate", land);
addEventListener("load", land);

// The contents mark the section that is being read. -----------------------------------------------------------------------------------

const linkOf = new Map(all("nav.contents ol a").map((link) => [placeOf(link.getAttribute("href")), link]));
const inView = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) inView[entry.isIntersecting ? "add" : "delete"](entry.target);
  const current = [...linkOf].filter(([place]) => inView.has(place)).map(([, link]) => link).pop();
  const former = one("nav.contents [aria-current]");
  if (!current || current === former) return;
  former?.removeAttribute("aria-current");
  current.setAttribute("aria-current", "true");
  const list = contents.parentElement;
  const [link, frame] = [current.getBoundingClientRect(), list.getBoundingClientRect()];
  if (link.top < frame.top + 60 || link.bottom > frame.bottom - 20) list.scrollTop += link.top - frame.top - frame.height / 3;
}, { root: document, rootMargin: "0px 0px -75% 0px" }); // without a root, a frame of another origin has no margins
linkOf.forEach((link, place) => place && watcher.observe(place));

// Find a layer: in the rows of the layer overview. ------------------------------------------------------------------------------------

const nameOf = (place) => {
  const head = one("h3, th", place).cloneNode(true);
  all(".flag, .position", head).forEach((part) => part.remove());
  return head.textContent.trim();
};
const calls = all("#overview tr[id]").map((row) => {
  const place = all("th", row.closest("table").tHead.rows[0]).findIndex((head) => head.classList.contains("column-type"));
  return { row, name: nameOf(row), type: row.cells[place]?.textContent.trim() || "" };
});
const find = one(".find");
if (calls.length && find) {
  const [field, list, status] = [one("input", find), one("ul", find), one("[role=status]", find)];
  let active = -1;
  const options = calls.map(({ row, name, type }) => {
    const option = document.createElement("li");
    const quiet = document.createElement("span");
    quiet.className = "quiet";
    quiet.textContent = type;
    option.append(name, " ", quiet);
    option.id = `find-${row.id}`;
    option.setAttribute("role", "option");
    option.addEventListener("click", () => jump(row));
    return option;
  });
  const jump = (row) => follow(placeOf(`#chapter-${row.id}`) ? `#chapter-${row.id}` : `#${row.id}`);
  const choose = (index) => {
    const found = list.children;
    active = found.length ? (index + found.length) % found.length : -1;
    [...found].forEach((option, number) => option.setAttribute("aria-selected", number === active));
    field.setAttribute("aria-activedescendant", found[active]?.id || "");
    found[active]?.scrollIntoView({ block: "nearest" });
  };
  const search = () => {
    const words = wordsOf(field.value);
    list.replaceChildren(...(words.length ? options.filter((_, index) => holds(`${calls[index].name} ${calls[index].type}`, words)) : []));
    list.hidden = !list.children.length;
    field.setAttribute("aria-expanded", !list.hidden);
    status.textContent = words.length ? filled(status.dataset.text, { found: list.children.length, total: calls.length }) : "";
    all("nav.contents ol li").forEach((entry) => { entry.hidden = !all("a", entry).some((link) => holds(link.textContent, words)); });
    choose(0);
  };
  field.addEventListener("input", search);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) choose(active + step);
    else if (event.key === "Enter" && active >= 0) list.children[active].click();
    else if (event.key === "Escape") { field.value = ""; search(); } else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select") || one("dialog[open]")) return;
    event.preventDefault();
    contents.open = true;
    field.focus();
    field.select();
  });
  find.hidden = false;
}

// A link to each layer, beside its heading or its row. --------------------------------------------------------------------------------

for (const place of [...all(".chapter[id]"), ...calls.map(({ row }) => row)]) {
  const head = one("h3, th", place);
  const link = copyOf("self-link");
  link.href = `#${place.id}`;
  link.setAttribute("aria-label", filled(link.getAttribute("aria-label"), { name: nameOf(place) }));
  if (head.tagName === "TH") link.tabIndex = -1; // hundreds of rows would bury what else the Tab key reaches
  head.append(" ", link);
}

// Tables: wide ones scroll by themselves instead of the page, and so do wide charts; filter; sort. ------------------------------------

const tables = all("main table");
const holders = tables.map((table) => {
  const holder = document.createElement("div");
  holder.className = "holder";
  table.replaceWith(holder);
  holder.append(table);
  return holder;
});
all("main svg.chart").forEach((chart) => holders.push(chart.parentElement));
const fit = () => {
  holders.forEach((holder) => holder.classList.remove("scroller"));
  const wide = holders.map((holder) => holder.scrollWidth > holder.clientWidth + 1);
  holders.forEach((holder, index) => {
    holder.classList.toggle("scroller", wide[index]);
    if (wide[index]) holder.tabIndex = 0; else holder.removeAttribute("tabindex");
  });
};
addEventListener("resize", fit);
fit();

// Each cell's first column, with spans over columns and rows counted.
const columnsOf = (table) => {
  const places = new Map();
  const covered = [];
  for (const row of table.rows) {
    let column = 0;
    const skip = () => { while (covered[column]) covered[column++] -= 1; };
    for (const cell of row.cells) {
      skip();
      places.set(cell, column);
      for (const end = column + cell.colSpan; column < end; column++) covered[column] = cell.rowSpan - 1;
    }
    skip();
  }
  return places;
};

tables.filter((table) => table.classList.contains("filterable")).forEach((table) => {
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
  if (rows.length < 12) return;
  const field = copyOf("filter-field");
  field.placeholder = filled(field.placeholder, { rows: rows.length });
  field.addEventListener("input", () => {
    const words = wordsOf(field.value);
    for (const row of rows) row.hidden = !holds(row.textContent, words);
  });
  table.parentElement.before(field);
});

const valueOf = (cell) => {
  const text = cell ? cell.dataset.sort || cell.textContent.trim() : "";
  const numeric = Number.parseFloat(text.replace(/,/g, "").replace("−", "-"));
  const unit = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 }[text.slice(-1)] || 1;
  return /^[-−\d.]/.test(text) && !Number.isNaN(numeric) ? numeric * unit : text.toLowerCase();
};
tables.filter((table) => table.classList.contains("sortable")).forEach((table) => {
  const headers = [...columnsOf(table)].filter(([cell]) => cell.matches("thead tr:last-child > *, thead [rowspan]"));
  for (const [header, column] of headers) {
    if (!header.textContent.trim() || one("button", header)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
      headers.forEach(([other]) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
      const order = (a, b) => (typeof a === typeof b ? (a > b ? 1 : a < b ? -1 : 0) : typeof a === "number" ? 1 : -1);
      const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
      keyed.sort(([a], [b]) => sign * order(a, b));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  }
});

// Runs: a class on <body> hides all that is of one run. -------------------------------------------------------------------------------

const toggles = all("[data-toggle]");
if (toggles.length) {
  const spans = []; // cells over the columns of several runs
  for (const table of tables.filter((table) => table.tHead)) {
    const places = columnsOf(table);
    const runs = [];
    const columns = (cell) => runs.slice(places.get(cell), places.get(cell) + cell.colSpan);
    for (const head of table.tHead.rows[0].cells) {
      const run = head.dataset.run || one(".run", head)?.dataset.run;
      for (let column = places.get(head); run && column < places.get(head) + head.colSpan; column++) runs[column] = run;
    }
    if (runs[0]) table.dataset.run = runs[0]; // the run heads the whole table
    else for (const cell of places.keys()) {
      const own = columns(cell);
      if (own[0] && own.length === cell.colSpan && own.every((run) => run === own[0])) cell.dataset.run = own[0];
      else if (cell.colSpan > 1 && own.some(Boolean)) spans.push([cell, own, cell.colSpan]);
    }
  }
  const rules = new Map(); // runs of one colour share the class of their curves
  for (const { dataset: { toggle } } of toggles) {
    rules.set(toggle % 8, `${rules.get(toggle % 8) || ""}.without-${toggle}`);
    document.styleSheets[0].insertRule(`.without-${toggle} [data-run="${toggle}"]:not(.run) { display: none; }`);
  }
  for (const [colour, without] of rules) {
    const curve = ["line", "fill"].map((kind) => `.run-${kind}-${colour}`).join();
    if (colour) document.styleSheets[0].insertRule(`body${without} :is(#overview, #chapters) svg:not(.marker) :is(${curve}) { display: none; }`);
  }
  for (const button of toggles) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", shown);
      document.body.classList.toggle(`without-${button.dataset.toggle}`, !shown);
      const away = (run) => document.body.classList.contains(`without-${run}`);
      for (const [cell, own, whole] of spans) cell.colSpan = Math.max(1, whole - own.filter(away).length);
      fit();
    });
  }
  one(".toggles").hidden = false;
}

// The viewer: a picture large, or two runs' pictures on top of each other. ------------------------------------------------------------

const viewer = one("dialog.viewer");
const [stage, plate, caption, zoomed, choice, edge] = [".stage", ".plate", ".viewer-text", "output", "select", "[type=range]"].map((name) => one(name, viewer));
const blink = one(".blink", viewer);
const seen = (element) => element.getClientRects().length > 0;
let opener = null; // the picture or button that opened the viewer
let shown = [];    // the one or two pictures on the plate
let zoom = 1;

const scale = () => {
  const [width, height] = ["width", "height"].map((side) => Math.max(...shown.map((picture) => Number(picture.getAttribute(side)))));
  const whole = Math.min(8, stage.clientWidth / width, stage.clientHeight / height);
  plate.style.width = `${width * whole * zoom}px`;
  plate.style.height = `${height * whole * zoom}px`;
  zoomed.textContent = `${Math.round(zoom * 100)} %`;
};
const zoomTo = (value) => { zoom = Math.min(16, Math.max(0.25, value)); scale(); };
const put = (pictures, text) => {
  shown = pictures;
  plate.replaceChildren(...pictures.map((picture) => {
    const large = new Image();
    large.src = picture.src;
    large.alt = picture.alt;
    large.className = picture.className.replace("zoomable", "");
    return large;
  }));
  plate.classList.toggle("pair", pictures.length > 1);
  one(".pair-tools", viewer).hidden = pictures.length < 2;
  all("[data-do=previous], [data-do=next]", viewer).forEach((button) => { button.hidden = pictures.length > 1; });
  caption.textContent = text;
  if (!viewer.open) viewer.showModal();
  zoomTo(zoom);
};
const open = (picture) => { zoom = 1; put([picture], picture.alt); };
const setBlink = (on) => {
  blink.setAttribute("aria-pressed", on);
  plate.classList.toggle("blinking", on);
};
const slide = () => plate.style.setProperty("--edge", `${edge.value}%`);

const pictures = all("main img:not(.bar, a img)");
pictures.forEach((picture) => {
  picture.classList.add("zoomable");
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  const begin = () => { opener = picture; open(picture); };
  picture.addEventListener("click", begin);
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); begin(); }
  });
});
const step = (by) => {
  if (shown.length > 1) {
    choice.selectedIndex = (choice.selectedIndex + by + choice.length) % choice.length;
    choice.dispatchEvent(new Event("change"));
    return;
  }
  const visible = pictures.filter(seen);
  open(visible[(visible.indexOf(shown[0]) + by + visible.length) % visible.length]);
};

// The same picture of the reference and of other runs.
const nameOfRun = (run) => one(`.toggles .run[data-run="${run}"]`).textContent;
for (const group of toggles.length ? all(".runs") : []) {
  const [reference, ...others] = all("figure[data-run]", group);
  const pictureOf = (figure) => one("img", figure);
  const alike = (figure) => ["width", "height"].every((side) => pictureOf(figure)[side] === pictureOf(reference)[side]);
  if (reference?.dataset.run !== "0" || !others.some(alike)) continue;
  const button = copyOf("compare-button");
  button.addEventListener("click", () => {
    opener = button;
    const fitting = others.filter(alike);
    const offered = fitting.some(seen) ? fitting.filter(seen) : fitting;
    choice.replaceChildren(...offered.map((figure) => new Option(nameOfRun(figure.dataset.run))));
    choice.onchange = () => {
      const other = offered[choice.selectedIndex];
      const names = { reference: nameOfRun(0), run: nameOfRun(other.dataset.run) };
      put([pictureOf(other), pictureOf(reference)], `${filled(caption.dataset.pair, names)} ${pictureOf(other).alt}`);
    };
    zoom = 1;
    edge.value = 50;
    slide();
    setBlink(false);
    choice.onchange();
    edge.focus();
  });
  group.after(button);
}

const actions = {
  previous: () => step(-1),
  next: () => step(1),
  in: () => zoomTo(zoom * 1.5),
  out: () => zoomTo(zoom / 1.5),
  fit: () => zoomTo(1),
  blink: () => setBlink(blink.getAttribute("aria-pressed") === "false"),
  close: () => viewer.close(),
};
const keys = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "=": "in", "-": "out", 0: "fit" };
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close(); // beside the picture
  actions[event.target.closest("[data-do]")?.dataset.do]?.();
});
viewer.addEventListener("keydown", (event) => {
  const name = keys[event.key];
  if (!name || event.ctrlKey || event.metaKey || event.altKey || (event.target.matches("input, select") && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  actions[name]();
});
viewer.addEventListener("close", () => { setBlink(false); opener?.focus(); });
edge.addEventListener("input", slide);
plate.addEventListener("pointermove", (event) => {
  if (!event.buttons || shown.length < 2) return;
  edge.value = (100 * (event.clientX - plate.getBoundingClientRect().left)) / plate.clientWidth;
  slide();
});
addEventListener("resize", () => { if (viewer.open) scale(); });
