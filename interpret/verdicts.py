"""Measures -> verdict and ranking: one word for how a run differs, and where to look first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from interpret.measures import CallPair, Measures
from interpret.measures.weights import TensorPair

VERDICTS = ("identical", "same-function", "localized", "widespread", "different-architecture", "not-comparable")
BASE_SHARE = 0.1  # of the typical change of all tensors: what is far below it does not stand out, even where alone
STANDS_OUT = 10.0  # times the median of its kind: int8 everywhere stays below 5, a damaged layer reaches 50


def verdict(measures: Measures) -> str:
    """One word for how a run differs from its reference.

    `different-architecture`: a call has no counterpart of its type and shapes. `not-comparable`: no weights in one run.
    `identical`: the weights are equal, and outputs on the same images are too. `same-function`: weights differ, outputs
    and representations do not beyond rounding. `localized`: the changed calls lie in one unit (a convolution or linear
    with its normalization), or one of them exceeds ten times the median change of the other changed tensors of its
    kind. `widespread`: everything else.
    """
    if not measures.same_architecture:
        return "different-architecture"
    if not measures.weights:
        return "not-comparable"
    changed = changed_calls(measures)
    if not changed and not changed_tensors(measures.unused):
        return "widespread" if diverging_calls(measures) else "identical"
    if same_function(measures):
        return "same-function"
    if len({pair.call.unit for pair in changed}) == 1 and not changed_tensors(measures.unused):
        return "localized"
    return "localized" if standing_out(measures) else "widespread"


def ranking(measures: Measures) -> tuple[str, ...]:
    """Keys of the suspicious calls, most suspicious first; empty where nothing differs, and between two networks.

    Calls whose shapes differ come first, in order of execution. Then calls with changed weights, by how far each
    stands out: its change over the typical change of the other tensors of its kind (0 where most are equal) plus a
    tenth of the typical change of all that changed. So one damaged kernel comes before kernels that all were
    rounded, and before the running statistics that moved because of it. A call whose output moves although its own
    weights are equal is a consequence and left out, unless no weights differ at all: then the calls come in order
    of execution.
    """
    if measures.other_network:
        return ()
    reshaped = [pair.key for pair in measures.calls if pair.weights == "reshaped" and pair.presence == "paired"]
    changed = changed_calls(measures)
    if not reshaped and not changed:
        return tuple(pair.key for pair in diverging_calls(measures))
    suspicion = _suspicion(measures)
    order = sorted(changed, key=lambda pair: (-suspicion[pair.key], -(pair.weight_change or 0.0), pair.call.position))
    return (*reshaped, *(pair.key for pair in order))


def first_divergence(measures: Measures) -> str | None:
    """Key of the first call in order of execution whose output moved by more than rounding explains.

    None where the function is the same (reordered channels move the channels' means, and nothing else), and between two
    networks, which differ from the start.
    """
    if measures.other_network or same_function(measures):
        return None
    return next((pair.key for pair in diverging_calls(measures)), None)


def changed_calls(measures: Measures) -> list[CallPair]:
    """The calls whose weights changed, in order of execution."""
    return [pair for pair in measures.calls if pair.weights == "changed"]


def diverging_calls(measures: Measures) -> list[CallPair]:
    """The calls whose outputs moved, in order of execution; none where the runs saw differently prepared images."""
    if measures.activations not in ("exact", "subset"):
        return []
    return [pair for pair in measures.calls if pair.diverges]


def same_function(measures: Measures) -> bool:
    """Whether outputs and Gram matrices agree up to rounding on images that both runs saw.

    Channel means are left out: they move where channels are reordered.
    """
    paired = [pair for pair in measures.calls if pair.presence == "paired"]
    if measures.activations not in ("exact", "subset") or not paired:
        return False
    changes = [pair.gram_change / pair.threshold for pair in paired if pair.gram_change is not None]
    if not changes or max(changes) > 1:
        return False
    if measures.predictions is not None:
        return measures.predictions.logit_change <= max(pair.threshold for pair in paired)
    return paired[-1].divergence is not None and not paired[-1].diverges


def weight_ratios(measures: Measures) -> Mapping[str, float]:
    """Change of each changed call over the median of the other changed tensors of its kind; the largest of its tensors.

    Of its kind means: the same tensor ("weight", "running_var", ...) of calls of the same kind. Biases and running
    statistics change by other amounts than kernels. A tensor that is the only changed one of its kind (the classifier
    of a convolutional network) is held against all other changed tensors of its name; 1 where there is none.
    """
    changed = [(pair, tensor) for pair in changed_calls(measures) for tensor in changed_tensors(pair.tensors)]
    of_kind: dict[tuple[str, str], list[float]] = defaultdict(list)
    of_name: dict[str, list[float]] = defaultdict(list)
    for pair, tensor in changed:
        if tensor.change:
            of_kind[_kind(pair, tensor)].append(tensor.change)
            of_name[tensor.local_name].append(tensor.change)
    ratios: dict[str, float] = defaultdict(float)
    for pair, tensor in changed:
        change = tensor.change or 0.0
        others = _without(of_kind[_kind(pair, tensor)], change) or _without(of_name[tensor.local_name], change)
        ratios[pair.key] = max(ratios[pair.key], change / median(others) if others else 1.0)
    return ratios


def standing_out(measures: Measures) -> list[CallPair]:
    """The calls that exceed ten times the median of the others of their kind, most extreme first."""
    ratios = weight_ratios(measures)
    found = [pair for pair in changed_calls(measures) if ratios[pair.key] > STANDS_OUT]
    return sorted(found, key=lambda pair: (-ratios[pair.key], pair.call.position))


def changed_tensors(tensors: Iterable[TensorPair]) -> list[TensorPair]:
    """Those whose values changed, counters aside."""
    return [tensor for tensor in tensors if tensor.counted and tensor.status == "changed"]


def _suspicion(measures: Measures) -> Mapping[str, float]:
    groups = _changes_by_kind(measures)
    everything = [value for values in groups.values() for value in values if value > 0]
    typical = median(everything) if everything else 0.0

    def stands_out(pair: CallPair, tensor: TensorPair) -> float:
        others = _without(groups[_kind(pair, tensor)], tensor.change or 0.0)
        scale = median(others or [typical]) + BASE_SHARE * typical
        return (tensor.change or 0.0) / scale if scale else 0.0

    return {
        pair.key: max((stands_out(pair, tensor) for tensor in changed_tensors(pair.tensors)), default=0.0)
        for pair in changed_calls(measures)
    }


def _without(values: Sequence[float], value: float) -> list[float]:
    """The values but one that is equal to this."""
    rest = list(values)
    if value in rest:
        rest.remove(value)
    return rest


def _changes_by_kind(measures: Measures) -> Mapping[tuple[str, str], list[float]]:
    """The changes of all tensors that compare, 0 for equal ones."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair in measures.calls:
        for tensor in pair.tensors:
            if tensor.counted and tensor.status in ("identical", "changed"):
                groups[_kind(pair, tensor)].append(tensor.change or 0.0)
    return groups


def _kind(pair: CallPair, tensor: TensorPair) -> tuple[str, str]:
    return pair.call.kind, tensor.local_name
