"""Policies: what a rule checks, what it cannot, what a viewer of JUnit is shown, and which policies are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

import interpret
from bundles import bundle, int8, network, noisy, permuted, probe, zeroed_filters
from interpret import cli
from interpret.comparison import compare
from interpret.errors import InterpretError
from interpret.evidence import Evidence
from interpret.junit import write_junit
from interpret.policies import PolicyResult, Rule, check_policy, default_policy, read_policy

ROOT = Path(__file__).parent.parent
WEIGHTS = network()
LABELS = [int(label) for label in bundle(WEIGHTS).array("predictions", "logits").argmax(1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles: the reference, the same rounded to 8 bits, and that with a third of one kernel's filters zeroed."""
    place = tmp_path_factory.mktemp("bundles")
    reference = bundle(WEIGHTS, place / "sound", labels=LABELS)
    options = {"targets": reference.array("maps", "targets"), "labels": LABELS}
    bundle(int8(WEIGHTS), place / "int8", **options)
    bundle(zeroed_filters(int8(WEIGHTS), "layer2.conv.weight"), place / "damaged", **options)
    return place


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    """comparison.json of the three, the oracle for what a rule should see."""
    return compare(folder / "sound", folder / "int8", folder / "damaged").to_dict()


@pytest.fixture
def check(folder: Path, tmp_path: Path) -> Any:
    """Hold bundles against the text of a policy."""

    def hold(text: str, *runs: str | Path | Evidence, **options: Any) -> PolicyResult:
        (tmp_path / "policy.toml").write_text(text)
        given = runs or ("sound", "damaged")
        places = [folder / run if isinstance(run, str) else run for run in given]
        return check_policy(*places, policy=tmp_path / "policy.toml", **options)

    return hold


def entries(content: dict[str, Any], run: str) -> dict[str, dict[str, Any]]:
    return {layer["key"]: layer["runs"][run] for layer in content["layers"]}


def verdicts(result: PolicyResult) -> dict[str, str]:
    return {checks[0].rule: verdict for verdict, checks in result.by_rule()}


def violations(result: PolicyResult) -> list[Any]:
    return [check for check in result.checks if check.verdict == "violated"]


# ------------------------------------------------------------------------------------------------------ what is checked


def test_findings_that_could_not_be_made_are_not_kept(tmp_path):
    """Without maps, or without common images, a rule about them saw nothing."""

    def without_maps(content):
        del content["maps"]

    weights = network()
    known, new = bundle(weights, edit=without_maps), bundle(noisy(weights, 0.001), edit=without_maps)
    other_images = bundle(noisy(weights, 0.001), images=probe(16, seed=3))
    policy = tmp_path / "policy.toml"
    rules = [f'[[rule]]\nfinding = "{name}"\nfail_on = "warning"\n' for name in ("maps-moved", "silent-units-appeared")]
    policy.write_text("".join([*rules, '[[rule]]\nvalue = "status"\none_of = ["complete"]\n']))
    verdicts = {check.rule: check.verdict for check in check_policy(known, new, policy=policy).checks}
    assert [verdict for rule, verdict in verdicts.items() if "maps" in rule] == ["not checked"]
    assert [verdict for rule, verdict in verdicts.items() if "silent" in rule] == ["kept"]
    verdicts = {
        check.rule: check.verdict for check in check_policy(bundle(weights), other_images, policy=policy).checks
    }
    assert [verdict for rule, verdict in verdicts.items() if "silent" in rule] == ["not checked"]
    policy.write_text('[[rule]]\nfinding = "maps-moved"\nfail_on = "warning"\nmissing = "fail"\n')
    assert check_policy(known, new, policy=policy).violated


def test_rules_for_layers_that_a_network_lacks_do_not_contradict(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "".join(
            f'[[rule]]\nname = "{name}"\nvalue = "dead_units"\nlayers = ["{name}*"]\nmissing = "ignore"\n{limit}\n'
            for name, limit in (("foo", "min = 5"), ("bar", "max = 3"))
        )
        + '[[rule]]\nvalue = "status"\none_of = ["complete"]\n'
    )
    assert not check_policy(bundle(network()), bundle(network()), policy=policy).violated


def test_the_default_policy_keeps_rounding_and_stops_damage(folder: Path) -> None:
    kept = check_policy(folder / "sound", folder / "int8")
    assert not kept.violated
    assert set(verdicts(kept).values()) == {"kept"}
    damaged = check_policy(folder / "sound", folder / "damaged")
    assert damaged.violated
    broken = {name for name, verdict in verdicts(damaged).items() if verdict == "violated"}
    assert broken == {"nothing critical", "predictions stay", "representations stay", "units keep responding"}


def test_a_value_of_layers_is_held_against_its_limit(check: Any, content: dict[str, Any]) -> None:
    result = check('[[rule]]\nname = "similar"\nvalue = "cka"\nmin = 0.95')
    expected = {key: entry["cka"] for key, entry in entries(content, "damaged").items()}
    assert {found.layer: found.value for found in result.checks} == expected
    low = {key for key, cka in expected.items() if cka < 0.95}
    assert {found.layer for found in violations(result)} == low
    assert 0 < len(low) < len(expected)
    (found,) = [found for found in violations(result) if found.layer == "fc"]
    assert (found.run, found.rule, found.name, found.limit) == ("damaged", "similar", "cka", "at least 0.95")
    assert found.sentence == f"fc: cka is {expected['fc']:.6g}, allowed is at least 0.95"


@pytest.mark.parametrize("allowed", [0, 1, 2, 4, 5])
def test_an_increase_is_held_against_the_references_own_value(check: Any, folder: Path, allowed: int) -> None:
    result = check(f'[[rule]]\nvalue = "constant_units"\nmax_increase = {allowed}')
    before, after = (
        interpret.read_evidence(folder / name).array("layers", "constant_units") for name in ("sound", "damaged")
    )
    keys = [call.key for call in interpret.read_evidence(folder / "sound").calls]
    expected = [key for key, more in zip(keys, (after - before).tolist(), strict=True) if more > allowed]
    assert [found.layer for found in violations(result)] == expected
    assert bool(expected) == (allowed < 5)
    assert all(found.reference is not None for found in result.checks)


def test_a_loss_of_accuracy(check: Any, content: dict[str, Any]) -> None:
    """The reference's own accuracy lies beside the run's."""
    found = content["predictions"]["damaged"]
    loss = found["reference_accuracy"] - found["accuracy"]
    assert loss == 0.75
    for allowed, broken in ((0.74, True), (0.75, False)):
        result = check(f'[[rule]]\nvalue = "predictions.accuracy"\nmax_decrease = {allowed}')
        assert result.violated == broken
        (only,) = result.checks
        assert (only.layer, only.value, only.reference) == (None, found["accuracy"], found["reference_accuracy"])


@given(
    value=st.floats(-10, 10), reference=st.floats(-10, 10), limits=st.lists(st.none() | st.floats(-10, 10), min_size=4)
)
def test_slack_is_negative_exactly_beyond_a_limit(value: float, reference: float, limits: list[float | None]) -> None:
    names = ("min", "max", "max_increase", "max_decrease")
    rule = Rule(**dict(zip(names, limits, strict=False)))
    inside = (
        (rule.min is None or value >= rule.min)
        and (rule.max is None or value <= rule.max)
        and (rule.max_increase is None or value - reference <= rule.max_increase)
        and (rule.max_decrease is None or reference - value <= rule.max_decrease)
    )
    assert (rule.slack(value, reference) >= 0) == inside


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ('layers = "layer2.*"', ["layer2.conv", "layer2.bn", "layer2.relu"]),
        ('layers = ["conv1", "fc"]', ["conv1", "fc"]),
        ('layers = "pool"', ["pool", "pool#1", "pool#2"]),
        ('layers = "pool#1"', ["pool#1"]),
        ('kinds = "convolution"\nexclude = ["layer*"]', ["conv1"]),
        ('layers = "layer1*"\nkinds = ["normalization", "container"]', ["layer1.bn", "layer1"]),
    ],
)
def test_layers_are_chosen_by_glob_and_kind(check: Any, selection: str, chosen: list[str]) -> None:
    result = check(f'[[rule]]\nvalue = "nonfinite"\nmax = 0\n{selection}')
    assert [found.layer for found in result.checks if found.verdict == "kept"] == chosen


def test_a_glob_of_values(check: Any, content: dict[str, Any]) -> None:
    result = check('[[rule]]\nvalue = "maps.*.pearson"\nmin = 0.98')
    expected = {
        (key, f"maps.{method}.pearson"): found["pearson"]
        for key, entry in entries(content, "damaged").items()
        for method, found in entry["maps"].items()
    }
    assert len(expected) == 8
    assert {(found.layer, found.name): found.value for found in result.checks} == expected
    result = check('[[rule]]\nvalue = "tensors.*.zero_filters"\nmax = 0')
    (zeroed,) = violations(result)
    assert (zeroed.layer, zeroed.name, zeroed.value) == ("layer2.conv", "tensors.layer2.conv.weight.zero_filters", 5)


def test_texts_and_booleans(check: Any, content: dict[str, Any]) -> None:
    result = check('[[rule]]\nvalue = "verdict"\none_of = ["identical", "same-function"]')
    (found,) = result.checks
    assert (found.value, found.verdict, found.limit) == ("localized", "violated", "one of identical, same-function")
    diverging = [key for key, entry in entries(content, "damaged").items() if entry["diverges"]]
    result = check('[[rule]]\nvalue = "diverges"\none_of = [false]')
    assert [found.layer for found in violations(result)] == diverging
    assert all(found.verdict == "violated" for found in check('[[rule]]\nvalue = "diverges"\none_of = [0, 1]').checks)


def test_findings(check: Any, content: dict[str, Any]) -> None:
    critical = [found for found in content["findings"] if found["run"] == "damaged" and found["severity"] == "critical"]
    result = check('[[rule]]\nfinding = "*"\nfail_on = "critical"')
    assert {(found.name, found.layer, found.reason) for found in violations(result)} == {
        (found["rule"], found["layer"], found["message"]) for found in critical
    }
    assert {found.value for found in result.checks} == {"critical"}
    kept = check('[[rule]]\nfinding = "*"\nfail_on = "critical"\nignore = ["layers-*", "zeroed-filters", "*-changed"]')
    assert [(found.verdict, found.value) for found in kept.checks] == [("kept", "warning")]
    narrow = check('[[rule]]\nfinding = "*"\nfail_on = "critical"\nlayers = "layer2.*"\nkinds = "convolution"')
    assert {found.layer for found in violations(narrow)} == {"layer2.conv"}
    elsewhere = check('[[rule]]\nfinding = "*"\nfail_on = "critical"\nlayers = "fc"')
    assert not elsewhere.violated


def test_findings_that_the_reference_shares_count(check: Any) -> None:
    """A report says them once; a gate must not let a broken run pass because its reference is broken too."""

    def broken(parts: dict[str, Any]) -> None:
        parts["layers"]["nonfinite"][3] = 5

    runs = [bundle(WEIGHTS, edit=broken) for _ in range(2)]
    result = check('[[rule]]\nfinding = "non-finite-values"\nfail_on = "critical"', *runs)
    assert [found.layer for found in violations(result)] == ["layer1.conv"]


def test_several_runs_are_each_held_against_the_first(folder: Path) -> None:
    result = check_policy(*(folder / name for name in ("sound", "int8", "damaged")), labels=["a", "b", "c"])
    assert (result.reference, result.runs) == ("a", ("b", "c"))
    assert {found.run for found in result.checks} == {"b", "c"}
    assert {found.run for found in violations(result)} == {"c"}
    alone = check_policy(folder / "sound", folder / "damaged", labels=["a", "c"])
    assert [found for found in result.checks if found.run == "c"] == list(alone.checks)


def test_a_run_alone(folder: Path, check: Any) -> None:
    result = check_policy(folder / "damaged")
    assert (result.reference, result.runs, result.violated) == (None, ("damaged",), False)
    found = verdicts(result)
    assert {name for name, verdict in found.items() if verdict == "kept"} == {
        "the audit is complete",
        "every value is finite",
        "nothing critical",
        "images fit the training",
    }
    rest = [found for found in result.checks if found.verdict == "not checked"]
    assert {found.reason for found in rest} == {"needs a reference"}
    dead = interpret.read_evidence(folder / "damaged").array("layers", "dead_units").tolist()
    values = check('[[rule]]\nvalue = "dead_units"\nmax = 0', "damaged")
    assert sorted(found.value for found in values.checks) == sorted(dead)
    assert values.violated


@pytest.mark.parametrize(
    "rule",
    [
        'value = "weights"\none_of = ["identical", "none"]',
        'value = "presence"\none_of = ["paired"]',
        'value = "diverges"\none_of = [false]',
        'value = "cka"\nmin = 0.9',
        'value = "maps.grad-cam.pearson"\nmin = 0.9',
        'value = "verdict"\none_of = ["identical"]',
        'value = "predictions.churn"\nmax = 0',
        'value = "dead_units"\nmax_increase = 0',
        'value = "mean_cka"\nmin = 0.9',
        'finding = "maps-moved"\nfail_on = "info"',
    ],
)
def test_a_run_alone_passes_no_comparison_with_itself(check: Any, rule: str) -> None:
    with pytest.raises(InterpretError, match=r"none of the rules can be checked.*needs a reference"):
        check(f"[[rule]]\n{rule}", "sound")
    result = check(f'[[rule]]\n{rule}\nmissing = "fail"', "sound")
    assert {(found.verdict, found.reason) for found in result.checks} == {("violated", "needs a reference")}


def test_every_name_of_a_layer_can_be_checked(check: Any, content: dict[str, Any]) -> None:
    tables = {name for entry in entries(content, "damaged").values() for name in entry if isinstance(entry[name], dict)}
    for name, value in entries(content, "damaged")["layer2.bn"].items():
        if name in tables or isinstance(value, list):
            continue
        limit = "min = -1e300" if isinstance(value, int | float) and not isinstance(value, bool) else 'one_of = ["x"]'
        rules = f'[[rule]]\nvalue = "{name}"\nlayers = "layer2.bn"\n{limit}\n[[rule]]\nvalue = "nonfinite"\nmax = 0'
        found = check(rules).checks[0]
        assert (found.layer, found.name, found.value) == ("layer2.bn", name, value)


# -------------------------------------------------------------------------------------------------- what is not checked


def test_nulls_are_visible_and_fail_on_request(check: Any) -> None:
    """Without ReLU6 nothing saturates: the value is null in every layer."""
    rules = '[[rule]]\nname = "saturation"\nvalue = "saturated_share"\nmax = 0.5\n{}\n[[rule]]\nvalue = "cka"\nmin = 0'
    result = check(rules.format(""))
    assert verdicts(result)["saturation"] == "not checked"
    assert not result.violated
    column = result.table()["verdict"]
    assert "not checked: not recorded, or does not apply" in column
    result = check(rules.format('missing = "fail"'))
    assert {(found.verdict, found.value) for found in result.checks if found.rule == "saturation"} == {
        ("violated", None)
    }


def test_what_was_not_recorded_says_why(check: Any, folder: Path) -> None:
    without = bundle(WEIGHTS, edit=lambda parts: parts.pop("predictions"))
    rules = '[[rule]]\nvalue = "predictions.churn"\nmax = 0\n[[rule]]\nvalue = "nonfinite"\nmax = 0'
    (first, *_) = check(rules, "sound", without).checks
    assert (first.verdict, first.value) == ("not checked", None)
    assert "predictions: they were not recorded in the other run" in str(first.reason)


def test_maps_that_no_run_has(check: Any) -> None:
    runs = [bundle(WEIGHTS, edit=lambda parts: parts.pop("maps")) for _ in range(2)]
    rules = '[[rule]]\nvalue = "maps.grad-cam.pearson"\nmin = 0.9\n[[rule]]\nvalue = "nonfinite"\nmax = 0'
    assert check(rules, *runs).checks[0].reason == "no maps were compared"


def test_layers_and_kinds_that_do_not_exist(check: Any) -> None:
    tail = '\n[[rule]]\nvalue = "nonfinite"\nmax = 0'
    result = check(f'[[rule]]\nvalue = "cka"\nmin = 0\nkinds = "attention"{tail}')
    assert (result.checks[0].verdict, result.checks[0].reason) == ("not checked", "no layer of kind attention")
    rule = '[[rule]]\nvalue = "cka"\nmin = 0\nlayers = "layer9.*"'
    with pytest.raises(InterpretError, match=r"no layer matches 'layer9\.\*'.*missing = \"ignore\""):
        check(rule)
    result = check(f'{rule}\nmissing = "ignore"{tail}')
    assert (result.checks[0].verdict, result.violated) == ("not checked", False)
    result = check(f'{rule}\nmissing = "fail"{tail}')
    assert (result.checks[0].verdict, result.violated) == ("violated", True)


def test_a_layer_that_a_run_lacks(check: Any) -> None:
    smaller = bundle(WEIGHTS, drop_calls=["layer2.relu"])
    rules = '[[rule]]\nvalue = "presence"\none_of = ["paired"]\n[[rule]]\nvalue = "cka"\nmin = 0\nmissing = "fail"'
    result = check(rules, "sound", smaller)
    assert [(found.layer, found.value) for found in violations(result)] == [
        ("layer2.relu", "removed"),
        ("layer2.relu", None),
    ]
    assert violations(result)[1].reason == "the run lacks this layer"


def test_reordered_channels_and_other_images(check: Any) -> None:
    """Runs without an image in common leave comparisons of outputs unchecked, and the default policy refuses them."""
    result = check_policy(bundle(WEIGHTS), bundle(permuted(WEIGHTS), images=probe(16, seed=5)))
    found = verdicts(result)
    assert (found["representations stay"], found["predictions stay"]) == ("not checked", "not checked")
    assert found["enough common images"] == "violated"


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rules; each begins with a line [[rule]]"),
        ("[rule]\nvalue = 'cka'", "holds no rules; each begins with a line [[rule]]"),
        ("rule = [1]", "rule 1 is no table"),
        ("[[rules]]\nvalue = 'cka'", "unknown table 'rules'; a policy is a list of [[rule]]"),
        ("[[rule]]\nvalue = ", "policy.toml is not TOML"),
        ("[[rule]]\nvalue = 'cka'\nmaxx = 1", "rule 1 has an unknown key 'maxx'; did you mean 'max'"),
        ("[[rule]]\nname = 'x'\nvalue = 'cka'\nzz = 1", "rule 1 ('x') has an unknown key 'zz'; there are name, value"),
        ("[[rule]]\nmax = 1", "must name either a value or a finding"),
        ("[[rule]]\nvalue = 'cka'\nfinding = '*'\nmax = 1", "must name either a value or a finding"),
        ("[[rule]]\nvalue = 'cka'", "has no limit; give one of min, max"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nfail_on = 'critical'", "'fail_on', which belongs to rules with 'finding'"),
        ("[[rule]]\nfinding = '*'\nfail_on = 'critical'\nmax = 1", "'max', which belongs to rules with 'value'"),
        ("[[rule]]\nfinding = '*'", "does not say which severity is too much"),
        ("[[rule]]\nfinding = '*'\nfail_on = 'criticle'", "fail_on cannot be 'criticle'; did you mean 'critical'"),
        ("[[rule]]\nvalue = 'cka'\nmin = '1'", "min is a number, not '1'"),
        ("[[rule]]\nvalue = 'cka'\nmin = true", "min is a number, not True"),
        ("[[rule]]\nvalue = 'cka'\nmin = nan", "min is a number, not nan"),
        ("[[rule]]\nvalue = 'cka'\nmax = inf", "max is a number, not inf"),
        ("[[rule]]\nvalue = 3\nmin = 1", "value is a text, not 3"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nlayers = []", "layers is a text or a list of texts, not []"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nlayers = [1]", "layers is a text or a list of texts, not [1]"),
        ("[[rule]]\nvalue = 'cka'\none_of = []", "one_of is a list of the allowed values, not []"),
        ("[[rule]]\nvalue = 'cka'\none_of = 'a'", "one_of is a list of the allowed values, not 'a'"),
        ("[[rule]]\nvalue = 'cka'\none_of = [1]\nmax = 1", "has one_of and max"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nmax = 0.5", "can never be kept: min 1 is above max 0.5"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nkinds = 'conv'", "kinds cannot be 'conv'; there are convolution, linear"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nmissing = 'skip'", "missing cannot be 'skip'"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\n" * 2, "two rules 'cka at least 1'"),
        # against the data
        ("[[rule]]\nvalue = 'dead_unit'\nmax = 1", "there is no value 'dead_unit'; did you mean 'dead_units'"),
        ("[[rule]]\nvalue = 'churn'\nmax = 1", "there is no value 'churn'; did you mean 'predictions.churn'"),
        ("[[rule]]\nvalue = 'maps.grad-cam.person'\nmax = 1", "did you mean 'maps.grad-cam.pearson'"),
        ("[[rule]]\nvalue = 'maps'\nmax = 1", "there is no value 'maps'"),
        ("[[rule]]\nvalue = 'qqq'\nmax = 1", "maps.*.pearson, maps.*.iou20"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nlayers = 'layer2.cnv'", "no layer matches 'layer2.cnv'; did you mean"),
        ("[[rule]]\nvalue = 'cka'\nmin = 1\nexclude = 'ful'", "no layer matches 'ful'; there are conv1, bn1"),
        ("[[rule]]\nvalue = 'verdict'\nmax = 1", "verdict is a text (localized) and has no at most 1; give one_of ="),
        ("[[rule]]\nvalue = 'diverges'\nmax = 1", "is true or false (true) and has no at most 1; give one_of = [true]"),
        ("[[rule]]\nvalue = 'verdict'\none_of = ['x']\nlayers = 'fc'", "verdict is a value of the whole run"),
        (
            "[[rule]]\nvalue = 'predictions.churn'\nmax_increase = 0",
            "the reference has no predictions.churn of its own",
        ),
        ("[[rule]]\nfinding = 'layer-stands-out'\nfail_on = 'info'", "did you mean 'layers-stand-out'"),
        ("[[rule]]\nfinding = '*'\nignore = 'x'\nfail_on = 'info'", "there is no finding 'x'; there are"),
        ("[[rule]]\nfinding = 'maps-moved'\nignore = '*'\nfail_on = 'info'", "ignores all findings that it names"),
        (
            "[[rule]]\nvalue = 'cka'\nmin = 0.9\n[[rule]]\nvalue = 'cka'\nmax = 0.5\nlayers = 'fc'",
            "rule 'cka at most 0.5 in fc' contradicts rule 'cka at least 0.9': cka at fc cannot be at most 0.5 and",
        ),
        (
            "[[rule]]\nvalue = 'verdict'\none_of = ['identical']\n[[rule]]\nvalue = 'verdict'\none_of = ['localized']",
            "verdict cannot be one of localized and one of identical",
        ),
        ("[[rule]]\nvalue = 'n_images'\none_of = [3]\n[[rule]]\nvalue = 'n_images'\nmin = 4", "contradicts"),
    ],
)
def test_bad_policies_are_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "policy.toml").write_text(text)
    runs = [str(folder / "sound"), str(folder / "damaged")]
    assert cli.main(["check", *runs, "--policy", str(tmp_path / "policy.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (error,) = [line for line in captured.err.splitlines() if line.startswith("Error: ")]
    assert message in error
    assert "policy.toml" in error
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "text",
    [
        "[[rule]]\nvalue = 'cka'\nmin = 0.9\nlayers = 'fc'\n[[rule]]\nvalue = 'cka'\nmax = 0.5\nlayers = 'conv1'",
        "[[rule]]\nvalue = 'cka'\nmin = 0.5\n[[rule]]\nvalue = 'cka'\nmax = 0.5",
        "[[rule]]\nvalue = 'verdict'\none_of = ['a', 'b']\n[[rule]]\nvalue = 'verdict'\none_of = ['b', 'c']",
        "[[rule]]\nvalue = 'n_images'\none_of = [3, 4]\n[[rule]]\nvalue = 'n_images'\nmin = 4",
    ],
)
def test_rules_that_can_both_be_kept_are_no_contradiction(check: Any, text: str) -> None:
    assert len(check(text).rules) == 2


def test_missing_policies_and_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InterpretError, match=r"no policy file 'nowhere\.toml'.*--show-policy"):
        check_policy(folder / "sound", policy="nowhere.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InterpretError, match="is not TOML"):
        read_policy(tmp_path / "bytes.toml")
    with pytest.raises(InterpretError, match="at least one run"):
        check_policy()
    with pytest.raises(InterpretError, match="2 labels were given for 1 runs"):
        check_policy(folder / "sound", labels=["a", "b"])


# -------------------------------------------------------------------------------------------------- what is handed back


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, rounded, damaged = (str(folder / name) for name in ("sound", "int8", "damaged"))
    assert cli.main(["check", sound, rounded]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "int8: 0 violated, 0 not checked, 10 kept, of 10 rules"
    junit = tmp_path / "made" / "policy.xml"
    assert cli.main(["check", damaged, rounded, sound, "--reference", sound, "--junit", str(junit)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "rule", "layer", "value", "limit", "verdict"]
    states = [line.rstrip().rpartition("  ")[2] for line in lines[1 : lines.index(lines[-1]) - 1]]
    first_kept = states.index("kept")
    assert set(states[:first_kept]) == {"violated"}
    assert "damaged: layer2.conv stands out" in "\n".join(lines)
    assert lines[-2:] == [
        "damaged: 4 violated, 0 not checked, 6 kept, of 10 rules",
        "int8: 0 violated, 0 not checked, 10 kept, of 10 rules",
    ]
    assert junit.is_file()
    assert cli.main(["check", sound]) == 0
    assert "not checked: needs a reference" in capsys.readouterr().out
    assert cli.main(["check", sound, damaged, "--labels", "one"]) == 2
    assert "1 names for 2 runs" in capsys.readouterr().err


def test_json_holds_every_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(folder / "sound"), str(folder / "damaged"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    result = check_policy(folder / "sound", folder / "damaged")
    assert printed == result.to_dict()
    assert (printed["policy"], printed["reference"], printed["violated"]) == ("default", "sound", True)
    assert len(printed["checks"]) == len(result.checks) > 40
    assert {rule["verdict"] for rule in printed["rules"]} == {"violated", "kept"}
    layers = {found["layer"] for found in printed["checks"] if found["rule"] == "representations stay"}
    assert len(layers) == 20


def test_long_lists_are_cut_and_counted(check: Any) -> None:
    table = check('[[rule]]\nname = "none"\nvalue = "cka"\nmax = -2').table()
    assert len(table["rule"]) == 11
    assert (table["layer"][-1], table["value"][-1], table["verdict"][-1]) == ("10 more", None, "violated")
    table = check('[[rule]]\nvalue = "cka"\nmin = -2').table()
    assert table["layer"] == ["pool#2 and 19 more"], "the tightest one"


def test_the_default_policy_is_printed_and_can_be_edited(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "--show-policy"]) == 0
    text = capsys.readouterr().out
    assert text == default_policy()
    (tmp_path / "mine.toml").write_text(text)
    mine = check_policy(folder / "sound", folder / "damaged", policy=tmp_path / "mine.toml")
    assert mine.checks == check_policy(folder / "sound", folder / "damaged", policy="default").checks


def test_the_rules_that_the_default_policy_offers_work(check: Any) -> None:
    """What stands behind comment signs is a policy too."""
    offered = default_policy().partition("More rules to take over:")[2]
    text = "\n".join(line.removeprefix("#").strip() for line in offered.splitlines()[1:])
    result = check(text.replace("layer4", "layer3"), "sound", "int8")
    assert len(result.rules) == 4
    assert "not checked" not in verdicts(result).values()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_bundles_of_every_version(version: int) -> None:
    place = ROOT / "tests" / "data" / f"bundle-{version}"
    assert verdicts(check_policy(place))["every value is finite"] == "kept"
    result = check_policy(place, place)
    assert {found.rule for found in violations(result)} <= {"enough common images"}


# ---------------------------------------------------------------------------------------------------------------- JUnit


def read_junit(result: PolicyResult, file: Path) -> etree._Element:
    write_junit(result, file)
    root = etree.parse(file).getroot()
    assert_ants_schema(root)
    return root


def assert_ants_schema(root: etree._Element) -> None:
    """What the strictest schema in use demands: attributes, the order of elements, and numbers that add up."""
    assert root.tag == "testsuites"
    for place, suite in enumerate(root):
        assert set(suite.attrib) == {
            *("name", "package", "id", "timestamp", "hostname"),
            *("tests", "failures", "errors", "skipped", "time"),
        }
        assert suite.get("id") == str(place)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp"))
        cases = suite.findall("testcase")
        assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
        for case in cases:
            assert {"name", "classname", "time"} == set(case.attrib)
            assert [child.tag for child in case] in ([], ["failure"], ["skipped"])
            assert all("type" in failure.attrib for failure in case.findall("failure"))
        names = [case.get("name") for case in cases]
        assert len(set(names)) == len(names)
        assert int(suite.get("tests")) == len(cases)
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure"))
        assert int(suite.get("skipped")) == len(suite.findall("testcase/skipped"))


def test_junit_field_by_field(folder: Path, tmp_path: Path) -> None:
    result = check_policy(*(folder / name for name in ("sound", "int8", "damaged")))
    kept, damaged = read_junit(result, tmp_path / "policy.xml")
    assert (kept.get("name"), kept.get("tests"), kept.get("failures"), kept.get("errors")) == ("int8", "10", "0", "0")
    assert [case.get("name") for case in kept.findall("testcase")] == list(result.rules)
    assert (damaged.get("name"), damaged.get("timestamp")) == ("damaged", "2025-01-01T00:00:00")
    stated = {item.get("name"): item.get("value") for item in damaged.find("properties")}
    assert stated == {"policy": "default", "reference": "sound"}
    failed = {case.get("name"): case for case in damaged.findall("testcase") if case.find("failure") is not None}
    broken = [found for found in violations(result) if found.run == "damaged"]
    assert len(failed) == len(broken)
    for found in broken:
        case = failed[f"{found.rule} [{', '.join(part for part in (found.layer, found.name) if part)}]"]
        assert case.get("classname") == "interpret.damaged"
        failure = case.find("failure")
        assert failure.get("message") == found.sentence
        fields = dict(line.split(": ", 1) for line in failure.text.splitlines())
        assert fields["rule"] == found.rule
        assert fields.get("layer") == found.layer
        assert fields["limit"] == found.limit
        assert fields.get("reason") == found.reason
        if isinstance(found.value, float):
            assert float(fields["value"]) == pytest.approx(found.value, rel=1e-5)


def test_junit_skips_what_was_not_checked(folder: Path, tmp_path: Path) -> None:
    (suite,) = read_junit(check_policy(folder / "sound"), tmp_path / "policy.xml")
    skipped = {case.get("name"): case[0].get("message") for case in suite.iter("testcase") if len(case)}
    assert skipped["same architecture"] == "not checked: needs a reference"
    assert suite.get("skipped") == str(len(skipped)) == "6"


def test_junit_of_hostile_names(tmp_path: Path, check: Any) -> None:
    hostile = 'layer\x1b[31m<&"\x00\ud800\ufffe]]>'

    def broken(parts: dict[str, Any]) -> None:
        parts["layers"]["nonfinite"][0] = 1

    run = bundle(WEIGHTS, edit=broken, rename=lambda key: key.replace("conv1", "conv1\x1b<&>"))
    result = check('[[rule]]\nvalue = "nonfinite"\nmax = 0', run, labels=[hostile])
    (suite,) = read_junit(result, tmp_path / "policy.xml")
    assert suite.get("name") == 'layer\\x1b[31m<&"\\x00\\xd800\\xfffe]]>'
    (case,) = suite.findall("testcase")
    assert case.get("name") == "nonfinite at most 0 [conv1\\x1b<&>, nonfinite]"
    assert case.find("failure").get("message") == "conv1\\x1b<&>: nonfinite is 1, allowed is at most 0"


def test_the_same_evidence_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a.xml", "b.xml"):
        write_junit(check_policy(folder / "sound", folder / "damaged"), tmp_path / name)
    assert (tmp_path / "a.xml").read_bytes() == (tmp_path / "b.xml").read_bytes()


# ---------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("page", ["docs/policy.md", "README.md"])
def test_policies_on_pages_are_policies(tmp_path: Path, page: str) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "policy.toml").write_text(block)
        assert read_policy(tmp_path / "policy.toml").rules


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs" / "policy.md").read_text("utf-8")
    assert [key for key in Rule.__slots__ if f"`{key}`" not in page] == []


def test_numbers_of_numpy_do_not_reach_the_result(folder: Path) -> None:
    for found in check_policy(folder / "sound", folder / "damaged").checks:
        assert not isinstance(found.value, np.generic)
