"""Functional operations as layers: `fx:NODE` names what no module of its own computes (an addition, F.relu)."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import Tensor, fx, nn

from interpret.errors import LayerError, did_you_mean

PREFIX = "fx:"


class Operation(nn.Module):
    """Stands behind one node of a graph and hands on what it computed, so that hooks see it."""

    def forward(self, output: Tensor) -> Tensor:
        """The node's output."""
        return output


def names_operations(layers: Sequence[str] | str | None) -> bool:
    """Whether functional operations are among the layers that the user names."""
    named = [layers] if isinstance(layers, str) else layers or ()
    return any(name.startswith(PREFIX) for name in named)


def with_operations(model: nn.Module, layers: Sequence[str] | str) -> nn.Module:
    """The model as a graph in which the named operations are calls with the keys `fx:NODE`.

    Its modules are the model's own, but containers do not run in it: only modules that the graph calls, and operations.

    Args:
        model: any network that torch.fx can trace, in evaluation mode.
        layers: names or globs; those that begin with `fx:` name nodes as torchvision's
            ``get_graph_node_names(model)`` does.

    Raises:
        LayerError: the model cannot be traced, or it has no such operation.
    """
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = NodePathTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever a forward does that is no graph
        reason = str(error).partition("\n")[0]
        raise LayerError(
            f"{type(model).__name__} cannot be traced as a graph ({reason}), so its functional operations have no "
            "names; choose modules"
        ) from error
    nodes = {name: node for node, name in tracer.node_to_qualname.items() if node.op not in ("output", "get_attr")}
    traced = fx.GraphModule(model, graph, type(model).__name__)
    _complete(traced, model)
    for pattern in [layers] if isinstance(layers, str) else layers:
        if not pattern.startswith(PREFIX):
            continue
        wanted = pattern.removeprefix(PREFIX)
        found = [wanted] if wanted in nodes else [name for name in nodes if fnmatch.fnmatchcase(name, wanted)]
        if not found:
            listed = "; torchvision.models.feature_extraction.get_graph_node_names lists them"
            raise LayerError(
                f"layer {pattern!r} is no operation of the traced model{did_you_mean(wanted, list(nodes)) or listed}"
            )
        for name in found:
            node = nodes.pop(name)
            traced.add_submodule(PREFIX + name, Operation())
            with graph.inserting_after(node):
                seen = graph.call_module(PREFIX + name, (node,))
            node.replace_all_uses_with(seen, delete_user_cb=lambda user, seen=seen: user is not seen)
    traced.recompile()
    return traced


def _complete(traced: fx.GraphModule, model: nn.Module) -> None:
    """Give a graph the model's modules and tensors that do not run in it: its state is the model's."""
    present = {name for name, _ in traced.named_modules(remove_duplicate=False)}
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in present and not any(True for _ in module.children()):
            traced.add_submodule(name, module)
    known = set(traced.state_dict())
    for name, tensor in model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if name in known or not isinstance(tensor, Tensor):
            continue
        if path and path not in dict(traced.named_modules(remove_duplicate=False)):
            traced.add_submodule(path, nn.Module())
        owner = traced.get_submodule(path)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)
