"""What docs/tamper.md says, with the script that measured it; three of its cases in full."""

import importlib.util
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
PAGE = "\n" + (ROOT / "docs" / "tamper.md").read_text("utf-8")


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


tamper = script("tamper")


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its own head."""
    lines = PAGE.split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def case(section: str, *name: str) -> object:
    return next(case for case in tamper.SECTIONS[section].cases if case.name == name)


@pytest.mark.parametrize("name", tamper.SECTIONS)
def test_every_case_has_its_row(name: str) -> None:
    section = tamper.SECTIONS[name]
    rows = rows_below(f"## {section.title}")
    assert [tuple(row[: len(one.name)]) for row, one in zip(rows, section.cases, strict=True)] == [
        one.name for one in section.cases
    ]
    assert {len(row) for row in rows} == {len(section.head)}
    assert all(row[-1] == "ok" or row[-1].startswith("**FAILED**: ") for row in rows)


def test_headline_counts_are_those_of_the_tables() -> None:
    counted = {name: rows_below(f"## {section.title}") for name, section in tamper.SECTIONS.items()}
    good = {name: sum(row[-1] == "ok" for row in rows) for name, rows in counted.items()}
    *lines, total = rows_below("# Does the comparison point at the change?")
    assert [line[1] for line in lines] == [f"{good[name]} of {len(rows)}" for name, rows in counted.items()]
    assert total[1] == f"**{sum(good.values())} of {sum(map(len, counted.values()))}**"


def test_there_are_enough_cases() -> None:
    count = {name: len(section.cases) for name, section in tamper.SECTIONS.items()}
    assert list(tamper.ACCEPTANCE) == [f"A{number}" for number in range(1, 16)]
    assert count["lite0"] >= 40
    assert count["digits"] >= 15
    assert count["copies"] >= 20
    layers = {layer for layers in tamper.LITE0.values() for layer in layers}
    for kind in ("stem", "head", "expand", "depthwise", "project", "bn0", "bn1", "bn2", "fc"):
        assert any(kind in layer for layer in layers), kind
    for kind in tamper.STRONG:
        assert len({layer for layer in tamper.LITE0[kind] if "conv" in layer}) >= 6, kind


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("digits", ("int4", "`features.4`")),
        ("digits-noise", ("one filter zeroed", "`head`")),
        ("copies", ("digits", "file: `_orig_mod.module.`, safetensors")),
    ],
)
def test_cases_of_the_digits_network(
    section: str, name: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tamper, "CACHE", tmp_path)  # audited here and now
    outcome = tamper.outcome_of(case(section, *name))
    assert outcome.wrong == ""
    assert len(outcome.cells) == len(tamper.SECTIONS[section].head) - 1
    assert len(list((tmp_path / "bundles").iterdir())) == 2


def test_what_is_not_as_expected_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tamper, "CACHE", tmp_path)
    monkeypatch.setitem(tamper.KINDS, "shuffle", lambda module, generator: None)
    assert "ranked None, first is none" in tamper.outcome_of(case("digits", "shuffle", "`head`")).wrong
    monkeypatch.setitem(tamper.CONDITIONS, "other weights", {"model": tamper.noisy(tamper.network("digits").model)})
    assert "verdict widespread" in tamper.outcome_of(tamper.Case((), lambda: other_weights())).wrong
    monkeypatch.setattr(tamper, "audited", lambda *arguments, **options: 1 / 0)
    assert tamper.outcome_of(case("digits", "shuffle", "`head`")).wrong == "ZeroDivisionError: division by zero"


def other_weights() -> object:
    return tamper.same(tamper.under("digits", **tamper.CONDITIONS["other weights"]))


def test_the_changes_by_hand() -> None:
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[0.7, 0.26], [0.0, 0.0]]))
    tamper.int4(layer, torch.Generator())  # s = 0.1
    torch.testing.assert_close(layer.weight, torch.tensor([[0.7, 0.3], [0.0, 0.0]]))
    torch.testing.assert_close(tamper.int8_per_tensor(torch.tensor([1.27, -0.504])), torch.tensor([1.27, -0.5]))
    tamper.raise_weight(layer, torch.Generator())
    torch.testing.assert_close(layer.weight, torch.tensor([[0.707, 0.3], [0.0, 0.0]]))
    layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tamper.zero_filter(layer, torch.Generator())  # of norms 5 and 1 the upper median
    assert layer.weight.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_permuted_channels_are_the_same_function() -> None:
    own = tamper.network("digits")
    model, order = tamper.permuted("digits")
    assert order.tolist() != sorted(order.tolist())
    with torch.no_grad():
        torch.testing.assert_close(model(own.images), own.model(own.images), rtol=0, atol=1e-5)
        assert torch.equal(model.features[0].weight, own.model.features[0].weight[order])


def test_one_percent_of_noise() -> None:
    own = tamper.network("digits").model
    before, after = (model.features[4].weight.detach() for model in (own, tamper.noisy(own)))
    assert float((after - before).std() / before.std()) == pytest.approx(0.01, rel=0.1)
    assert torch.equal(own.features[1].running_var, tamper.noisy(own).features[1].running_var)
