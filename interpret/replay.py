"""A network run again on the same image: what is the same as before is taken from memory.

Perturbation methods change one output and ask for the score, hundreds of times. Everything that ran before that output
is the same each time, whether it can be traced as a graph or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.targets import answer_of
from interpret.tracing import Forward, modules_of, output_tensor, run, version_of, with_output

Run = Callable[..., Any]


@contextmanager
def replaced_forwards(modules: Iterable[nn.Module], replace: Callable[[nn.Module, Run], Run]) -> Iterator[None]:
    """While open, every module runs ``replace(module, its forward)`` in the place of its forward."""
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_reset, module, vars(module).get("forward"))
            vars(module)["forward"] = replace(module, module.forward)
        yield


def _reset(module: nn.Module, forward: Run | None) -> None:
    vars(module).pop("forward")
    if forward is not None:
        vars(module)["forward"] = forward


class Memory:
    """What the modules without children gave in one forward of one image, so that the same forward again costs little.

    Both :meth:`first` and :meth:`again` are called as the user's ``forward`` is. Not remembered, and so run again, are
    modules that write to what they are given, whose output something wrote to later, or that give a list or a mapping,
    which may change without a trace.

    Args:
        forward: ``(model, images) -> output`` where it is not ``model(images)``.

    Attributes:
        result: the model's output; None before the first forward.
    """

    def __init__(self, forward: Forward | None = None) -> None:
        self.forward = forward
        self.result: Any = None
        self._outputs: dict[tuple[nn.Module, int], tuple[Any, int]] = {}  # with the versions of their tensors
        self._ran: Counter[nn.Module] = Counter()

    def first(self, model: nn.Module, images: Tensor) -> Any:
        """The ordinary forward; what it computes is remembered the first time."""
        if self.result is not None:
            return self._run(model, images)
        with replaced_forwards(self._watched(model), self._remembering):
            self.result = self._run(model, images)
        self._outputs = {key: kept for key, kept in self._outputs.items() if _versions(kept[0]) == kept[1]}
        return self.result

    def again(self, model: nn.Module, images: Tensor) -> Any:
        """The same forward of the same image, with hooks as usual."""
        self._ran.clear()
        with replaced_forwards(self._watched(model), self._recalling):
            return self._run(model, images)

    def get(self, module: nn.Module, occurrence: int) -> Any:
        """What an execution of a module gave; None where that is not remembered."""
        return self._outputs.get((module, occurrence), (None, 0))[0]

    def _run(self, model: nn.Module, images: Tensor) -> Any:
        return model(images) if self.forward is None else self.forward(model, images)

    @staticmethod
    def _watched(model: nn.Module) -> list[nn.Module]:
        return [module for module in model.modules() if not any(True for _ in module.children())]

    def _remembering(self, module: nn.Module, original: Run) -> Run:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            occurrence = self._ran[module]
            self._ran[module] += 1
            given = arguments, keywords
            before = _versions(given)
            output = original(*arguments, **keywords)
            handed = {id(leaf) for leaf in pytree.tree_leaves(given)}
            tensors = output if type(output) is tuple else (output,)
            new = all(isinstance(tensor, Tensor) and id(tensor) not in handed for tensor in tensors)
            if new and _versions(given) == before:
                self._outputs[module, occurrence] = output, _versions(output)
            return output

        return forward

    def _recalling(self, module: nn.Module, original: Run) -> Run:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            known = self.get(module, self._ran[module])
            self._ran[module] += 1
            return original(*arguments, **keywords) if known is None else known

        return forward


def _versions(values: Any) -> int:
    """How often the tensors in a structure were written to."""
    return sum(version_of(leaf) for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))


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
        memory: of an earlier forward of the same image, if there was one.

    Attributes:
        output: the call's output, shape (1, ...).
        result: the model's output for the image.
        head: the linear module whose output the model returned, or None.
        head_input: what entered it last, shape (B, F).
    """

    output: Tensor
    result: Any

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        call: Call,
        calls: tuple[Call, ...],
        forward: Forward | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.model, self.image, self.call, self.forward = model, image, call, forward
        self._known = memory or Memory()
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
        self._restore.enter_context(replaced_forwards(self._names, self._forward_of))
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

    def _forward_of(self, module: nn.Module, original: Run) -> Run:
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

    def _remember(self, module: nn.Module, occurrence: int, original: Run, arguments: Any, keywords: Any) -> Any:
        before, inside = self._ran.copy(), len(self._memory)
        output = self._known.get(module, occurrence)
        if output is None:
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
        overwritten = (self._names[module], occurrence) in self._overwritten
        # a copy of lists and mappings, which the model may change
        kept = pytree.tree_map(lambda leaf: leaf.clone() if overwritten else leaf, output)
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
