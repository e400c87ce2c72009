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
from interpret.errors import ReportError, did_you_mean
from interpret.evidence import Evidence, as_evidence, json_bytes
from interpret.fonts import TEXT_FAMILY, report_fonts, templates_folder, web_font
from interpret.language import ENGLISH, Catalogue, listed, plural, read_catalogue, say
from interpret.sections import Data, Section, links
from interpret.sections.figures import Figure
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import count

if TYPE_CHECKING:
    from interpret.comparison import Comparison

_TAG = re.compile(r"<(style|script).*?</\1>|<[^>]*>", re.DOTALL)
FORMATS = ("html", "pdf")
DETAILS = ("matters", "all")
# Shorter names need no place to break; on paper, where columns are known, every <wbr> costs layout time.
BREAKABLE_ON_SCREEN, BREAKABLE_ON_PAPER = 24, 44
DECORATIONS = ("marker", "bar", "stroke")  # kinds of drawings that stand beside a name or a number


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
        sections: what the report holds, in this order: ids of :data:`interpret.sections.SECTIONS`, and sections of
            one's own, whose templates lie in `templates`; by default all that there is something to say about.
        brief: only verdict, identity and the calls that matter of the layer overview: at most six pages, no contents.
        language: "en", or a catalogue of the templates' folder `lang`, as "zh". comparison.json stays English.
    """

    title: str | None = None
    detail: str = "matters"
    templates: Path | None = None
    compact: bool = False
    ui_url: str | None = None
    sections: Sequence[str | Section] | None = None
    language: str = ENGLISH
    brief: bool = False

    def __post_init__(self) -> None:
        """Refuse an address that is none, and sections and languages that there are not."""
        if self.brief and self.compact:
            raise ReportError("a report is either brief or compact; leave one of them out")
        read_catalogue(self.language, _folders(self))
        if self.ui_url is not None:
            links.checked(self.ui_url)
        known = [section.id for section in sections.SECTIONS]
        named = [section for section in self.sections or () if isinstance(section, str)]
        for name in named:
            if name not in known:
                raise ReportError(f"no section {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
        if self.sections is not None and (not self.sections or len(set(named)) < len(named)):
            raise ReportError(f"a report needs sections, each once, not {list(named)}; there are {', '.join(known)}")


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
    entries = []
    for section in _chosen(options):
        data = section.build(subject)
        if data is not None or not section.optional:
            entries.append(Entry(section, data, _outline(data)))
    manifest = subject.reference.manifest
    title = options.title or _title(subject)
    told = {
        "model": manifest.model["name"],
        "images": int(manifest.inputs["count"]),
        "digest": subject.reference.digest[:16],
    }
    return Report(
        title=title,
        eyebrow=say("Audit of {model} on {images} probe images · evidence {digest}", **told)
        if subject.comparison is None
        else say("Comparison of {model} on {images} probe images · evidence {digest}", **told),
        generator=f"{manifest.tool['name']} {manifest.tool['version']}",
        created=str(subject.reference.journal.get("created_utc", "")),
        digest=", ".join(subject.evidence[label].digest[:16] for label in subject.labels),
        runs=subject.runs,
        entries=tuple(entries),
    )


def _chosen(options: ReportOptions) -> list[Section]:
    if options.sections is not None:
        known = {section.id: section for section in sections.SECTIONS}
        return [known[section] if isinstance(section, str) else section for section in options.sections]
    short = sections.COMPACT if options.compact else sections.BRIEF if options.brief else None
    return [section for section in sections.SECTIONS if short is None or section.id in short]


def render_html(report: Report, options: ReportOptions | None = None) -> str:
    """The report as one self-contained HTML page."""
    environment = _environment(options or ReportOptions(), _data_uri, BREAKABLE_ON_SCREEN)
    style = _style(environment, "css/screen.css")
    script = Markup(_text(environment, "js/report.js"))

    def page(font_face: str) -> str:
        rules = Markup(font_face) + style
        policy = (
            f"default-src 'none'; img-src data:; font-src data:; style-src '{_source_hash(rules)}'; "
            f"script-src '{_source_hash(script)}'; base-uri 'none'; form-action 'none'"
        )
        names = {"report": report, "layout": "layout/screen.html.jinja", "on_paper": False, "contents_pages": 0}
        markup = _render(environment, "report.html.jinja", **names, style=rules, script=script, policy=policy)
        return _without_dead_links(markup, options)

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
    options = options or ReportOptions()

    def source(figure: Figure) -> str:
        return store.add(figure.content, figure.media_type, str(figure.alt))

    environment = _environment(options, source, BREAKABLE_ON_PAPER, functools.partial(_on_paper, store))
    rules = _style(environment, "css/print.css")
    names = {"report": report, "layout": "layout/print.html.jinja", "on_paper": True}
    style = Markup(store.font_faces()) + rules
    listed = [] if options.brief else report.entries
    anchors = [entry.section.id for entry in listed]
    anchors += [anchor for entry in listed for anchor, _ in entry.outline]

    def body(contents_pages: int) -> str:
        markup = _render(environment, "report.html.jinja", **names, style=style, contents_pages=contents_pages)
        return _without_dead_links(markup, options)

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
    detail = "none" if options.compact else "brief" if options.brief else options.detail
    return Subject.of(source, detail, options.ui_url, origin)


def _title(subject: Subject) -> str:
    reference, *others = subject.labels
    if not others:
        return reference
    timeline = (subject.comparison or {}).get("timeline")
    if timeline:
        return say(
            "{model}: {count} checkpoints, steps {first} to {last}",
            model=subject.reference.manifest.model["name"],
            count=count(len(timeline["steps"])),
            first=count(timeline["steps"][0]),
            last=count(timeline["steps"][-1]),
        )
    if len(others) > 3:
        return say("{reference} against {count} runs", reference=reference, count=len(others))
    *others, last = others
    if not others:
        return say("{reference} against {run}", reference=reference, run=last)
    return say("{reference} against {others} and {last}", reference=reference, others=listed(others), last=last)


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


def _environment(
    options: ReportOptions,
    source: Callable[[Figure], str],
    longer_than: int,
    draw: Callable[[Chart], Chart | Markup] = lambda chart: chart,
) -> jinja2.Environment:
    """Templates run in a sandbox, also the user's own: they see the view model and nothing behind it."""
    if options.templates is not None and not Path(options.templates).is_dir():
        raise ReportError(f"templates folder {str(options.templates)!r} does not exist")
    folders = _folders(options)
    catalogue = read_catalogue(options.language, folders)
    environment = ImmutableSandboxedEnvironment(
        # a house style's template extends ours of the same name as "interpret:NAME"
        loader=jinja2.ChoiceLoader(
            [
                jinja2.FileSystemLoader(folders),
                jinja2.PrefixLoader({"interpret": jinja2.FileSystemLoader(templates_folder())}, delimiter=":"),
            ]
        ),
        finalize=functools.partial(_said, catalogue, draw),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters.update(src=source, breakable=lambda text: _breakable(catalogue(text), longer_than))
    environment.globals.update(say=say, plural=plural, listed=listed, language=catalogue.language)
    return environment


def _folders(options: ReportOptions) -> list[Path]:
    """Where templates and catalogues are looked for, in this order."""
    return [Path(folder) for folder in (options.templates, templates_folder()) if folder is not None]


def _said(catalogue: Catalogue, draw: Callable[[Chart], Chart | Markup], value: Any) -> Any:
    """What a template prints, in the report's language."""
    if isinstance(value, Chart):
        return draw(dataclasses.replace(value, body=catalogue(value.body), label=catalogue(value.label)))
    return catalogue(value)


def _on_paper(store: printing.Store, chart: Chart) -> Chart | Markup:
    """A drawing as WeasyPrint takes it best.

    Beside a name or a number it is decoration: an ``embed``, which is read once for all its places and is no figure of
    the PDF's tags. The tags find a figure's words in the title of the SVG.
    """
    if chart.kind in DECORATIONS:
        url = store.add(dataclasses.replace(chart, label="").__html__().encode(), "image/svg+xml")
        return Markup('<embed class="{}" src="{}">').format(chart.kind, url)
    return dataclasses.replace(chart, body=f"<title>{escape(chart.label)}</title>{chart.body}")


def _render(environment: jinja2.Environment, template: str, **names: Any) -> str:
    try:
        markup = environment.get_template(template).render(**names)
    except jinja2.TemplateError as error:
        place = getattr(error, "name", None) or template
        raise ReportError(f"template {place} cannot be rendered: {error}") from error
    return markup.encode("utf-8", "replace").decode()  # a folder's name may be no text


def _without_dead_links(markup: str, options: ReportOptions | None) -> str:
    """The page without links into sections that were not chosen; their words stay."""
    if options is None or (options.sections is None and not options.brief):
        return markup
    places = set(re.findall(r' id="([^"]*)"', markup))
    return re.sub(r' href="#([^"]*)"', lambda link: link[0] if link[1] in places else "", markup)


def _style(environment: jinja2.Environment, medium: str) -> Markup:
    """The style sheets of a medium, the house's own rules last."""
    return Markup("".join(_text(environment, path) for path in ("css/base.css", medium, "css/house.css")))


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
