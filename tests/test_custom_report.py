"""Reports to one's own taste: sections, house styles, languages."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

import interpret
from bundles import bundle, network, zeroed_filters
from interpret import sections
from interpret.errors import ReportError
from interpret.reporting import ReportOptions, write_report

IDS = [section.id for section in sections.SECTIONS]


@pytest.fixture(scope="module")
def comparison():
    weights = network()
    damaged = bundle(zeroed_filters(weights, "layer2.conv.weight", share=0.5))
    return interpret.compare(bundle(weights), damaged, labels=["published", "damaged"])


def page(source, folder, **options) -> str:
    return write_report(source, folder, ["html"], ReportOptions(**options))["html"].read_text("utf-8")


def section_ids(markup: str) -> list[str]:
    return re.findall(r'<section class="section" id="([^"]*)"', markup)


def test_the_sections_are_those_chosen_in_their_order(comparison, tmp_path):
    markup = page(comparison, tmp_path, sections=("predictions", "verdict"))
    assert section_ids(markup) == ["predictions", "verdict"]
    assert re.findall(r'<li><a href="#([^"]*)">', markup) == ["predictions", "verdict"]


@pytest.mark.parametrize("chosen", [(name,) for name in IDS])
def test_each_section_stands_alone_without_dead_links(comparison, tmp_path, chosen):
    markup = page(comparison, tmp_path, sections=chosen)
    places = set(re.findall(r' id="([^"]*)"', markup))
    assert set(re.findall(r' href="#([^"]*)"', markup)) <= places


def test_a_pdf_of_one_section_is_short(comparison, tmp_path):
    written = write_report(comparison, tmp_path, ["pdf"], ReportOptions(sections=("identity",)))
    pikepdf = pytest.importorskip("pikepdf")
    with pikepdf.open(written["pdf"]) as pdf, pdf.open_outline() as outline:
        assert len(pdf.pages) <= 3
        assert {item.title for item in outline.root} == {"Identity and provenance", "Contents"}


@pytest.mark.parametrize("chosen", [("verdit",), (), ("verdict", "verdict")])
def test_sections_that_there_are_not_are_refused(chosen):
    with pytest.raises(ReportError, match="there are verdict, identity"):
        ReportOptions(sections=chosen)


def test_a_section_of_ones_own_is_data_and_a_template(comparison, tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    (house / "licence.html.jinja").write_text("<p>{{ data.text }} <b>{{ data.runs }}</b></p>")
    licence = sections.Section(
        "licence", "Licence", "licence.html.jinja", lambda subject: {"text": "<MIT>", "runs": len(subject.runs)}
    )
    markup = page(comparison, tmp_path / "report", sections=("verdict", licence), templates=house)
    assert section_ids(markup) == ["verdict", "licence"]
    assert "<p>&lt;MIT&gt; <b>2</b></p>" in markup


def test_a_house_style_extends_a_layout_and_adds_rules(comparison, tmp_path):
    house = tmp_path / "house"
    for name, text in {
        "layout/screen.html.jinja": "{% extends 'interpret:layout/screen.html.jinja' %}"
        "{% block footer %}{{ super() }}<p>Seen by the board.</p>{% endblock %}",
        "css/house.css": ".title h1 { color: rgb(1, 2, 3); }",
    }.items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(text)
    markup = page(comparison, tmp_path / "report", templates=house)
    assert "<p>Seen by the board.</p>" in markup
    assert "<footer>" in markup
    assert section_ids(markup) == [name for name in IDS if name in section_ids(markup)] != []
    assert markup.index("rgb(1, 2, 3)") > markup.index("@media (prefers-color-scheme: dark)")


def test_a_language_of_the_house(comparison, tmp_path):
    catalogue = tmp_path / "house" / "lang" / "de.json"
    catalogue.parent.mkdir(parents=True)
    catalogue.write_text(json.dumps({"Verdict": "Urteil", "Localized change": "Örtliche Änderung"}))
    markup = page(comparison, tmp_path / "report", templates=tmp_path / "house", language="de")
    assert '<html lang="de">' in markup
    assert "<h2>Urteil</h2>" in markup
    written = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert "Urteil" not in json.dumps(written, ensure_ascii=False)


def test_a_language_without_a_catalogue_is_refused():
    with pytest.raises(ReportError, match="no catalogue for the language 'tlh'"):
        ReportOptions(language="tlh")


def test_options_survive_a_replacement():
    options = dataclasses.replace(ReportOptions(title="A", sections=["verdict"]), compact=True)
    assert options.compact
    assert options.title == "A"
