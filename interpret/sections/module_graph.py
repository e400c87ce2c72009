"""The flow between calls as boxes and lines: blocks of a network, its branches and its skip connections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interpret import charts
from interpret.evidence import NETWORK_INPUT, Call
from interpret.language import Message, listed, say
from interpret.sections.subject import Layer, Run, Subject
from interpret.sections.wording import count, number, shape
from interpret.shades import level

MOST_BOXES = 80  # that one page can tell apart
MOST_CELLS = 4  # of a box: one per run that is compared; of more runs the largest change stands for all


@dataclass(frozen=True, slots=True)
class Box:
    """Neighbouring calls that are drawn as one.

    Attributes:
        name: the call's key, or the module that all of them lie in.
        calls: in order of execution.
        sources: numbers of the boxes whose outputs it uses, counted from 1; 0 is the network's input.
        branched: whether one output is used by several of its calls: a branch or a skip connection inside it.
    """

    name: str
    calls: tuple[Call, ...]
    sources: tuple[int, ...]
    branched: bool


def graph(subject: Subject) -> dict[str, Any] | None:
    """The drawing of the reference's calls, with how the runs differ in them; None where no flow was recorded."""
    steps = [call for call in subject.reference.calls if call.sources is not None]
    if not steps:
        return None
    boxes = boxes_of(steps)
    several = len(subject.others) > MOST_CELLS
    runs = [subject.others] if several else [[run] for run in subject.others]
    layers = {layer.position: layer for layer in subject.layers}
    nodes = [charts.Node(say("input"), shape(subject.reference.manifest.inputs["shape"]))]
    size: tuple[int, ...] | None = None
    for box in boxes:
        inside = [layers[call.position] for call in box.calls]
        output = box.calls[-1].output_shape[1:]
        nodes.append(
            charts.Node(
                label=_label(box),
                note=shape(output) if output[1:] != size else "",
                title=_title(subject, box, inside),
                link=inside[-1].id,
                sources=box.sources,
                branched=box.branched,
                levels=tuple(level(_largest(inside, some, "divergence"), -4, 0) for some in runs),
                marked=tuple(_weights_changed(inside, some) for some in runs),
            )
        )
        size = output[1:]
    words = _words(steps, boxes)
    return {
        "screen": charts.flow_chart(nodes, words, linked=True),
        "paper": charts.flow_chart(nodes, words, linked=False),
        "calls": count(len(steps)),
        "boxes": count(len(boxes)),
        "folded": len(boxes) < len(steps),
        "branched": any(box.branched for box in boxes),
        "runs": () if several else subject.others,
        "several": several,
        "compared": subject.comparison is not None,
    }


def boxes_of(steps: Sequence[Call], most: int = MOST_BOXES) -> list[Box]:
    """The calls in at most ``most`` boxes, as fine as that allows.

    Each call is a box of its own where there is room. Else neighbours that agree in the first parts of their names are
    one, with as many parts as possible, and where even the first part leaves too many, neighbours in equal numbers.

    Args:
        steps: the calls with sources, in order of execution.
        most: the largest number of boxes.
    """
    deepest = max(call.name.count(".") + 1 for call in steps)
    stretches = [[call] for call in steps]
    for depth in range(deepest, 0, -1):
        if len(stretches) <= most:
            break
        by_name = itertools.groupby(steps, lambda call, depth=depth: call.name.split(".")[:depth])  # type: ignore[misc]
        stretches = [list(same) for _, same in by_name]
    if len(stretches) > most:
        length = -(-len(stretches) // most)
        parts = (stretches[start : start + length] for start in range(0, len(stretches), length))
        stretches = [list(itertools.chain.from_iterable(part)) for part in parts]
    place = {NETWORK_INPUT: 0} | {call.position: n for n, some in enumerate(stretches, 1) for call in some}
    return [_box(number, stretch, place) for number, stretch in enumerate(stretches, 1)]


def _box(number: int, stretch: Sequence[Call], place: dict[int, int]) -> Box:
    used = [source for call in stretch for source in call.sources or ()]
    entering = {place[source] for source in used} - {number}
    common = _common(stretch)
    names = f"{stretch[0].key} \N{HORIZONTAL ELLIPSIS} {stretch[-1].key}"
    name = stretch[0].key if len(stretch) == 1 else common or names
    return Box(name, tuple(stretch), tuple(sorted(entering)), branched=len(used) > len(set(used)))


def _common(stretch: Sequence[Call]) -> str:
    """The dotted name that the names of all calls begin with."""
    parts = zip(*(call.name.split(".") for call in stretch), strict=False)
    return ".".join(same[0] for same in itertools.takewhile(lambda several: len(set(several)) == 1, parts))


def _label(box: Box) -> str:
    return box.name if len(box.calls) == 1 else f"{box.name} ({len(box.calls)})"


def _title(subject: Subject, box: Box, inside: Sequence[Layer]) -> Message:
    """What a box holds, and per run how far it moved; for those who point at it."""
    first, last = box.calls[0].position, box.calls[-1].position
    lines: list[str] = [
        f"{first} {box.calls[0].type}: {box.name}"
        if first == last
        else say("{first} to {last}: {calls}", first=first, last=last, calls=_label(box))
    ]
    for run in subject.others:
        change, moved = (_largest(inside, [run], name) for name in ("weight_change", "divergence"))
        lines.append(
            say(
                "{run}: weight change {change}, divergence {divergence}",
                run=run.label,
                change=number(change),
                divergence=number(moved),
            )
        )
    return listed(lines, "\n")


def _largest(layers: Sequence[Layer], runs: Sequence[Run], field: str) -> float | None:
    values = (layer.numbers.get(run.label, {}).get(field) for layer in layers for run in runs)
    return max((value for value in values if value is not None), default=None)


def _weights_changed(layers: Sequence[Layer], runs: Sequence[Run]) -> bool:
    states = (layer.numbers.get(run.label, {}).get("weights") for layer in layers for run in runs)
    return any(state in ("changed", "reshaped") for state in states)


def _words(steps: Sequence[Call], boxes: Sequence[Box]) -> Message:
    """The drawing in words: how many calls, how many of them join outputs, the longest way past others."""
    order = {NETWORK_INPUT: -1} | {call.position: n for n, call in enumerate(steps)}
    keys = {NETWORK_INPUT: say("the input")} | {call.position: call.key for call in steps}
    joining = sum(len(call.sources or ()) > 1 for call in steps)
    skips = [(order[call.position] - order[s] - 1, s, call) for call in steps for s in call.sources or ()]
    passed, source, target = max(skips, key=lambda skip: skip[0], default=(0, NETWORK_INPUT, steps[0]))
    counts = {"calls": count(len(steps)), "boxes": count(len(boxes)), "joining": count(joining)}
    if not passed:
        return say(
            "Flow between {calls} calls, drawn as {boxes} boxes. Calls that join several outputs: {joining}. "
            "Each output is used by the next call alone.",
            **counts,
        )
    return say(
        "Flow between {calls} calls, drawn as {boxes} boxes. Calls that join several outputs: {joining}. "
        "The longest skip leads from {source} to {target}; it passes {passed} others.",
        **counts,
        source=keys[source],
        target=target.key,
        passed=count(passed),
    )
