"""The first page where a table of verdicts says little: two networks, and the checkpoints of one training."""

from __future__ import annotations

import re

import pytest

from bundles import bundle, network, noisy
from interpret.comparison import compare
from interpret.reporting import ReportOptions, build_report, render_html
from interpret.sections import verdict
from interpret.sections.subject import Subject
from test_reporting import Page

WEIGHTS = network(widths=(8, 12, 16))
FIRST_PAGE = ReportOptions(sections=["verdict", "timeline"])


@pytest.fixture(scope="module")
def two_networks():
    """Names that nothing has in common: the calls are paired by similarity."""
    other = bundle(network(1, widths=(8, 16)), name="Other", rename=lambda key: f"body.{key}")
    return Subject.of(compare(bundle(WEIGHTS), other, labels=("a", "b")))


@pytest.fixture(scope="module")
def training():
    """A function that makes the subject of a training whose weights are those of the steps."""

    def subject(**changes):
        runs = [bundle(noisy(WEIGHTS, share) if share else WEIGHTS) for share in changes.values()]
        steps = [{"step": 500 * place} for place in range(len(runs))]
        return Subject.of(compare(*runs, labels=list(changes), origins=steps))

    return subject


def page(subject: Subject, options: ReportOptions = FIRST_PAGE) -> Page:
    return Page(render_html(build_report(subject, options), options))


def with_command(line: str):
    def edit(content):
        content["manifest"]["settings"]["command"] = line

    return edit


def test_the_weights_of_two_networks_are_not_compared(two_networks):
    pairs = [layer.numbers["b"].get("aligned_by") for layer in two_networks.layers]
    assert "similarity" in pairs
    data = verdict.build(two_networks)
    (entry,) = data["runs"]
    assert entry["words"] == "Different architecture"
    assert entry["changed"] == "not comparable: two architectures"
    assert (entry["first"], entry["no_first"]) == (None, "none: the architectures differ")
    assert [strip["name"] for strip in data["strips"]] == ["divergence"]


def test_weights_of_the_same_network_are_compared():
    one = Subject.of(compare(bundle(WEIGHTS), bundle(noisy(WEIGHTS, 0.01)), labels=("a", "b")))
    data = verdict.build(one)
    assert re.fullmatch(r"(\d+) of \1 calls with weights", data["runs"][0]["changed"])
    assert [strip["name"] for strip in data["strips"]] == ["weight change", "divergence"]


def test_head_figures_name_the_runs_where_they_differ(two_networks):
    facts = dict(verdict.build(two_networks)["facts"])
    models = [two_networks.evidence[label].manifest.model for label in ("a", "b")]
    parameters, operations = ([model[name] for model in models] for name in ("parameters", "multiply_adds"))
    written = [verdict.quantity(value) for value in (*parameters, *operations)]
    assert facts["Parameters"] == f"{written[0]} in a; {written[1]} in b"
    assert facts["Multiply-adds"] == f"{written[2]} per image in a; {written[3]} per image in b"
    assert facts["Runs compared"] == "2, of TinyNet, Other"


def test_each_command_is_given_with_its_runs():
    runs = [bundle(WEIGHTS, edit=with_command(line)) for line in ("audit one", "audit two", "audit two")]
    one = Subject.of(compare(*runs, labels=("a", "b", "c")))
    commands = [([run.label for run in some], text) for some, text in verdict.build(one)["commands"]]
    assert commands == [(["a"], "audit one"), (["b", "c"], "audit two")]
    assert "audit one" in page(one).text
    assert "audit two" in page(one).text


def test_a_timeline_has_a_sentence_and_a_link_for_a_table(training):
    subject = training(start=0.0, early=0.02, middle=0.03, late=0.04, later=0.05, last=0.06)
    assert build_report(subject, FIRST_PAGE).title == "TinyNet: 6 checkpoints, steps 0 to 2,500"
    said = "6 checkpoints, steps 0 to 2,500. Against start, all others: Widespread change."
    assert verdict.build(subject)["timeline"] == said
    shown = page(subject)
    assert said in shown.text
    assert "Look here first" not in shown.text
    assert {"href": "#timeline"} in shown.all("a")
    alone = page(subject, ReportOptions(sections=["verdict"]))
    assert "Look here first" in alone.text  # nothing else on the page says what changed when


def test_a_timeline_counts_verdicts_that_differ(training):
    said = verdict.build(training(start=0.0, same=0.0, late=0.05))["timeline"]
    assert said.endswith("Against start, the others: Identical (1), Widespread change (1).")
