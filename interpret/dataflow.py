"""Which calls' outputs each call is made from, followed from tensor to tensor while a network runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from interpret.evidence import NETWORK_INPUT

_OVERWRITING = ("copy_", "fill_", "zero_")  # nothing of what was there before remains


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a tensor's values come from.

    Attributes:
        calls: positions of the calls whose outputs it was made from; see :data:`NETWORK_INPUT`.
        written: how many calls had completed when it was last written to in place; -1 for never.
        untouched: whether it is the very output of one call, with no operation since.
    """

    calls: frozenset[int]
    written: int = -1
    untouched: bool = False


_NOWHERE = _Origin(frozenset())


class DataFlow(TorchDispatchMode):
    """While open, follows from which calls' outputs each tensor is made, operation by operation.

    Views, operations in place and functions that no module runs are followed; what leaves torch (numbers, arrays of
    numpy) is not. A call of a module is a step of the flow; a container that does no more than hand on what a call
    inside it made is none, so functional operations between calls belong to the next call, or to the container whose
    output they make.

    Args:
        inputs: the tensors that the network is run on.
    """

    supports_higher_order_operators = True

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inputs = tuple(inputs)
        self.restart()

    def restart(self) -> None:
        """Forget everything but the inputs."""
        self._origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._completed = 0
        for tensor in self._inputs:
            self._origins[tensor] = _Origin(frozenset({NETWORK_INPUT}))

    def complete(self, first: int, output: Any) -> tuple[int, ...] | None:
        """Note that the next call has completed, and return its sources.

        Args:
            first: how many calls had completed when it began; later ones lie inside it.
            output: what it returned; tensors are found in tuples, lists, dicts and what torch knows as a container.

        Returns:
            Positions of the calls whose outputs its output was made from by operations of its own; None where it
            only hands on the outputs of calls inside it.
        """
        position = self._completed
        self._completed += 1
        sources: set[int] = set()
        made = []
        for tensor in _tensors(tree_leaves(output)):
            origin = self._origins.get(tensor, _NOWHERE)
            if not origin.untouched or min(origin.calls) < first:
                made.append((tensor, origin))
                sources |= origin.calls
        for tensor, origin in made:
            own = frozenset({position})
            if origin.written >= first:  # other tensors of that memory have its new values too
                for other in self._sharing(tensor):
                    self._origins[other] = _Origin(own, origin.written)
            self._origins[tensor] = _Origin(own, origin.written, untouched=True)
        return tuple(sorted(sources)) if made else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and follow it."""
        kwargs = kwargs or {}
        plain = isinstance(func, torch._ops.OpOverload)  # not control flow as one operation
        name = func._schema.name.partition("::")[2] if plain else ""
        written = _written(func, args, kwargs) if plain and func._schema.is_mutable else []
        targets = {id(tensor) for tensor in written}
        inputs = [tensor for tensor in _tensors((*args, *kwargs.values())) if tensor in self._origins]
        read = [x for x in inputs if id(x) not in targets or name not in _OVERWRITING]
        calls: frozenset[int] = frozenset().union(*(self._origins[x].calls for x in read))
        outputs = func(*args, **kwargs)
        for tensor in written:
            self._write(tensor, calls)
        if not name.startswith("new_") and not name.endswith("_like"):  # those take a shape alone
            self._mark([tensor for tensor in _tensors(outputs) if id(tensor) not in targets], calls)
        return outputs

    def _mark(self, outputs: Iterable[Tensor], calls: frozenset[int]) -> None:
        if calls:
            for output in outputs:
                self._origins[output] = _Origin(calls)

    def _write(self, target: Tensor, calls: frozenset[int]) -> None:
        """A tensor was written to in place: others of that memory hold some of it now."""
        if target._base is not None:
            self._origins.setdefault(target._base, _NOWHERE)
        for tensor in self._sharing(target):
            self._origins[tensor] = _Origin(self._origins[tensor].calls | calls, self._completed)
        self._origins[target] = _Origin(calls, self._completed)

    def _sharing(self, target: Tensor) -> list[Tensor]:
        """Other tensors that are followed and lie in the memory of this one."""
        storage = _storage(target)
        if storage is None:
            return []
        start, stop = _extent(target)
        same = [tensor for tensor in list(self._origins) if tensor is not target and _storage(tensor) == storage]
        extents = [_extent(tensor) for tensor in same]
        return [tensor for tensor, (first, last) in zip(same, extents, strict=True) if first < stop and start < last]


def _tensors(values: Any) -> list[Tensor]:
    """The tensors of an operation's arguments or results, which know no other containers than these."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    written: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            written += _tensors(given)
    return written


def _storage(tensor: Tensor) -> int | None:
    """What tells the memory of one tensor from that of others; None of those that have none of their own."""
    try:
        return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
    except (RuntimeError, NotImplementedError):  # subclasses that wrap other tensors
        return None


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage in which a tensor lies: from the first to behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum(int(size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()
