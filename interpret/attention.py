"""What the class token of a vision transformer attends to, followed through all blocks: attention rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.functional.cam import attention_rollout
from interpret.hooks import visiting
from interpret.perturbation import Progress, Scene, ignore
from interpret.tracing import run

_SOFTMAX = (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default)


class _Attentions(TorchDispatchMode):
    """Keeps the attention matrices over a number of tokens, averaged over the heads, in the order they are made.

    Every implementation ends in a softmax: torch's own, fused or not, and a network's own.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens = tokens
        self.matrices: list[Tensor] = []
        self.uneven = False

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], arguments: Any = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        if function in _SOFTMAX and result.ndim >= 3 and result.shape[-1] == self.tokens:
            if result.shape[-2] == self.tokens:
                self.matrices.append(result.detach().float().reshape(-1, self.tokens, self.tokens).mean(0))
            else:
                self.uneven = True  # a few tokens that ask all the others, as in class attention
        return result


def rollout_maps(scene: Scene, call: Call, progress: Progress = ignore) -> Tensor:
    """Attention rollout up to one attention call, shape (1, h, w); see :func:`attention_rollout`.

    Raises:
        LayerError: the call's attention is not over all tokens of the image, or not that of every block before it.
    """
    if call.token_grid is None or call.kind != "attention":
        raise LayerError(
            f"attention-rollout needs attention over all tokens of the image, and {call.key!r} has none; "
            "use grad-cam or hires-cam for this network"
        )
    found: list[int] = []
    attentions = _Attentions(call.output_shape[1])

    def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> None:
        found.append(len(attentions.matrices))

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), visiting(scene.model, [call], visit), attentions:
        scene.settle(run(scene.model, scene.image, scene.forward))
    if not found or not found[0] or attentions.uneven:
        raise LayerError(
            f"attention-rollout needs attention over all tokens of the image in every block, which {call.key!r} and "
            "the blocks before it do not have; use grad-cam or hires-cam for this network"
        )
    weights = attention_rollout(torch.stack(attentions.matrices[: found[0]]), call.prefix_tokens)
    return weights.reshape(1, *call.token_grid)
