"""Every word of the report can be said in Chinese: the catalogue is whole, and a report in it has no English left."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
from jinja2 import nodes

from bundles import bundle, int8, network, zeroed_filters
from interpret.comparison import compare
from interpret.reporting import ReportOptions, write_report

ROOT = Path(__file__).parent.parent
TEMPLATES = sorted((ROOT / "templates").rglob("*.jinja"))
CHINESE = re.compile("[\u4e00-\u9fff]")
NAMES = {"CKA", "p", "r", "sha256", "torchinfo"}  # the same in every language
THREE_WORDS = re.compile(r"(?<![\w.-])[a-z]{2,}(?: [a-z]{2,}){2,}(?![\w.-])")
UNSAID = {"style", "script", "pre", "code"}
READ = ("alt", "title", "placeholder", "aria-label", "data-text", "data-pair", "data-copied")  # attributes with words
TECHNICAL = {
    "aria-autocomplete", "aria-controls", "aria-expanded", "aria-hidden", "aria-keyshortcuts", "aria-live",
    "aria-pressed", "autocomplete", "charset", "class", "content", "data-do", "data-sort", "decoding", "hidden", "href",
    "http-equiv", "id", "lang", "loading", "name", "rel", "role", "scope", "spellcheck", "style", "target", "type",
}  # fmt: skip


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


CATALOGUE = json.loads((ROOT / "templates" / "lang" / "zh.json").read_text("utf-8"))
PATTERNS = script("refresh_language").patterns()


class Page(html.parser.HTMLParser):
    """The texts of a page, its attributes, and the texts of each class."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.of_class: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes += found.items()
        if tag not in ("meta", "link", "img", "br", "wbr", "input", "embed", "hr"):
            self._open.append((tag, found.get("class", "").split()))

    def handle_endtag(self, tag: str) -> None:
        while any(name == tag for name, _ in self._open) and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        classes = {name for _, names in self._open for name in names}
        if "mono" not in classes and not UNSAID & {tag for tag, _ in self._open}:
            self.texts.append(data)
        for name in classes:
            self.of_class.setdefault(name, []).append(data)


# The catalogue --------------------------------------------------------------------------------------------------------


def test_every_pattern_has_a_translation_and_none_is_stale():
    wanted = "run `scripts/refresh_language zh` and translate what is empty"
    assert [f"{place}: {text}" for text, place in PATTERNS.items() if not CATALOGUE.get(text)] == [], wanted
    assert sorted(set(CATALOGUE) - set(PATTERNS)) == [], wanted


def fields(pattern: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None)


def test_a_translation_says_every_value_as_often_as_the_english():
    assert [(text, said) for text, said in CATALOGUE.items() if fields(text) != fields(said)] == []


def test_a_translation_of_words_is_chinese():
    def bare(pattern: str) -> str:
        return re.sub(r"{\w+}", "", pattern)

    english = [text for text, said in CATALOGUE.items() if not CHINESE.search(said) and re.search("[a-z]", bare(text))]
    assert english == ["{count} of {total}", "{value} in {runs}", "{file}, sha256"]  # signs take the words' place


def test_chinese_stands_beside_latin_with_a_space_and_full_width_marks():
    tight = re.compile(r"[\u4e00-\u9fff][A-Za-z0-9‖]|[A-Za-z0-9%‖][\u4e00-\u9fff]")
    narrow = re.compile(r"[\u4e00-\u9fff}][,;:?!]|[\u4e00-\u9fff]\s*[()]|[\u4e00-\u9fff]\.(?!\.)")
    spaced = re.compile(r"[，。；：、（）“”] | [，。；：、（）“”]")
    assert [said for said in CATALOGUE.values() if tight.search(said)] == []
    assert [said for said in CATALOGUE.values() if narrow.search(said)] == []
    assert [said for said in CATALOGUE.values() if spaced.search(said)] == []


# The templates --------------------------------------------------------------------------------------------------------


def pieces(node: nodes.Node) -> Iterator[str]:
    """A template's text in order; of what it prints only the strings that are written out in it."""
    if isinstance(node, nodes.TemplateData):
        yield node.data
    elif isinstance(node, nodes.Output):
        for part in node.nodes:
            yield from pieces(part) if isinstance(part, nodes.TemplateData) else printed(part)
    else:
        for child in node.iter_child_nodes():
            yield from pieces(child)


def printed(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Const):
        yield str(node.value)
    elif isinstance(node, nodes.CondExpr):
        yield from printed(node.expr1)
        if node.expr2 is not None:
            yield from printed(node.expr2)
    elif isinstance(node, (nodes.BinExpr, nodes.Concat)):
        for child in node.iter_child_nodes():
            yield from printed(child)
    else:
        yield "0"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_say_their_words(path: Path):
    page = Page("".join(pieces(jinja2.Environment().parse(path.read_text("utf-8")))))
    assert {word for text in page.texts for word in re.findall("[A-Za-z][A-Za-z0-9]*", text)} <= NAMES
    lettered = {(name, value) for name, value in page.attributes if re.search("[A-Za-z]", value)}
    assert {(name, value) for name, value in lettered if name not in TECHNICAL} == set()


def test_words_outside_say_are_found():
    found = "".join(pieces(jinja2.Environment().parse('<p title="{{ "Wide" if x }}">{{ say("Said") }} Plain</p>')))
    page = Page(found)
    assert page.texts == ["0 Plain"]
    assert ("title", "Wide") in page.attributes


# A report -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    weights = network(widths=(8, 12, 16))
    damaged = zeroed_filters(int8(weights), "layer1.conv.weight", 0.5)
    audits = [bundle(one, tmp_path_factory.mktemp("run")) for one in (weights, int8(weights), damaged)]
    return compare(*audits, labels=["published", "int8", "damaged"])


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return {
        language: write_report(comparison, folder / language, ["html"], ReportOptions(language=language))
        for language in ("en", "zh")
    }


@pytest.mark.parametrize("kind", ["comparison", "audit", "timeline", "alignment"])
def test_a_chinese_report_has_no_english_sentence(kind, comparison, tmp_path):
    audits = list(comparison.evidence.values())
    if kind == "timeline":
        audits = [bundle(network(step), tmp_path / str(step), edit=_at_step(step)) for step in range(3)]
    elif kind == "alignment":
        audits = [audits[0], bundle(network(widths=(8, 12, 16, 24)), tmp_path / "other", rename="net.{}".format)]
    source = comparison if kind == "comparison" else audits[0] if kind == "audit" else compare(*audits)
    page = Page(write_report(source, tmp_path, ["html"], ReportOptions(language="zh"))["html"].read_text("utf-8"))
    assert kind not in ("timeline", "alignment") or ("id", kind) in page.attributes
    data = {text for audit in audits for text in _texts(audit.manifest.to_dict())}
    said = [*page.texts, *(value for name, value in page.attributes if name in READ)]
    assert len([text for text in said if CHINESE.search(text)]) > 300
    english = [text.strip() for text in said if (found := THREE_WORDS.search(text)) and not _inside(found[0], data)]
    assert english == []


def test_an_english_report_is_full_of_such_sentences(written):
    page = Page(written["en"]["html"].read_text("utf-8"))
    assert sum(bool(THREE_WORDS.search(text)) for text in page.texts) > 50
    assert not any(CHINESE.search(text) for text in page.texts)


def test_the_verdict_and_the_findings_are_chinese(written):
    page = Page(written["zh"]["html"].read_text("utf-8"))
    verdicts = json.loads(written["zh"]["json"].read_text("utf-8"))["verdict"]
    assert verdicts == {"int8": "widespread", "damaged": "localized"}
    assert page.of_class["verdict-words"] == ["普遍变化", "局部变化"]
    assert any("全为零：layer1.conv.weight 的 12 个滤波器中的 6 个" in text for text in page.texts)
    assert "级别" in page.texts


def test_comparison_json_stays_english(written):
    chinese, english = (written[language]["json"].read_bytes() for language in ("zh", "en"))
    assert chinese == english
    assert b"Exactly zero: 6 of 12 filters of layer1.conv.weight" in chinese
    assert not CHINESE.search(chinese.decode())


def _at_step(step: int) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        content["manifest"]["checkpoint"]["step"] = 100 * step

    return edit


def _texts(value: object) -> Iterator[str]:
    """What the manifest says in words of its own: names, settings, messages of collectors."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield str(name)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _inside(words: str, data: set[str]) -> bool:
    return any(words in text for text in data)


# The PDF --------------------------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_the_chinese_pdf_holds_its_font_and_its_words(comparison, tmp_path):
    pikepdf = pytest.importorskip("pikepdf")
    if not run("fc-list", ":lang=zh").strip():
        pytest.skip("no font with Chinese characters is installed")
    options = ReportOptions(language="zh", sections=["verdict", "method"])
    path = write_report(comparison, tmp_path, ["pdf"], options)["pdf"]
    with pikepdf.open(path) as document:
        assert str(document.Root.Lang) == "zh"
        found = [item for item in document.objects if isinstance(item, pikepdf.Dictionary)]
        descriptors = [item for item in found if item.get("/Type") == "/FontDescriptor"]
        names = {str(item.FontName) for item in descriptors}
        assert all("/FontFile2" in item or "/FontFile3" in item for item in descriptors)
    assert any("Inter" not in name and "DejaVu" not in name for name in names), names
    words = run("pdftotext", path, "-")
    assert "结论" in words
    assert "首次偏离" in words
    assert "\ufffd" not in words
