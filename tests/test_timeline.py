from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from bundles import bundle, network, noisy, probe
from interpret import charts, sections
from interpret.auditing import audit
from interpret.cli import main
from interpret.comparison import compare
from interpret.errors import InterpretError
from interpret.functional.statistics import histogram_edges
from interpret.measures.runs import Run
from interpret.measures.timeline import QUANTILES, _settled, timeline_of
from interpret.reporting import ReportOptions, build_report, render_html
from interpret.sections import timeline as section
from interpret.sections.subject import Subject
from networks import Digits, digit_images
from test_reporting import HOSTILE, Page

STEPS = (0, 4, 16, 32, 48)
FROZEN, FROZEN_AT = "features.4", 16
COUNT = 24
WEIGHTS = network(widths=(6, 8))


def training() -> dict[int, dict[str, torch.Tensor]]:
    """State dicts of the digits network at five steps of its training; one layer is frozen on the way."""
    images, labels = digit_images()
    torch.manual_seed(0)
    model, states = Digits(), {}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(STEPS[-1] + 1):
        if step == FROZEN_AT:
            model.get_submodule(FROZEN).requires_grad_(False)
        if step in STEPS:
            states[step] = copy.deepcopy(model.state_dict())
        batch = torch.randint(0, 1500, (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return states


def loaded(state) -> nn.Module:
    model = Digits()
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def states():
    return training()


@pytest.fixture(scope="module")
def audits(states, tmp_path_factory):
    images = digit_images()[0][1500 : 1500 + COUNT]
    folder = tmp_path_factory.mktemp("training")
    return {step: audit(loaded(state), images, out=folder / str(step), methods=()) for step, state in states.items()}


@pytest.fixture(scope="module")
def timeline(audits):
    found, reason = timeline_of(*dated(audits))
    assert reason is None
    return found


def dated(audits, order=STEPS):
    runs = {f"at {step}": Run(audits[step]) for step in order}
    return runs, {f"at {step}": {"step": step} for step in order}


def in_order(*evidence):
    runs = {f"run {place}": Run(item) for place, item in enumerate(evidence)}
    return timeline_of(runs, {label: {"step": step} for step, label in enumerate(runs)})


def steps_of(count):
    return [{"step": step} for step in range(count)]


@pytest.fixture(scope="module")
def outputs(states):
    """The output of every module at every step, in float64."""
    images = digit_images()[0][1500 : 1500 + COUNT].double()
    found = {}
    for step, state in states.items():
        model = loaded(state).double()
        for module in model.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda module, inputs, output, key=(step, name): found.update({key: output.detach().numpy()})
            )
        with torch.no_grad():
            model(images)
    return found


def features(output) -> np.ndarray:
    """What goes into the Gram matrix: averaged to 7 x 7 at most, for up to 83 channels."""
    if output.ndim == 4:
        output = nn.functional.adaptive_avg_pool2d(torch.tensor(output), min(7, output.shape[-1])).numpy()
    return output.reshape(len(output), -1)


def debiased_cka(first, second) -> float:
    """Song et al. 2012, eq. 5, of linear kernels: tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)."""

    def hsic(x, y):
        first, second = x @ x.T, y @ y.T
        n = len(first)
        np.fill_diagonal(first, 0)
        np.fill_diagonal(second, 0)
        product = first @ second
        return np.trace(product) + first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)

    return hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))


def weights_of(states, call) -> list[list[np.ndarray]]:
    """Per step the tensors of a module that count, in float64."""
    return [
        [
            tensor.double().numpy()
            for name, tensor in state.items()
            if name.rpartition(".")[0] == call and not name.endswith("num_batches_tracked")
        ]
        for state in states.values()
    ]


def norm(tensor) -> float:
    return float(np.linalg.norm(tensor))


# Numbers against the state dicts and the outputs ----------------------------------------------------------------------


def test_steps_and_labels_are_in_order(timeline):
    assert timeline.steps == STEPS
    assert timeline.labels == tuple(f"at {step}" for step in STEPS)
    assert timeline.images == COUNT
    assert timeline.reasons == ()


@pytest.mark.parametrize("call", ["features.0", "features.1", "features.4", "head"])
def test_weight_changes_are_those_of_the_state_dicts(timeline, states, call):
    place = next(found.position for found in timeline.calls if found.key == call)
    tensors = weights_of(states, call)
    # up to 1024 entries a sketch is the tensor itself
    tolerance = 1e-5 if max(tensor.size for tensor in tensors[0]) <= 1024 else 0.1
    change = [
        max(norm(b - a) / (norm(a) or norm(b) or 1.0) for a, b in zip(before, after, strict=True))
        for before, after in itertools.pairwise(tensors)
    ]
    to_last = [max(norm(a - b) / norm(b) for a, b in zip(now, tensors[-1], strict=True)) for now in tensors]
    distances = np.array([[norm(a - b) for a, b in zip(now, tensors[-1], strict=True)] for now in tensors])
    assert np.isnan(timeline.weight_change[place, 0])
    np.testing.assert_allclose(timeline.weight_change[place, 1:], change, rtol=tolerance)
    np.testing.assert_allclose(timeline.weight_change_to_last[place], to_last, rtol=tolerance)
    np.testing.assert_allclose(timeline.remaining[place], (distances / distances.max(0)).max(1), rtol=tolerance)


def test_calls_without_weights_have_no_change(timeline):
    for call in timeline.calls:
        if not call.tensors:
            assert np.isnan(timeline.weight_change[call.position]).all()
            assert timeline.settled_weights[call.position] == -1


def test_the_frozen_layer_settles_exactly_where_it_was_frozen(timeline):
    settled = {call.key: timeline.settled_weights[call.position] for call in timeline.calls if call.tensors}
    assert settled == {"features.0": -1, "features.1": -1, FROZEN: STEPS.index(FROZEN_AT), "head": -1}
    place = next(call.position for call in timeline.calls if call.key == FROZEN)
    assert timeline.weight_change[place, 3:].tolist() == [0.0, 0.0]
    assert timeline.remaining[place, 2:].tolist() == [0.0, 0.0, 0.0]
    entry = timeline.to_dict()["layers"][place]
    assert entry["settled"]["weights"] == FROZEN_AT


def test_cka_is_that_of_the_outputs(timeline, outputs):
    for call in timeline.calls:
        at = [features(outputs[step, call.name]) for step in STEPS]
        to_last = [debiased_cka(one, at[-1]) for one in at]
        to_previous = [debiased_cka(before, after) for before, after in itertools.pairwise(at)]
        np.testing.assert_allclose(timeline.cka_to_last[call.position], to_last, atol=2e-5)
        np.testing.assert_allclose(timeline.cka_to_previous[call.position, 1:], to_previous, atol=2e-5)
        assert np.isnan(timeline.cka_to_previous[call.position, 0])
        late = [step for step in range(4) if min(to_last[step:]) >= 0.99]
        assert timeline.settled_outputs[call.position] == min(late, default=-1)


def test_statistics_are_those_of_the_outputs_and_the_state_dicts(timeline, outputs, states):
    for call in timeline.calls:
        for place, step in enumerate(STEPS):
            found = {name: values[call.position, place] for name, values in timeline.statistics.items()}
            output = outputs[step, call.name]
            assert found["output_mean"] == pytest.approx(output.mean(), rel=1e-4, abs=1e-6)
            assert found["output_rms"] == pytest.approx(np.sqrt((output**2).mean()), rel=1e-4)
            centred = features(output) - features(output).mean(0)
            share = np.linalg.svd(centred, compute_uv=False) ** 2
            share = share[share > 1e-12 * share.sum()] / share.sum()
            assert found["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
            if call.kind == "activation":
                dead = (output.max((0, 2, 3)) <= 0).sum()
                assert found["dead_units"] == dead
                assert found["dead_share"] == pytest.approx(dead / output.shape[1])
                assert found["zero_share"] == pytest.approx((output == 0).mean(), abs=2e-3)
            else:
                assert np.isnan(found["dead_share"])
            weight = states[step].get(f"{call.name}.weight")
            if weight is not None and weight.ndim > 1:
                assert found["weight_norm"] == pytest.approx(norm(weight.double().numpy()), rel=1e-6)
            else:
                assert np.isnan(found["weight_norm"])


# Histograms -----------------------------------------------------------------------------------------------------------


def test_every_tensor_but_counters_has_a_histogram(timeline, states):
    assert [tensor.name for tensor in timeline.tensors] == [name for name in states[0] if "num_batches" not in name]


def test_shares_are_counted_on_edges_that_the_steps_share(timeline, states):
    fixed = histogram_edges()
    for tensor in timeline.tensors:
        values = np.stack([state[tensor.name].numpy().ravel() for state in states.values()])
        assert tensor.edges[[0, -1]].tolist() == [values.min(), values.max()]
        assert set(tensor.edges[1:-1]) <= set(fixed)
        assert tensor.shares.shape == (len(STEPS), len(tensor.edges) - 1)
        for row, shares in zip(values, tensor.shares, strict=True):
            counted = np.array([np.count_nonzero(row < edge) for edge in tensor.edges[1:-1]])
            # an entry that is negative and right on an edge counts in the bin above it in magnitude
            on_edge = np.array([np.count_nonzero((row == edge) & (row < 0)) for edge in tensor.edges[1:-1]])
            np.testing.assert_allclose(np.cumsum(shares)[:-1] * row.size, counted + on_edge, atol=1e-9)
        np.testing.assert_allclose(tensor.share_below(tensor.edges[1:-1])[:, :1] * row.size % 1, 0, atol=1e-9)


def test_quantiles_lie_in_the_bin_of_the_true_ones(timeline, states):
    for tensor in timeline.tensors:
        for state, low, high, found in zip(
            states.values(), tensor.minimum, tensor.maximum, tensor.quantiles, strict=True
        ):
            values = state[tensor.name].double().numpy().ravel()
            assert (low, high) == (values.min(), values.max())
            edges = np.clip(tensor.edges, low, high)
            below, above = (np.quantile(values, QUANTILES, method=method) for method in ("lower", "higher"))
            first = edges[np.maximum(np.searchsorted(edges, below, "left") - 1, 0)]
            last = edges[np.minimum(np.searchsorted(edges, above, "right"), len(edges) - 1)]
            assert (found >= first - 1e-12).all()
            assert (found <= last + 1e-12).all()


def test_quantiles_of_one_repeated_value_are_that_value(timeline):
    ones = next(tensor for tensor in timeline.tensors if tensor.name == "features.1.weight")
    assert ones.quantiles[0].tolist() == [1.0] * 5  # BatchNorm before the first step


def test_share_below_is_that_of_the_entries(timeline, states):
    tensor = next(tensor for tensor in timeline.tensors if tensor.name == "features.4.weight")
    values = states[32]["features.4.weight"].numpy()
    edges = np.array([-9.0, -0.125, 0.0, 0.0625, 9.0])
    expected = [(values < edge).mean() for edge in edges]
    np.testing.assert_allclose(tensor.share_below(edges)[STEPS.index(32)], expected, atol=1e-12)


# What settles ---------------------------------------------------------------------------------------------------------


def test_settled_is_the_first_step_of_the_last_stretch():
    rng = np.random.default_rng(0)
    close = rng.random((200, 6)) < 0.7
    close[:, -1] = True
    for row, found in zip(close, _settled(close), strict=True):
        early = [step for step in range(5) if row[step:].all()]
        assert found == min(early, default=-1)


def test_a_straight_line_settles_with_five_percent_of_its_steps_left_and_a_random_walk_does_not():
    direction = noisy(WEIGHTS, 0.3, seed=1)
    line = [
        {name: first + (direction[name] - first) * np.float32(step / 20) for name, first in WEIGHTS.items()}
        for step in range(21)
    ]
    straight, _ = in_order(*(bundle(weights) for weights in line))
    walk = [WEIGHTS]
    for step in range(40):
        walk.append(noisy(walk[-1], 0.02, seed=step))
    random, _ = in_order(*(bundle(weights) for weights in walk))
    weighted = np.isfinite(straight.remaining).any(1)
    moving = straight.remaining[weighted]
    np.testing.assert_allclose(moving, np.repeat([1 - np.arange(21) / 20], len(moving), 0), atol=0.02)
    assert set(straight.settled_weights[weighted]) <= {19, -1}
    assert set(random.settled_weights) == {-1}
    # by the length of the path, the same walk would have settled long before its end
    path = np.nansum(random.weight_change[weighted], 1)
    assert (random.weight_change_to_last[weighted][:, 30] < 0.1 * path).all()


def test_what_never_moved_settled_at_the_first_step():
    moved = {**WEIGHTS, "fc.weight": WEIGHTS["fc.weight"] * np.float32(1.5)}
    found, _ = in_order(bundle(WEIGHTS), bundle(moved), bundle({**moved, "fc.bias": moved["fc.bias"] + np.float32(1)}))
    settled = {call.key: int(found.settled_weights[call.position]) for call in found.calls if call.tensors}
    assert settled.pop("fc") == -1
    assert set(settled.values()) == {0}
    fc = found.calls[-1].position
    assert found.weight_change[fc, 1] == pytest.approx(0.5, rel=1e-5)
    assert found.settled_outputs[fc] == 0  # a scale and a constant are nothing to CKA
    assert (found.weight_change[:fc][:, 1:][np.isfinite(found.weight_change[:fc, 1:])] == 0).all()


# Which runs make a timeline -------------------------------------------------------------------------------------------


def test_runs_in_any_order_give_the_same_timeline(timeline, audits):
    found, _ = timeline_of(*dated(audits, order=(32, 0, 48, 4, 16)))
    assert json.dumps(found.to_dict()) == json.dumps(timeline.to_dict())


def test_variants_of_one_network_are_no_timeline(audits):
    runs, origins = dated(audits, order=(48, 0, 4))
    assert timeline_of(runs, {})[0] is None
    origins["at 0"] = {"step": None}
    assert timeline_of(runs, origins) == (None, "no step is known of 'at 0'")


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((0, 1), "at least 3 checkpoints of one training, not 2"),
        ((3, 7, 3), "runs 'a' and 'c' both have step 3; leave one of them out"),
    ],
)
def test_too_few_or_equal_steps_make_none(steps, why):
    runs = {label: Run(bundle(WEIGHTS)) for label, _ in zip("abc", steps, strict=False)}
    found, reason = timeline_of(runs, {label: {"step": step} for label, step in zip("abc", steps, strict=False)})
    assert found is None
    assert why in reason


@pytest.mark.parametrize("step", ["7", 0.5])
def test_a_step_that_is_no_whole_number_is_refused(step):
    runs = {label: Run(bundle(WEIGHTS)) for label in "abc"}
    with pytest.raises(InterpretError, match=r"the step of run 'b'.*give a whole number"):
        timeline_of(runs, {"b": {"step": step}})


def test_another_architecture_makes_none():
    found, reason = in_order(bundle(WEIGHTS), bundle(WEIGHTS), bundle(network(widths=(6, 8, 10))))
    assert found is None
    assert reason == "run 'run 2' has another architecture than run 'run 0'; a timeline takes one network"
    wider = in_order(bundle(WEIGHTS), bundle(WEIGHTS), bundle(network(widths=(6, 9))))
    assert wider[0] is None


def test_a_tensor_of_another_shape_makes_none():
    def turned(content):
        entry = next(entry for entry in content["tensors"] if entry["name"] == "fc.weight")
        entry["shape"] = entry["shape"][::-1]

    found, reason = in_order(bundle(WEIGHTS), bundle(WEIGHTS), bundle(WEIGHTS, edit=turned))
    assert found is None
    assert "tensor 'fc.weight' has shape (8, 10) in run 'run 2'" in reason


def test_other_names_of_the_same_architecture_are_matched():
    runs = [WEIGHTS, noisy(WEIGHTS, 0.1, seed=1), noisy(WEIGHTS, 0.1, seed=2)]
    named, _ = in_order(*(bundle(weights) for weights in runs))
    renamed, _ = in_order(bundle(runs[0]), bundle(runs[1], rename=lambda key: f"backbone.{key}"), bundle(runs[2]))
    assert json.dumps(renamed.to_dict()) == json.dumps(named.to_dict())


def test_a_run_without_weights_leaves_gaps_and_says_so():
    def forget(content):
        del content["weights"]

    runs = [WEIGHTS, noisy(WEIGHTS, 0.1, seed=1), WEIGHTS, WEIGHTS]
    edits = [None, forget, None, None]
    found, _ = in_order(*(bundle(weights, edit=edit) for weights, edit in zip(runs, edits, strict=True)))
    conv = found.calls[0].position
    assert np.isnan(found.weight_change[conv]).tolist() == [True, True, True, False]
    assert np.isnan(found.remaining[conv]).tolist() == [False, True, False, False]
    assert found.settled_weights[conv] == 2  # what the gap hides cannot be taken for settled
    assert found.reasons == ("weights were not recorded in 'run 1'",)
    assert np.isfinite(found.cka_to_last[conv]).all()
    assert np.isnan(found.tensors[0].quantiles).any(1).tolist() == [False, True, False, False]
    nothing, _ = in_order(*(bundle(weights, edit=forget) for weights in runs))
    assert nothing.tensors == ()
    assert np.isnan(nothing.weight_change).all()


def test_a_run_without_grams_has_no_cka():
    def forget(content):
        del content["layers"]["gram"]

    found, _ = in_order(bundle(WEIGHTS), bundle(WEIGHTS, edit=forget), bundle(WEIGHTS))
    assert np.isnan(found.cka_to_last[0]).tolist() == [False, True, False]
    assert found.reasons == ("Gram matrices were not recorded in 'run 1'",)
    assert found.settled_outputs[0] == -1


def test_cka_is_of_the_images_that_all_runs_saw():
    images, changed = probe(12), noisy(WEIGHTS, 0.2)
    subset = [5, 1, 3, 9, 7, 11]
    all_images, _ = in_order(bundle(changed, images=images[subset]), *[bundle(WEIGHTS, images=images[subset])] * 2)
    found, _ = in_order(bundle(changed, images=images), bundle(WEIGHTS, images=images[subset]), bundle(WEIGHTS))
    assert found.images == 6
    np.testing.assert_allclose(found.cka_to_last, all_images.cka_to_last, atol=1e-5)
    few, _ = in_order(*(bundle(WEIGHTS, images=images[:3]) for _ in range(3)))
    assert np.isnan(few.cka_to_last).all()
    assert few.reasons == ("CKA takes at least 4 images that all runs saw, not 3",)


def test_values_that_are_not_finite_are_null():
    def broken(content):
        content["weights"]["sketch"][0] = np.nan
        content["tensors"][0] |= {"norm": None, "minimum": None, "maximum": None, "nonfinite": 9}
        content["layers"]["channel_mean"][0] = np.nan

    found, _ = in_order(bundle(WEIGHTS), bundle(noisy(WEIGHTS, 0.1), edit=broken), bundle(WEIGHTS))
    entry = json.loads(json.dumps(found.to_dict(), allow_nan=False))["layers"][0]
    assert entry["weight_change"] == [None, None, None]
    assert entry["statistics"]["output_mean"][1] is None


def test_to_dict_is_strict_json_with_the_numbers_of_the_timeline(timeline):
    content = json.loads(json.dumps(timeline.to_dict(), allow_nan=False))
    assert content["steps"] == list(STEPS)
    for call, entry in zip(timeline.calls, content["layers"], strict=True):
        assert entry["key"] == call.key
        found = [np.nan if value is None else value for value in entry["cka_to_last"]]
        np.testing.assert_array_equal(found, timeline.cka_to_last[call.position])
    assert content["tensors"][0]["quantiles"]["0.5"] == timeline.tensors[0].quantiles[:, 2].tolist()


# Section --------------------------------------------------------------------------------------------------------------


def compared(audits, order=STEPS):
    origins = [{"step": step} for step in order]
    return compare(*(audits[step] for step in order), labels=[f"at {step}" for step in order], origins=origins)


@pytest.fixture
def view(monkeypatch):
    """The report with its verdict and timeline alone: the other sections are tested elsewhere."""
    chosen = tuple(item for item in sections.SECTIONS if item.id in ("verdict", "timeline"))
    monkeypatch.setattr(sections, "SECTIONS", chosen)
    return lambda source: build_report(Subject.of(source), ReportOptions())


def test_the_section_shows_the_timeline(audits, view):
    data = section.build(Subject.of(compared(audits)))
    assert dict(data["facts"]) == {
        "Checkpoints": "5, step 0 to 48",
        "Images that all of them saw": str(COUNT),
        "Weights settled": "1 of 4 calls",
        "Outputs settled": dict(data["facts"])["Outputs settled"],
    }
    row = next(row for row in data["settled"] if row["step"] == str(FROZEN_AT))
    assert [layer.key for layer in row["cells"][0]["layers"]] == [FROZEN]
    never = data["settled"][-1]
    assert never["step"] == "not before 48"
    assert [layer.key for layer in never["cells"][0]["layers"]] == ["features.0", "features.1", "head"]
    assert [title for title, _, _ in data["statistics"]][:2] == ["Weight norm", "Output"]
    assert {histogram["name"] for histogram in data["histograms"]} >= {"features.0.weight"}
    page = Page(render_html(view(compared(audits))))
    assert "What settled when" in page.text
    assert "in the order given" not in page.text


def test_the_section_is_left_out_where_there_is_no_timeline(audits, view):
    variants = compare(audits[0], audits[4], audits[16])
    for source in (audits[0], compared(audits, order=(0, 4)), variants):
        assert "timeline" not in [entry.section.id for entry in view(source).entries]


def test_where_steps_are_given_the_reason_is_printed(audits, view):
    origins = [{"step": step} for step in (0, 4, 4)]
    page = Page(
        render_html(view(compare(*(audits[step] for step in (0, 4, 16)), labels=("a", "b", "c"), origins=origins)))
    )
    assert "No timeline: runs 'b' and 'c' both have step 4; leave one of them out." in page.text


def test_steps_from_the_command_line(audits, tmp_path, capsys):
    folders = [str(audits[step].folder) for step in (16, 0, 48)]
    command = ["report", *folders, "--labels", "a,b,c", "--format", "html", "-o", str(tmp_path)]
    assert main([*command, "--steps", "16,0,48"]) == 0
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert (content["timeline"]["labels"], content["timeline"]["steps"]) == (["b", "a", "c"], [0, 16, 48])
    assert main([*command, "--steps", "16,0"]) == 2
    assert main([*command, "--steps", "16,0,x"]) == 2
    errors = capsys.readouterr().err
    assert "2 steps for 3 runs" in errors
    assert "'16,0,x' is not a list of steps such as 0,100,2000" in errors


def test_the_timeline_is_in_comparison_json(audits, timeline):
    content = compared(audits).to_dict()
    assert content["timeline"] == json.loads(json.dumps(timeline.to_dict()))
    assert compare(audits[0], audits[4]).to_dict()["timeline"] is None


def test_hostile_labels_and_names_are_text(view):
    weights = [WEIGHTS, noisy(WEIGHTS, 0.1, seed=1), noisy(WEIGHTS, 0.1, seed=2)]
    named = [bundle(one, rename=lambda key: f"<b>{key}") for one in weights]
    page = Page(render_html(view(compare(*named, labels=(HOSTILE, "b", "c"), origins=steps_of(3)))))
    assert "<b>conv1" in page.text
    assert HOSTILE in page.text
    assert len(page.all("script")) == 1


def test_what_was_not_recorded_is_not_drawn():
    def forget(content):
        for kind in ("layers", "maps", "kernels", "activations", "predictions", "inputs"):
            del content[kind]

    weights = [WEIGHTS, noisy(WEIGHTS, 0.1, seed=1), noisy(WEIGHTS, 0.1, seed=2)]
    data = section.build(Subject.of(compare(*(bundle(one, edit=forget) for one in weights), origins=steps_of(3))))
    assert [grid["title"] for grid in data["grids"]] == ["Weight change from step to step"]
    assert [title for title, _, _ in data["statistics"]] == ["Weight norm"]
    assert data["reasons"] == ("Gram matrices were not recorded in 'TinyNet', 'TinyNet (2)', 'TinyNet (3)'",)


# Charts: one value of each computed by hand ---------------------------------------------------------------------------


def paths(chart, kind: str) -> list[str]:
    root = ElementTree.fromstring(chart.__html__())
    return [item.get("d") or "" for item in root.iter() if item.get("class") == kind]


def texts(chart) -> list[str]:
    return [item.text or "" for item in ElementTree.fromstring(chart.__html__()).iter() if item.tag.endswith("text")]


def test_a_level_grid_has_a_row_per_step_a_column_per_call_and_a_line_where_calls_settled():
    chart = charts.level_grid(
        [[9, 9, None, 3], [0, 9, None, 3]], "grid", rows=["10", "20"], marks=[1, None, None, 0], width=94
    )
    # left 46, right 8, top 16: 10 across per call, 15 down per step
    assert paths(chart, "level-fill-9") == ["M46 16H66V31H46ZM56 31H66V46H56Z"]
    assert paths(chart, "level-fill-0") == ["M46 31H56V46H46Z"]
    assert paths(chart, "level-fill-3") == ["M76 16H86V31H76ZM76 31H86V46H76Z"]
    assert paths(chart, "mark-line") == ["M46 31h10M76 16h10"]
    assert {"step", "call", "10", "20"} <= set(texts(chart))


@pytest.mark.parametrize(("calls", "steps"), [(30, 5), (200, 5), (700, 60), (1, 3)])
def test_a_level_grid_of_any_size_stays_in_its_box_with_few_paths(calls, steps):
    levels = [[(call * step) % 10 for call in range(calls)] for step in range(steps)]
    chart = charts.level_grid(levels, "grid", rows=[f"{step:,}" for step in range(steps)], stages=[3, 7])
    assert chart.width == 680
    assert chart.height <= 300
    numbers = [
        float(x)
        for path in paths(chart, "level-fill-9")
        for x in path.replace("Z", "").split("H")[1:2]
        for x in [x.split("V")[0]]
    ]
    assert all(46 <= x <= 672.1 for x in numbers)
    assert chart.body.count("<path") <= 13


def test_step_curves_join_the_calls_that_have_a_value():
    chart = charts.step_curves([[0.0, None, 1.0], [1.0, 1.0, 1.0]], "curves", width=154, height=128)
    # left 46, right 8, top 8, bottom 20: 100 wide, 100 high
    assert paths(chart, "step-line-0")[0].startswith("M46 108L146 8M46 108m")
    assert paths(chart, "step-line-8")[0].startswith("M46 8L96 8L146 8M46 8m")
    assert "call" in texts(chart)


def test_a_histogram_panel_has_its_values_from_top_to_bottom():
    chart = charts.histogram_panel(
        [[1, 1], [None, 2]],
        [[0.0, 1.0], [None, 0.5], [0.0, 0.0]],
        (-1.0, 1.0),
        "h",
        columns=["0", "9"],
        width=144,
        height=119,
    )
    # left 40, right 4, top 5, bottom 14: 50 across per step, 50 down per row; 1 lies at y = 5, -1 at 105
    assert paths(chart, "level-fill-1") == ["M40 5H140V55H40Z"]
    assert paths(chart, "level-fill-2") == ["M90 55H140V105H90Z"]
    assert paths(chart, "run-line-0") == ["M65 55L115 5", "M115 30", "M65 55L115 55"]
    assert texts(chart)[-2:] == ["0", "9"]


def test_shades_and_steps_have_the_colours_of_the_style_sheets():
    from interpret.fonts import templates_folder

    base = (templates_folder() / "css/base.css").read_text("utf-8")
    for place, colour in enumerate(charts.LEVEL_COLOURS):
        assert f"--l{place}: {colour};" in base
    screen = (templates_folder() / "css/screen.css").read_text("utf-8")
    assert all(f".step-line-{place} " in screen for place in range(len(charts.STEP_COLOURS)))
    assert charts.STEP_COLOURS[0] == "#440154"  # viridis begins there


def test_odd_values_still_make_charts():
    for values in ([], [None], [0.0], [5.0], [-1.0, 1.0], [float("inf")]):
        for logarithmic in (True, False):
            ElementTree.fromstring(charts.step_curves([values], "odd", logarithmic=logarithmic).__html__())
    for chart in (
        charts.level_grid([], "odd", rows=[]),
        charts.level_grid([[None]], "odd", rows=["0"]),
        charts.histogram_panel([], [], (0.0, 0.0), "odd", columns=[]),
        charts.histogram_panel([[1]], [[2.0]], (2.0, 2.0), "odd", columns=["1"]),
    ):
        ElementTree.fromstring(chart.__html__())
        assert "nan" not in chart.body


def test_the_timeline_is_frozen(timeline):
    with pytest.raises(dataclasses.FrozenInstanceError):
        timeline.steps = ()
