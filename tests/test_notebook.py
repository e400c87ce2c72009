"""What notebooks show of evidence and comparisons."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

import interpret
from bundles import bundle, network, zeroed_filters
from interpret import notebook

VOID = {"img", "br"}


class Tree(HTMLParser):
    """The text of each element that has some, and whether every element is closed."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "style", "link", "iframe"}
        self.open += [] if tag in VOID else [tag]
        self.styles += [value or "" for name, value in attributes if name == "style"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts += [text] if text.strip() else []


@pytest.fixture(scope="module")
def weights():
    return network()


@pytest.fixture(scope="module")
def evidence(weights):
    return bundle(weights)


def test_evidence_says_what_was_audited(evidence):
    texts = Tree(evidence._repr_html_()).texts
    assert texts[0] == "Audit of TinyNet"
    assert str(len(evidence.calls)) in texts
    assert evidence.manifest.checkpoint["state_sha256"] in texts
    assert evidence.digest in texts


def test_a_comparison_leads_to_the_damaged_layer(weights, evidence):
    damaged = bundle(zeroed_filters(weights, "layer2.conv.weight", share=0.5))
    comparison = interpret.compare(evidence, damaged, labels=["published", "<b>damaged</b>"])
    tree = Tree(comparison._repr_html_())
    assert "<b>damaged</b>" in tree.texts
    assert comparison.verdict["<b>damaged</b>"] == "localized"
    assert {"localized", "layer2.conv"} <= set(tree.texts)
    assert any("layer2.conv" in text and "filters" in text for text in tree.texts)  # a finding
    cells = [style for style in tree.styles if style.startswith("flex:1")]
    assert len(cells) == 2 * len(comparison.rows)
    place = [row.call.key for row in comparison.rows].index("layer2.conv")
    changed = [
        cell for cell in cells[: len(comparison.rows)] if notebook.LEVEL_COLOURS[0] not in cell and "none" not in cell
    ]
    assert changed == [cells[place]]  # the strip of the weights has one coloured cell


def test_runs_without_predictions_still_show(weights):
    def weights_only(content):
        for name in ("layers", "predictions", "maps", "activations", "kernels"):
            content.pop(name, None)

    comparison = interpret.compare(bundle(weights, edit=weights_only), bundle(weights, edit=weights_only))
    assert "unknown" in Tree(comparison._repr_html_()).texts
