from __future__ import annotations

import base64
import collections
import dataclasses
import doctest
import hashlib
import html.parser
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from bundles import bundle, int8, network, probe, zeroed_filters
from interpret import drawing, fonts, printing, reporting, sections
from interpret.comparison import compare
from interpret.errors import ReportError
from interpret.reporting import ReportOptions, build_report, render_html, render_pdf, write_report
from interpret.sections.figures import Figure
from interpret.sections.subject import Subject

HOSTILE = "<script>alert('x')</script> \"'&} 损坏 {{ 7*7 }}"
CLASSES = [f"<b onmouseover=alert({index})>class {index}" for index in range(10)]
LABELS = ("published", "int8", HOSTILE)


@pytest.fixture(scope="module")
def weights():
    return network(widths=(8, 12, 16))


@pytest.fixture(scope="module")
def reference(weights, tmp_path_factory):
    return bundle(weights, tmp_path_factory.mktemp("reference"), class_names=CLASSES)


@pytest.fixture(scope="module")
def comparison(weights, reference, tmp_path_factory):
    quantised = bundle(int8(weights), tmp_path_factory.mktemp("int8"), class_names=CLASSES)
    broken = zeroed_filters(int8(weights), "layer1.conv.weight")
    damaged = bundle(broken, tmp_path_factory.mktemp("damaged"), class_names=CLASSES)
    return compare(reference, quantised, damaged, labels=LABELS)


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    return write_report(comparison, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written):
    return Page(written["html"].read_text("utf-8"))


@pytest.fixture(scope="module")
def pdf(written):
    pikepdf = pytest.importorskip("pikepdf")
    with pikepdf.open(written["pdf"]) as document:
        yield document


class Page(html.parser.HTMLParser):
    """An HTML page as lists of elements and the text outside style and script."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.markup = markup
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.raw: dict[str, str] = {}
        self._inside: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self._inside and self._inside[-1] in ("style", "script"):
            self.raw[self._inside[-1]] = self.raw.get(self._inside[-1], "") + data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def figures(data) -> list[Figure]:
    """Every picture of a view model."""
    if isinstance(data, Figure):
        return [data]
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, (list, tuple)):
        return [figure for item in data for figure in figures(item)]
    if dataclasses.is_dataclass(data) and not isinstance(data, Subject):
        return [figure for field in dataclasses.fields(data) for figure in figures(getattr(data, field.name))]
    return []


def view(source, **options) -> reporting.Report:
    chosen = ReportOptions(**options)
    return build_report(reporting._subject(source, chosen), chosen)


# HTML -----------------------------------------------------------------------------------------------------------------


def test_a_comparison_writes_html_pdf_and_json(written):
    assert {name: path.name for name, path in written.items()} == {
        "json": "comparison.json",
        "html": "report.html",
        "pdf": "report.pdf",
    }
    assert json.loads(written["json"].read_text())["reference"] == "published"


def test_every_picture_has_words_and_a_size(page):
    images = page.all("img")
    assert len(images) > 30
    for image in images:
        assert image["alt"].strip()
        assert int(image["width"]) > 0
        assert int(image["height"]) > 0


def test_every_picture_of_the_view_is_on_the_page(comparison, page):
    assert len(page.all("img")) == len([f for entry in view(comparison).entries for f in figures(entry.data)])


def test_every_internal_link_leads_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert max(collections.Counter(ids).values()) == 1
    targets = {attributes["href"] for attributes in page.all("a")}
    assert len(targets) > 20
    assert all(target[0] == "#" and target[1:] in ids for target in targets)


def test_the_page_asks_nobody_for_anything(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            assert attributes.get(name, "#")[:5] in ("data:", "#") or attributes[name].startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes
    assert "http" not in page.raw["style"]
    assert "@import" not in page.raw["style"]
    for word in ("fetch(", "XMLHttpRequest", "localStorage", "sessionStorage", "document.cookie", "window.open"):
        assert word not in page.raw["script"]


def test_the_content_policy_allows_exactly_the_pages_own_style_and_script(page):
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert len(page.all("script")) == len(page.all("style")) == 1


def test_hostile_names_are_text(page):
    assert HOSTILE in page.text
    assert "{{ 7*7 }}" in page.text
    assert any(name in page.text for name in CLASSES)
    assert not [attributes for _, attributes in page.elements if "onmouseover" in attributes]
    assert len(page.all("script")) == 1


def test_the_verdict_names_the_damaged_convolution(page):
    verdict = page.text[: page.text.index("Identity and provenance", page.text.index("Findings"))]
    assert "Widespread change" in verdict
    assert "Localized change" in verdict
    assert "layer1.conv" in verdict


def test_one_main_heading_and_no_level_skipped(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in header for header in page.all("th"))


def test_the_font_is_embedded_and_holds_the_pages_characters(page):
    found = re.search(r"base64,([A-Za-z0-9+/=]+)\"\) format", page.raw["style"])
    assert found
    from fontTools.ttLib import TTFont

    font = TTFont(io.BytesIO(base64.b64decode(found[1])))
    assert {ord(character) for character in "aZ09 ·\u00d7⁻\u2212→"} <= set(font.getBestCmap())


def test_one_audit_has_a_report_of_its_own(reference):
    page = Page(render_html(view(reference)))
    assert "The network's own health" in page.text
    assert "against" not in page.text[:200]


def test_a_section_without_data_says_so(weights):
    def forget(content):
        del content["predictions"], content["activations"], content["maps"], content["kernels"], content["inputs"]
        del content["layers"], content["weights"]

    with bundle(weights, edit=forget) as bare:
        page = Page(render_html(view(bare, detail="all")))
    assert "Not recorded in this audit." in page.text
    assert "Not recorded for this call: kernels, activations, maps." in page.text
    assert len(page.all("section")) == sum(not section.optional for section in sections.SECTIONS)


def test_detail_all_draws_a_chapter_for_every_call(reference):
    assert len(Page(render_html(view(reference, detail="all"))).all("article")) == len(reference.calls) + 4  # probes


def test_the_compact_form_is_small_and_has_no_dead_link(comparison, tmp_path):
    written = write_report(comparison, tmp_path, ["html"], ReportOptions(compact=True))
    page = Page(written["html"].read_text("utf-8"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert all(attributes["href"][1:] in ids for attributes in page.all("a"))
    assert len(page.all("section")) == 4
    assert written["html"].stat().st_size < 5_000_000


def test_runs_that_differ_in_calls_and_images_are_still_drawn(weights, reference):
    images = probe()[[3, 1, 0, 2, 8, 9]]
    other = bundle(network(widths=(8, 12)), images=images, class_names=CLASSES)
    report = view(compare(reference, other, labels=("a", "b")), title="Two networks")
    page = Page(render_html(report))
    assert "Two networks" in page.text
    assert "removed" in page.text
    with pytest.raises(AssertionError):
        assert "None" in page.text
    back = Page(render_html(view(compare(other, reference, labels=("b", "a")))))
    assert "added" in back.text


# PDF ------------------------------------------------------------------------------------------------------------------


def outline_titles(document) -> list[str]:
    with document.open_outline() as outline:
        return [str(item.title) for top in outline.root for item in (top, *top.children)]


def test_every_section_and_chapter_is_bookmarked(comparison, pdf):
    report = view(comparison)
    titles = outline_titles(pdf)
    for entry in report.entries:
        assert entry.section.title in titles
        for _, label in entry.outline:
            assert any(label in title for title in titles)


def test_the_pdf_is_tagged_and_names_its_language_and_date(pdf):
    assert pdf.Root.MarkInfo.Marked
    assert str(pdf.Root.Lang) == "en"
    assert str(pdf.docinfo["/CreationDate"]) == "D:20250101000000Z"
    assert "pdfaid" in bytes(pdf.Root.Metadata.read_bytes()).decode()


def printed_figures(report) -> list[Figure]:
    """Every picture on paper: all but a contact sheet of the very maps that stand beside the predictions."""
    found = []
    for entry in report.entries:
        data = entry.data
        if entry.section.id == "explanations" and all(block["repeated"] for block in data["sheet"]["blocks"]):
            data = {**data, "sheet": None}
        found += figures(data)
    return found


def test_every_picture_of_the_view_is_in_the_pdf(comparison, pdf):
    distinct = {figure.sha256 for figure in printed_figures(view(comparison))}
    drawn = [item for item in pdf.objects if getattr(item, "get", None) and is_picture(item)]
    assert len(drawn) == len(distinct)
    assert all(not item.get("/Interpolate", False) for item in drawn)  # PDF/A forbids it


def is_picture(item) -> bool:
    pikepdf = pytest.importorskip("pikepdf")
    masks = item.get("/ColorSpace") == "/DeviceGray"
    return isinstance(item, pikepdf.Stream) and item.get("/Subtype") == "/Image" and not masks


def test_figures_in_the_pdf_have_their_words(comparison, pdf):
    pikepdf = pytest.importorskip("pikepdf")
    words = [str(item["/Alt"]) for item in pdf.objects if isinstance(item, pikepdf.Dictionary) and "/Alt" in item]
    expected = {figure.alt for figure in printed_figures(view(comparison))}
    assert expected <= set(words)


def test_the_contents_print_the_pages_that_the_anchors_are_on(comparison, pdf):
    names = pdf.Root.Names.Dests.Names
    places = {str(names[i]): names[i + 1] for i in range(0, len(names), 2)}
    pages = [page.objgen for page in pdf.pages]
    text = pdf_text(pdf)
    number = next(i for i, page in enumerate(text) if re.search(r"^Contents$", page, re.MULTILINE))
    assert number == 1 or "Verdict" in text[0]
    assert f"{number + 1} / {len(pages)}" in text[number]
    for entry in view(comparison).entries:
        place = pages.index(places[entry.section.id][0].objgen) + 1
        assert re.search(rf"{re.escape(entry.section.title)}\s+{place}\b", text[number])


def pdf_text(document) -> list[str]:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    result = subprocess.run(
        ["pdftotext", "-layout", document.filename, "-"], capture_output=True, check=True, text=True
    )
    return [re.sub(r"^ +", "", page, flags=re.MULTILINE) for page in result.stdout.split("\f")[:-1]]


def test_pages_are_numbered_to_the_last(pdf):
    text = pdf_text(pdf)
    for number, page in enumerate(text, 1):
        assert f"{number} / {len(text)}" in page


def test_the_evidence_is_attached_with_fixed_dates(written, pdf):
    assert sorted(pdf.attachments) == ["comparison.json", "manifest-0.json", "manifest-1.json", "manifest-2.json"]
    file = pdf.attachments["comparison.json"].get_file()
    assert file.read_bytes() == written["json"].read_bytes()
    assert file.creation_date.isoformat().startswith("2025-01-01T00:00:00")


def test_fonts_are_embedded_and_come_from_packages(written):
    if shutil.which("pdffonts") is None:
        pytest.skip("pdffonts is not installed")
    rows = subprocess.run(["pdffonts", written["pdf"]], capture_output=True, check=True, text=True).stdout.splitlines()[
        2:
    ]
    assert all(re.search(r"\byes yes yes\b", row) for row in rows)
    known = ("Inter", "DejaVu-Sans-Mono", "Noto-Sans-CJK")
    assert all(any(name in row for name in known) for row in rows if "损" not in row)


def test_qpdf_finds_nothing_wrong(written):
    if shutil.which("qpdf") is None:
        pytest.skip("qpdf is not installed")
    assert subprocess.run(["qpdf", "--check", written["pdf"]], capture_output=True, check=False).returncode == 0


def test_palette_pictures_reach_the_pdf_pixel_by_pixel(reference):
    pikepdf = pytest.importorskip("pikepdf")
    picture = drawing.Picture(np.arange(250, dtype=np.uint8).reshape(10, 25), drawing.VIRIDIS)
    figure = sections.figures.png(picture, "ramp")
    report = view(reference)
    photo = next(probe for probe in report.entries[5].data["probes"])
    photo["photo"] = figure
    with pikepdf.open(io.BytesIO(render_pdf(report))) as document:
        found = [item for item in document.objects if isinstance(item, pikepdf.Stream) and item.get("/Width") == 25]
        pixels = np.asarray(pikepdf.PdfImage(found[0]).as_pil_image().convert("RGB"))
    assert np.array_equal(pixels, drawing.VIRIDIS[picture.pixels])


def test_without_the_pass_through_the_pdf_holds_the_same_pictures(reference, monkeypatch):
    pikepdf = pytest.importorskip("pikepdf")
    report = view(reference)
    counts = []
    for versions in (printing.PASS_THROUGH_VERSIONS, range(0)):
        monkeypatch.setattr(printing, "PASS_THROUGH_VERSIONS", versions)
        with pikepdf.open(io.BytesIO(render_pdf(report))) as document:
            counts.append(len([item for item in document.objects if getattr(item, "get", None) and is_picture(item)]))
    assert counts[0] == counts[1]


# Trust ----------------------------------------------------------------------------------------------------------------


def house_style(tmp_path, name: str, text: str) -> ReportOptions:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return ReportOptions(templates=tmp_path)


def test_a_house_style_is_searched_first(reference, tmp_path):
    options = house_style(tmp_path, "sections/method.html.jinja", "<p>Our own words on {{ report.title }}.</p>")
    assert "Our own words on TinyNet." in render_html(view(reference), options)


@pytest.mark.parametrize(
    "template",
    [
        "{{ report.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ data.no_such_thing }}",
        "{% broken",
        "{{ report.entries.append(1) }}",
    ],
)
def test_templates_run_in_a_sandbox(reference, tmp_path, template):
    options = house_style(tmp_path, "sections/method.html.jinja", template)
    with pytest.raises(ReportError, match="template"):
        render_html(view(reference), options)


@pytest.mark.parametrize(
    "markup",
    [
        '<img alt="x" src="file:///etc/passwd">',
        '<img alt="x" src="http://127.0.0.1:9/x.png">',
        '<link rel="attachment" href="file:///etc/hostname">',
        '<a rel="attachment" href="file:///etc/hostname">x</a>',
        '<link rel="stylesheet" href="http://127.0.0.1:9/x.css">',
        "<style>@import url(http://127.0.0.1:9/x.css);</style>",
        '<img alt="x" src="evidence:0000">',
    ],
)
def test_the_pdf_loads_nothing_but_its_own_pictures(reference, tmp_path, markup):
    options = house_style(tmp_path, "sections/identity.html.jinja", markup)
    report = view(reference, compact=True)
    slim = dataclasses.replace(report, entries=report.entries[1:2])
    with pytest.raises(ReportError, match="may only load its own"):
        render_pdf(slim, options)


def test_a_picture_that_cannot_be_decoded_is_an_error(reference):
    report = view(reference)
    report.entries[5].data["probes"][0]["photo"] = Figure(b"no picture", "image/jpeg", 8, 8, "nothing")
    with pytest.raises(ReportError, match="incomplete"):
        render_pdf(report)


def test_wrong_arguments_are_quoted(reference, tmp_path):
    with pytest.raises(ReportError, match="docx"):
        write_report(reference, tmp_path, ["docx"])
    with pytest.raises(ReportError, match="html"):
        write_report(reference, tmp_path, "html")
    with pytest.raises(ReportError, match="everything"):
        write_report(reference, tmp_path, ["html"], ReportOptions(detail="everything"))
    with pytest.raises(ReportError, match="no/such"):
        write_report(reference, tmp_path, ["html"], ReportOptions(templates=tmp_path / "no/such"))


def test_a_folder_will_do_for_evidence(reference, tmp_path):
    assert write_report(reference.folder, tmp_path / "new" / "folder", ["html"])["html"].is_file()


# The same bytes -------------------------------------------------------------------------------------------------------


def test_two_renders_are_equal_whatever_the_process_hash_seed_and_time_zone(reference, tmp_path):
    code = "import sys; from interpret.reporting import write_report; write_report(sys.argv[1], sys.argv[2])"
    digests = []
    for seed, zone in (("1", "UTC"), ("2", "Asia/Shanghai")):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code, reference.folder, folder], env=environment, check=True)
        digests.append(
            [hashlib.sha256((folder / f"report.{kind}").read_bytes()).hexdigest() for kind in ("html", "pdf")]
        )
        time.sleep(1.1)  # a clock that slips into the file would show
    assert digests[0] == digests[1]


def test_the_reading_side_imports_neither_torch_nor_mlflow(reference, tmp_path):
    code = (
        "import sys; from interpret.reporting import write_report; write_report(sys.argv[1], sys.argv[2]);"
        "print(*{'torch', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, reference.folder, tmp_path], capture_output=True, check=True, text=True
    )
    assert result.stdout.split() == []


# Words ----------------------------------------------------------------------------------------------------------------


def test_numbers_are_written_as_the_docstrings_show():
    result = doctest.testmod(sections.wording)
    assert result.attempted > 6
    assert result.failed == 0


def test_the_reports_fonts_ship_with_it():
    assert {font.family for font in fonts.report_fonts()} == {"Inter Report", "DejaVu Sans Mono Report"}
    assert all(font.path.is_file() for font in fonts.report_fonts())


def test_only_charts_bring_markup_of_their_own():
    from interpret.charts import Chart

    classes = [value for module in (sections.subject, sections.figures, drawing) for value in vars(module).values()]
    assert [kind for kind in classes if isinstance(kind, type) and hasattr(kind, "__html__")] in ([], [Chart])


def test_stages_end_where_a_convolution_last_has_the_size(reference):
    subject = Subject.of(reference)
    ends = [layer.key for layer in subject.layers if layer.id in subject.stage_ends]
    assert ends == ["layer1", "layer2"]


def test_images_are_matched_by_digest_in_any_order(weights, reference):
    shuffled = bundle(weights, images=probe()[[2, 0, 9, 1]])
    subject = Subject.of(compare(reference, shuffled, labels=("a", "b")))
    assert subject.displayed == (0, 1, 2)
    assert subject.displayed_by("b") == [1, 3, 0]
    assert subject.sample("b", 9) == 2
    assert subject.sample("b", 5) is None
