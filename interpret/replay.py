"""The rest of a network, from one call on: what came before it is taken from memory.

Perturbation methods change one output and ask for the score, hundreds of times. Everything that ran before that output
is the same each time, whether it can be traced as a graph or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.targets import answer_of
from interpret.tracing import Forward, modules_of, output_tensor, run, with_output


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What one execution of a module gave, and how often each module ran inside it."""

    output: Any
    ran: Mapping[nn.Module, int]


class Tail(AbstractContextManager["Tail"]):
    """Runs a network on copies of one image from a call's output on.

    Use it as a context manager inside :func:`interpret.hooks.undisturbed`: it puts its own ``forward`` into the modules
    meanwhile. One ordinary forward remembers the output of every module that ended before the call (not of those inside
    it, nor of modules that work on several rows per image: these run again).

    Args:
        model: any network.
        image: shape (1, C, H, W).
        call: from where on.
        calls: the call table.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.

    Attributes:
        output: the call's output, shape (1, ...).
        result: the model's output for the image.
        head: the linear module whose output the model returned, or None.
        head_input: what entered it last, shape (B, F).
    """

    output: Tensor
    result: Any

    def __init__(
        self, model: nn.Module, image: Tensor, call: Call, calls: tuple[Call, ...], forward: Forward | None = None
    ) -> None:
        self.model, self.image, self.call, self.forward = model, image, call, forward
        self.head: nn.Linear | None = None
        self.head_input: Tensor | None = None
        self._linear: tuple[nn.Linear, Tensor] | None = None
        self._names = {module: name for module, name in modules_of(model).items() if name}
        self._overwritten = {(call.name, call.occurrence) for call in calls if call.overwritten}
        self._memory: dict[tuple[nn.Module, int], _Remembered] = {}
        self._ran: Counter[nn.Module] = Counter()
        self._reached = False
        self._outputs: Tensor | None = None  # what the call gives instead; None while remembering
        self._copies = False  # whether remembered outputs are copied, because something writes to them
        self._restore = ExitStack()

    def __enter__(self) -> Self:
        for module in self._names:
            self._restore.callback(self._reset, module, vars(module).get("forward"))
            vars(module)["forward"] = self._forward_of(module, module.forward)
        try:
            self.result = run(self.model, self.image, self.forward)
            if not self._reached:
                raise LayerError(f"layer {self.call.key!r} did not run; name another")
            answer = answer_of(self.result)
            if self._linear is not None and isinstance(answer, Tensor) and self._linear[1] is answer:
                self.head = self._linear[0]
        except BaseException:
            self._restore.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore.close()

    @staticmethod
    def _reset(module: nn.Module, forward: Any) -> None:
        vars(module).pop("forward")
        if forward is not None:
            vars(module)["forward"] = forward

    def __call__(self, outputs: Tensor) -> Any:
        """The model's output where the call gave these outputs, shape (B, ...), for B copies of the image."""
        self._outputs = outputs
        images = self.image.expand(len(outputs), *self.image.shape[1:])
        self._ran.clear()
        try:
            return run(self.model, images, self.forward)
        except Exception as error:
            if self._copies or "written-to tensor" not in str(error):
                raise
            self._copies = True  # from now on
            return self(outputs)

    def _forward_of(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            if isinstance(module, nn.Linear) and arguments and module is (self.head or module):
                self.head_input = arguments[0]
            occurrence = self._ran[module]
            self._ran[module] += 1
            if self._outputs is None:
                return self._remember(module, occurrence, original, arguments, keywords)
            if self._is_call(module, occurrence):
                self._ran.update(self._inside)
                return with_output(self._expanded(self._whole), self._outputs)
            known = self._memory.get((module, occurrence))
            if known is None:
                return original(*arguments, **keywords)
            self._ran.update(known.ran)
            return self._expanded(known.output)

        return forward

    def _is_call(self, module: nn.Module, occurrence: int) -> bool:
        return self._names[module] == self.call.name and occurrence == self.call.occurrence

    def _remember(
        self, module: nn.Module, occurrence: int, original: Callable[..., Any], arguments: Any, keywords: Any
    ) -> Any:
        before, inside = self._ran.copy(), len(self._memory)
        output = original(*arguments, **keywords)
        if isinstance(module, nn.Linear):
            self._linear = module, output
        if self._is_call(module, occurrence):
            tensor = output_tensor(output)
            if tensor is None:
                raise LayerError(f"layer {self.call.key!r} has no tensor output")
            self._reached, self._whole, self.output = True, output, tensor.clone()
            self._inside = self._ran - before
        if self._reached or not self._is_of_one_image(output):
            return output
        for key in list(self._memory)[inside:]:  # what ran inside it never runs again
            del self._memory[key]
        kept = output
        if (self._names[module], occurrence) in self._overwritten:
            kept = pytree.tree_map_only(Tensor, torch.clone, output)
        self._memory[module, occurrence] = _Remembered(kept, self._ran - before)
        return output

    @staticmethod
    def _is_of_one_image(output: Any) -> bool:
        leaves = pytree.tree_leaves(output)
        return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.shape[:1] == (1,) for leaf in leaves)

    def _expanded(self, output: Any) -> Any:
        """A remembered output for every copy."""
        assert self._outputs is not None
        count = len(self._outputs)

        def expand(tensor: Tensor) -> Tensor:
            wide = tensor.expand(count, *tensor.shape[1:]) if tensor.shape[:1] == (1,) else tensor
            return wide.clone() if self._copies else wide

        return pytree.tree_map_only(Tensor, expand, output)
