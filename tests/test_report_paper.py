"""The printed report: its forms, bookmarks, tags, fonts and pages, and what it refuses to print."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFile

from bundles import bundle, int8, network, zeroed_filters
from interpret import printing, reporting
from interpret.cli import commands
from interpret.comparison import compare
from interpret.errors import ReportError
from interpret.reporting import Entry, ReportOptions, build_report, render_html, render_pdf
from interpret.sections.figures import Figure
from interpret.sections.subject import Subject

FORMS = ("full", "brief", "single")
MARGINS = (20 / 297, 1 - 18 / 297)  # of the page's height: what lies between them is the page's content


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A reference and seven runs, every one with other weights."""
    weights = network(widths=(8, 12, 16))
    changed = [int8(weights), zeroed_filters(int8(weights), "layer1.conv.weight")]
    changed += [zeroed_filters(weights, "layer2.conv.weight", 0.2, seed) for seed in range(5)]
    return [bundle(one, tmp_path_factory.mktemp("run")) for one in (weights, *changed)]


@pytest.fixture(scope="module")
def views(runs):
    """Form to view model and options."""
    sources = {"full": compare(*runs[:3]), "brief": compare(*runs[:3]), "single": runs[0]}
    return {form: view(source, brief=form == "brief") for form, source in sources.items()}


@pytest.fixture(scope="module")
def printed(views, tmp_path_factory):
    """Form to PDF file."""
    folder = tmp_path_factory.mktemp("printed")
    for form, (report, options) in views.items():
        (folder / f"{form}.pdf").write_bytes(render_pdf(report, options))
    return {form: folder / f"{form}.pdf" for form in FORMS}


@pytest.fixture(scope="module")
def pikepdf():
    return pytest.importorskip("pikepdf")


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def view(source, **settings):
    options = ReportOptions(**settings)
    return build_report(reporting._subject(source, options), options), options


def tool(*command: object) -> str:
    """What a program prints; the test is left out where it is not installed."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run([str(part) for part in command], capture_output=True, check=True, text=True).stdout


# The brief form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_brief_form_has_six_pages_at_most(runs, pikepdf, count):
    report, options = view(compare(*runs[:count]) if count > 1 else runs[0], brief=True)
    with pikepdf.open(io.BytesIO(render_pdf(report, options))) as document:
        assert len(document.pages) <= 6


def test_the_brief_form_says_what_was_audited_and_what_differs_and_how_to_repeat_it(views):
    page = render_html(*views["brief"])
    for words in ("Verdict", "Findings", "First divergence", "Weights (state_sha256)", "To reproduce", "with care"):
        assert words in page
    assert "Layers that matter" not in page
    ids = set(re.findall(r' id="([^"]+)"', page))
    targets = set(re.findall(r' href="#([^"]+)"', page))
    assert targets
    assert targets <= ids


def test_the_brief_form_lists_where_runs_diverge_and_what_changed_most(runs):
    comparison = compare(*runs[:3])
    report, _ = view(comparison, brief=True)
    rows = next(entry.data for entry in report.entries if entry.section.id == "overview")["tables"][0]["rows"]
    told = comparison.to_dict()
    wanted = {key for key in told["first_divergence"].values() if key}
    wanted |= {key for keys in told["ranking"].values() for key in keys[:3]}
    assert {row["layer"].key for row in rows} == wanted


def test_a_report_is_not_both_brief_and_compact():
    with pytest.raises(ReportError, match="either brief or compact"):
        ReportOptions(brief=True, compact=True)


def test_the_command_draws_the_brief_form(runs, tmp_path):
    arguments = ["report", str(runs[0].folder), "-o", str(tmp_path), "--brief", "--format", "html"]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall(r'<section class="section" id="(\w+)"', page) == ["verdict", "identity", "overview"]


# Bookmarks and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["full", "single"])
def test_every_call_has_a_bookmark_under_its_section(views, printed, pikepdf, runs, form):
    report, _ = views[form]
    chapters = {label for entry in report.entries for _, label in entry.outline}
    with pikepdf.open(printed[form]) as document, document.open_outline() as outline:
        sections = {str(top.title): top for top in outline.root}
        assert {str(entry.section.title) for entry in report.entries} <= set(sections)
        assert all(top.is_closed for top in outline.root if top.children)
        labels = {title: [str(child.title) for child in top.children] for title, top in sections.items()}
    listed = [f"{call.position} {call.key}" for call in runs[0].calls if call.key not in chapters]
    assert labels["Layer overview"] == listed
    assert [label.split(" ", 1)[1] for label in labels["Layers that matter"]] == [
        call.key for call in runs[0].calls if call.key in chapters
    ]


def destinations(document) -> dict[str, int]:
    """Name of each destination to its page, from 0."""
    pages = {page.objgen: number for number, page in enumerate(document.pages)}
    names = document.Root.Names.Dests.Names
    return {str(names[place]): pages[names[place + 1][0].objgen] for place in range(0, len(names), 2)}


def test_every_link_leads_to_a_place_of_the_document(printed, pikepdf, form):
    with pikepdf.open(printed[form]) as document:
        known = destinations(document)
        links = [str(note.Dest) for page in document.pages for note in page.get("/Annots", []) if "/Dest" in note]
    assert len(links) > 5
    assert set(links) <= set(known)


# Tags, fonts, pictures ------------------------------------------------------------------------------------------------


def test_the_tags_are_without_errors(printed, form):
    pdfua = pytest.importorskip("pdfua")
    errors = [found for found in pdfua.validate(printed[form]).findings if found.severity.name == "ERROR"]
    assert not errors, [f"{error.rule_id}: {error.message}" for error in errors[:5]]


def test_qpdf_finds_nothing_wrong(printed, form):
    assert "No syntax or stream encoding errors" in tool("qpdf", "--check", printed[form])


def test_every_figure_of_the_tags_has_its_words(printed, pikepdf, form):
    with pikepdf.open(printed[form]) as document:
        figures = [item for item in document.objects if is_a(pikepdf, item, "/S", "/Figure")]
        assert len(figures) > 1
        assert all(str(figure.get("/Alt", "")).strip() for figure in figures)


def is_a(pikepdf, item, key: str, value: str) -> bool:
    return isinstance(item, (pikepdf.Dictionary, pikepdf.Stream)) and item.get(key) == value


def test_the_fonts_are_the_reports_own_and_embedded(printed, form):
    rows = tool("pdffonts", printed[form]).splitlines()[2:]
    assert rows
    for row in rows:
        name, rest = row.split(maxsplit=1)
        assert re.fullmatch(r"[A-Z]{6}\+(Inter-Report|DejaVu-Sans-Mono-Report)(-\w+)*", name), row
        assert "yes yes yes" in rest


def test_text_in_chinese_is_embedded_too(runs):
    done = tool("fc-list", ":lang=zh", "family")
    if "Noto Sans CJK" not in done:
        pytest.skip("Noto Sans CJK is not installed")
    report, options = view(runs[0], brief=True, title="损坏的卷积")
    file = runs[0].folder.parent / "chinese.pdf"
    file.write_bytes(render_pdf(report, options))
    rows = tool("pdffonts", file).splitlines()[2:]
    assert any("Noto-Sans-CJK" in row for row in rows)
    assert all("yes yes yes" in row for row in rows)


def pictures(data) -> set[str]:
    """Digests of the pictures of a view model's data."""
    if isinstance(data, Figure):
        return {data.sha256}
    if isinstance(data, dict):
        data = tuple(data.values())
    if isinstance(data, (list, tuple)):
        return set().union(*map(pictures, data))
    if dataclasses.is_dataclass(data) and not isinstance(data, Subject):
        return set().union(*(pictures(getattr(data, field.name)) for field in dataclasses.fields(data)))
    return set()


def on_paper(entry: Entry) -> Any:
    """A section's data without the contact sheet of the very maps that stand beside the predictions."""
    if entry.section.id == "explanations" and all(block["repeated"] for block in entry.data["sheet"]["blocks"]):
        return {**entry.data, "sheet": None}
    return entry.data


def test_each_distinct_picture_is_in_the_pdf_once(views, printed, pikepdf, form):
    expected = set().union(*(pictures(on_paper(entry)) for entry in views[form][0].entries))
    with pikepdf.open(printed[form]) as document:
        drawn = [item for item in document.objects if is_a(pikepdf, item, "/Subtype", "/Image")]
    assert len(drawn) - sum("/SMask" in item for item in drawn) == len(expected)
    assert form == "brief" or len(expected) > 20


# The same bytes on every machine --------------------------------------------------------------------------------------


def test_no_font_of_the_machine_changes_a_byte(runs, tmp_path):
    """Also where a font of the machine has the name of one of ours, as DejaVu Sans Mono on most."""
    (tmp_path / "none.conf").write_text("<?xml version='1.0'?><fontconfig></fontconfig>")
    code = (
        "import sys; from interpret.reporting import write_report; from interpret import compare; "
        "write_report(compare(*sys.argv[2:]), sys.argv[1], ['pdf'])"
    )
    machines = (
        {"PYTHONHASHSEED": "1", "TZ": "UTC"},
        {"PYTHONHASHSEED": "2", "TZ": "Asia/Shanghai", "FONTCONFIG_FILE": str(tmp_path / "none.conf")},
    )
    digests = set()
    for number, machine in enumerate(machines):
        folder = tmp_path / str(number)
        command = [sys.executable, "-W", "error::UserWarning", "-c", code, folder, runs[0].folder, runs[2].folder]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **machine}, check=True)
        digests.add(hashlib.sha256((folder / "report.pdf").read_bytes()).hexdigest())
    assert len(digests) == 1


# Pages ----------------------------------------------------------------------------------------------------------------


def last_lines(file: Path) -> list[tuple[str, float]]:
    """Per page the last line of its content, and where it ends as a share of the page's height."""
    tree = ElementTree.fromstring(tool("pdftotext", "-bbox-layout", file, "-"))
    space = "{http://www.w3.org/1999/xhtml}"
    found = []
    for page in tree.iter(f"{space}page"):
        height = float(page.attrib["height"])
        lines = [
            (float(line.attrib["yMax"]) / height, " ".join(word.text or "" for word in line.iter(f"{space}word")))
            for line in page.iter(f"{space}line")
        ]
        inside = [line for line in lines if MARGINS[0] < line[0] < MARGINS[1]]
        bottom = max((end for end, _ in inside), default=0.0)
        last = [text for end, text in inside if bottom - end < 0.002]  # a row of a table is several lines
        found.append((" | ".join(last), bottom))
    return found


def used(file: Path, folder: Path) -> list[float]:
    """Per page the share of the content's height that is used, from pixels."""
    tool("pdftoppm", "-r", 30, "-gray", file, folder / "page")
    shares = []
    for picture in sorted(folder.glob("page-*.pgm")):
        pixels = np.asarray(Image.open(picture))
        top, bottom = (round(edge * len(pixels)) for edge in MARGINS)
        inked = np.flatnonzero((pixels[top:bottom] < 250).any(axis=1))
        shares.append(float(inked[-1] + 1) / (bottom - top) if len(inked) else 0.0)
    return shares


def sections_of(file: Path) -> list[str]:
    """Per page the section that its head names."""
    heads = [page.strip().splitlines()[0] for page in tool("pdftotext", "-layout", file, "-").split("\f")[:-1]]
    return [re.split(r"\s{3,}", head.strip())[-1] for head in heads]


def test_no_page_ends_with_a_heading_and_only_a_sections_last_is_nearly_empty(views, printed, tmp_path, form):
    headings = {
        re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)).strip()
        for text in re.findall(r"<h[2-4][^>]*>(.*?)</h[2-4]>", render_html(*views[form]), re.DOTALL)
    }
    assert "Findings" in headings
    shares, names = used(printed[form], tmp_path), sections_of(printed[form])
    for number, (text, bottom) in enumerate(last_lines(printed[form])):
        if names[number] == "Contents":
            continue
        content = (bottom - MARGINS[0]) / (MARGINS[1] - MARGINS[0])
        assert text not in headings or shares[number] > content + 0.02, f"page {number + 1} ends with {text!r}"
    for number, share in enumerate(shares[:-1]):
        assert share >= 0.15 or names[number + 1] != names[number], f"page {number + 1} is nearly empty"


# Trust ----------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, seed: int | None = None) -> bytes:
    """Black, or noise of a seed."""
    file = io.BytesIO()
    picture = Image.new("1", (width, height))
    if seed is not None:
        picture = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8))
    picture.save(file, "png")
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "jpeg")
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "gif")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "media_type", "message"),
    [
        (png(4001, 4000), "image/png", "4001 x 4000 pixels"),
        (png(12_000, 12_000), "image/png", "too large"),
        (png(15_000, 15_000), "image/png", "too large"),
        (jpeg()[:-200], "image/jpeg", "cannot be decoded"),
        (png(256, 256, seed=0)[:2000], "image/png", "cannot be decoded"),
        (png(8, 8), "image/jpeg", "cannot be decoded"),
        (gif(), "image/png", "cannot be decoded"),
        (b"", "image/png", "cannot be decoded"),
    ],
)
def test_a_picture_that_is_a_bomb_or_broken_never_reaches_the_printer(content, media_type, message):
    store = printing.Store()
    with pytest.raises(ReportError, match=message) as caught:
        store.add(content, media_type, "kernels of conv1")
    assert "'kernels of conv1'" in str(caught.value)
    assert not store.contents


def test_a_picture_of_sixteen_million_pixels_is_taken():
    assert printing.Store().add(png(4000, 4000), "image/png").startswith("evidence:")


def test_a_picture_that_the_page_leaves_out_is_missed(views):
    def body(_: int) -> str:
        return "<!doctype html><html lang=en><title>t</title><p>No picture here.</p></html>"

    store = printing.Store()
    store.add(png(8, 8), "image/png", "lost")
    with pytest.raises(ReportError, match="holds 0 of the report's 1 pictures"):
        printing.print_joined(body, lambda *_: "", [], store, {}, "")


@pytest.mark.parametrize("collecting", [True, False])
def test_the_process_is_left_as_it_was(collecting):
    def fail(_: int) -> str:
        raise ReportError("no body")

    gc.enable() if collecting else gc.disable()
    try:
        with pytest.raises(ReportError, match="no body"):
            printing.print_joined(fail, lambda *_: "", [], printing.Store(), {}, "")
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_pillow_refuses_truncated_pictures_after_a_report_as_before(runs, tmp_path):
    code = (
        "import sys; from PIL import ImageFile; from interpret.reporting import ReportOptions, write_report; "
        "write_report(sys.argv[1], sys.argv[2], ['pdf'], ReportOptions(brief=True)); "
        "assert 'weasyprint' in sys.modules; print(ImageFile.LOAD_TRUNCATED_IMAGES)"
    )
    command = [sys.executable, "-c", code, runs[0].folder, tmp_path]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == "False"


def test_a_picture_is_checked_whatever_the_process_lets_pillow_do(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ReportError, match="cannot be decoded"):
        printing.Store().add(jpeg()[:-200], "image/jpeg", "half")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
