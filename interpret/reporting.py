"""Evidence or a comparison to HTML and PDF: one view model, one set of section templates, two layouts.

The HTML is one self-contained file that asks nobody for anything; MLflow shows it in a sandboxed frame. The PDF is
made from the
same view by WeasyPrint (see :mod:`interpret.printing`). Whatever comes from a run is escaped; the only markup that a
template
prints as it is are the drawings of :mod:`interpret.charts`.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from interpret import printing, sections
from interpret.charts import Chart
from interpret.errors import ReportError
from interpret.evidence import Evidence, as_evidence, json_bytes
from interpret.fonts import TEXT_FAMILY, report_fonts, templates_folder, web_font
from interpret.language import ENGLISH, Catalogue, listed, plural, read_catalogue, say
from interpret.sections import Data, Section, links
from interpret.sections.figures import Figure
from interpret.sections.subject import Run, Subject

if TYPE_CHECKING:
    from interpret.comparison import Comparison

_TAG = re.compile(r"<(style|script).*?</\1>|<[^>]*>", re.DOTALL)
FORMATS = ("html", "pdf")
DETAILS = ("matters", "all")
# Shorter names need no place to break; on paper, where columns are known, every <wbr> costs layout time.
BREAKABLE_ON_SCREEN, BREAKABLE_ON_PAPER = 24, 44


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How a report is made.

    Attributes:
        title: heading of the report; by default the names of the runs.
        detail: "matters" draws a chapter for each call that matters, "all" for every call.
        templates: a folder that is searched for templates first: a house style.
        compact: only verdict, identity, layer overview and predictions, for the small file beside a run.
        ui_url: address of MLflow's user interface: the report links each run, its charts, its pictures of each layer
            and the logged model that it audited. Neither comparison.json nor any evidence holds it.
        language: "en", or a catalogue of the templates' folder `lang`, as "zh". comparison.json stays English.
    """

    title: str | None = None
    detail: str = "matters"
    templates: Path | None = None
    compact: bool = False
    ui_url: str | None = None
    language: str = ENGLISH

    def __post_init__(self) -> None:
        """Refuse an address that is none."""
        if self.ui_url is not None:
            links.checked(self.ui_url)


@dataclass(frozen=True, slots=True)
class Entry:
    """A section with its data and the (anchor, label) pairs that the contents list under it."""

    section: Section
    data: Data | None
    outline: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The view model: all that a template sees."""

    title: str
    eyebrow: str
    generator: str
    created: str
    digest: str
    runs: tuple[Run, ...]
    entries: tuple[Entry, ...]


def write_report(
    source: Evidence | Comparison | str | Path,
    directory: str | Path,
    formats: Sequence[str] = FORMATS,
    options: ReportOptions | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Mapping[str, Path]:
    """Write report.html and report.pdf, and comparison.json where several runs are compared.

    The same evidence gives the same bytes.

    Args:
        source: one audit (or its folder), or a comparison.
        directory: where to write; made where it does not exist.
        formats: any of "html" and "pdf".
        options: title, detail, templates.
        origin: of a single audit what MLflow says of its run, `run_id` and `experiment_id`, where `options.ui_url` is
            given; a comparison knows its own.

    Returns:
        format to file; "json" for comparison.json.

    Raises:
        ReportError: an unknown format or detail, an address that is none, or a template that cannot be rendered.
        EvidenceError: the folder holds no evidence.
    """
    options = options or ReportOptions()
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or isinstance(formats, str):
        raise ReportError(f"report format {formats!r} is not known; give any of {', '.join(FORMATS)}, as a list")
    subject = _subject(source, options, origin)
    report = build_report(subject, options)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}

    def write(name: str, path: str, content: bytes) -> None:
        written[name] = directory / path
        written[name].write_bytes(content)

    if subject.comparison is not None:
        write("json", "comparison.json", json_bytes(subject.comparison))
    if "html" in formats:
        write("html", "report.html", render_html(report, options).encode())
    if "pdf" in formats:
        write("pdf", "report.pdf", render_pdf(report, options, _attachments(subject)))
    return written


def build_report(subject: Subject, options: ReportOptions) -> Report:
    """The view model of a report: every section with its data, pictures already encoded."""
    chosen = [section for section in sections.SECTIONS if not options.compact or section.id in sections.COMPACT]
    entries = []
    for section in chosen:
        data = section.build(subject)
        if data is not None or not section.optional:
            entries.append(Entry(section, data, _outline(data)))
    manifest = subject.reference.manifest
    title = options.title or _title(subject)
    kind = "Comparison" if subject.comparison is not None else "Audit"
    images = int(manifest.inputs["count"])
    subtitle = f"{kind} of {manifest.model['name']} on {images} probe images"
    return Report(
        title=title,
        eyebrow=f"{subtitle} · evidence {subject.reference.digest[:16]}",
        generator=f"{manifest.tool['name']} {manifest.tool['version']}",
        created=str(subject.reference.journal.get("created_utc", "")),
        digest=", ".join(subject.evidence[label].digest[:16] for label in subject.labels),
        runs=subject.runs,
        entries=tuple(entries),
    )


def render_html(report: Report, options: ReportOptions | None = None) -> str:
    """The report as one self-contained HTML page."""
    environment = _environment(options or ReportOptions(), _data_uri, BREAKABLE_ON_SCREEN)
    style = Markup(_text(environment, "css/base.css") + _text(environment, "css/screen.css"))
    script = Markup(_text(environment, "js/report.js"))

    def page(font_face: str) -> str:
        rules = Markup(font_face) + style
        policy = (
            f"default-src 'none'; img-src data:; font-src data:; style-src '{_source_hash(rules)}'; "
            f"script-src '{_source_hash(script)}'; base-uri 'none'; form-action 'none'"
        )
        names = {"report": report, "layout": "layout/screen.html.jinja", "contents_pages": 0}
        return _render(environment, "report.html.jinja", **names, style=rules, script=script, policy=policy)

    characters = _characters(page(""))
    rules = []
    for font in report_fonts():
        if font.family == TEXT_FAMILY:
            url = f"data:font/woff2;base64,{base64.b64encode(web_font(font.path, characters)).decode()}"
            face = f'font-family: {font.family}; font-weight: {font.weight}; src: url("{url}") format("woff2");'
            rules.append(f"@font-face {{ {face} }}\n")
    return page("".join(rules))


def render_pdf(
    report: Report, options: ReportOptions | None = None, attachments: Mapping[str, bytes] | None = None
) -> bytes:
    """The report as a PDF with bookmarks, page numbers and contents; ``attachments`` are embedded by name.

    Raises:
        ReportError: WeasyPrint reported an error.
    """
    store = printing.Store()
    environment = _environment(
        options or ReportOptions(), lambda figure: store.add(figure.content, figure.media_type), BREAKABLE_ON_PAPER
    )
    rules = Markup(_text(environment, "css/base.css") + _text(environment, "css/print.css"))
    names = {"report": report, "layout": "layout/print.html.jinja"}
    style = Markup(store.font_faces()) + rules
    anchors = [entry.section.id for entry in report.entries]
    anchors += [anchor for entry in report.entries for anchor, _ in entry.outline]

    def body(contents_pages: int) -> str:
        return _render(environment, "report.html.jinja", **names, style=style, contents_pages=contents_pages)

    def contents(pages: Mapping[str, int], first_page: int, total_pages: int) -> str:
        return _render(
            environment,
            "layout/contents.html.jinja",
            report=report,
            style=style,
            pages=pages,
            first_page=first_page,
            total_pages=total_pages,
        )

    return printing.print_joined(body, contents, anchors, store, attachments or {}, report.created)


def _subject(
    source: Evidence | Comparison | str | Path, options: ReportOptions, origin: Mapping[str, Any] | None = None
) -> Subject:
    if options.detail not in DETAILS:
        raise ReportError(f"report detail {options.detail!r} is not known; give one of {', '.join(DETAILS)}")
    if isinstance(source, (str, Path)):
        source = as_evidence(source)
    return Subject.of(source, "none" if options.compact else options.detail, options.ui_url, origin)


def _title(subject: Subject) -> str:
    reference, *others = subject.labels
    if not others:
        return reference
    if len(others) > 3:
        return f"{reference} against {len(others)} runs"
    return f"{reference} against {', '.join(others[:-1])}{' and ' if others[:-1] else ''}{others[-1]}"


def _outline(data: Data | None) -> tuple[tuple[str, str], ...]:
    chapters = (data or {}).get("chapters", ())
    return tuple((f"chapter-{chapter['layer'].id}", chapter["layer"].key) for chapter in chapters)


def _attachments(subject: Subject) -> dict[str, bytes]:
    """What the PDF carries: the comparison, and the manifests with the digest of every evidence file."""
    attached = {"comparison.json": json_bytes(subject.comparison)} if subject.comparison is not None else {}
    for number, label in enumerate(subject.labels):
        name = "manifest.json" if len(subject.labels) == 1 else f"manifest-{number}.json"
        attached[name] = (subject.evidence[label].folder / "manifest.json").read_bytes()
    return attached


def _environment(options: ReportOptions, source: Callable[[Figure], str], longer_than: int) -> jinja2.Environment:
    """Templates run in a sandbox, also the user's own: they see the view model and nothing behind it."""
    if options.templates is not None and not Path(options.templates).is_dir():
        raise ReportError(f"templates folder {str(options.templates)!r} does not exist")
    folders = [Path(folder) for folder in (options.templates, templates_folder()) if folder is not None]
    catalogue = read_catalogue(options.language, folders)
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folders),
        finalize=functools.partial(_said, catalogue),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters.update(src=source, breakable=functools.partial(_breakable, longer_than=longer_than))
    environment.globals.update(say=say, plural=plural, listed=listed, language=catalogue.language)
    return environment


def _said(catalogue: Catalogue, value: Any) -> Any:
    """What a template prints, in the report's language."""
    if isinstance(value, Chart):
        return dataclasses.replace(value, label=catalogue(value.label))
    return catalogue(value)


def _render(environment: jinja2.Environment, template: str, **names: Any) -> str:
    try:
        markup = environment.get_template(template).render(**names)
    except jinja2.TemplateError as error:
        place = getattr(error, "name", None) or template
        raise ReportError(f"template {place} cannot be rendered: {error}") from error
    return markup.encode("utf-8", "replace").decode()  # a folder's name may be no text


def _text(environment: jinja2.Environment, path: str) -> str:
    """A style sheet or script, as it is, from the first templates folder that has it."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, path)[0]


def _breakable(text: object, longer_than: int) -> Markup:
    """Escaped text that may break after dots, underscores, slashes and hyphens where it is long: layer names, paths."""
    broken = str(escape(text))
    if len(broken) > longer_than:
        for mark in "._/-":
            broken = broken.replace(mark, f"{mark}<wbr>")
    return Markup(broken)


def _characters(markup: str) -> str:
    """The characters of a page's text, with ASCII and the arrows of sortable columns: what its font must hold."""
    text = html.unescape(_TAG.sub("", markup))
    return "".join(sorted(character for character in {*text, *string.printable, *"↑↓"} if character >= " "))


def _data_uri(figure: Figure) -> str:
    return f"data:{figure.media_type};base64,{base64.b64encode(figure.content).decode()}"


def _source_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
