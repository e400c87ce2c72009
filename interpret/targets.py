"""What a map explains: one score per image and target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interpret.errors import LayerError
from interpret.evidence import Evidence
from interpret.tracing import output_tensor

Targets = Any  # None, "predicted", an int, N ints, an (N, R) array, a callable, or several of these; see target_scores


def logits_of(output: Any) -> Tensor:
    """The (N, K) logits in a model's output: itself, the first of a tuple, or a mapping's "logits" or "out".

    Raises:
        LayerError: there is none.
    """
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("logits", "out") if key in output), None)
    elif hasattr(output, "logits"):
        output = output.logits
    tensor = output_tensor(output)
    if tensor is None or tensor.ndim != 2:
        shape = None if tensor is None else tuple(tensor.shape)
        raise LayerError(
            f"the model's output is not (N, K) logits (got {type(output).__name__} {shape or ''}); "
            "give a callable target: outputs -> (N,) scores"
        )
    return tensor


def target_scores(output: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Scores of the targets, shape (N, R), and their class indices, shape (N, R) int64 (-1 for a callable).

    Args:
        output: what the model returned.
        targets: None or "predicted" (the largest logit), an int, N ints, an (N, R) array, a callable ``outputs ->
            (N,)`` scores, or a
            list of these ("predicted", callables and (N,) tensors mixed).

    Raises:
        LayerError: a class index is out of range, or the number of targets does not fit the images.
    """
    if callable(targets):
        scores = targets(output)
        if not isinstance(scores, Tensor) or scores.ndim != 1:
            raise LayerError("a callable target must return one score per image, shape (N,)")
        return scores[:, None], torch.full((len(scores), 1), -1)
    if are_several(targets):
        parts = [target_scores(output, target) for target in targets]
        return torch.cat([scores for scores, _ in parts], 1), torch.cat([indices for _, indices in parts], 1)
    logits = logits_of(output)
    count, classes = logits.shape
    if targets is None or (isinstance(targets, str) and targets == "predicted"):
        indices = logits.detach().argmax(1, keepdim=True).cpu()
    elif isinstance(targets, str):
        raise LayerError(f"unknown target {targets!r}; give 'predicted', 'label', a class index or an array of them")
    else:
        array = np.asarray(targets)
        if array.dtype == object:  # an integer beyond 64 bits, or no number at all
            raise LayerError(f"targets {targets!r} are no class indices; give integers")
        given = torch.as_tensor(array)
        if given.is_floating_point() or given.is_complex():
            raise LayerError(f"targets of type {given.dtype} are no class indices; give integers")
        indices = given.to(torch.int64)
        if indices.ndim == 0:
            indices = indices.expand(count)
        if indices.ndim == 1:
            indices = indices[:, None]
    if indices.ndim != 2 or len(indices) != count:
        raise LayerError(
            f"targets of shape {tuple(indices.shape)} do not fit {count} images; "
            "give one class per image, or an (N, R) array"
        )
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= classes):
        worst = int(indices.max()) if int(indices.max()) >= classes else int(indices.min())
        raise LayerError(f"target class {worst} is out of range: the model has {classes} classes (0 to {classes - 1})")
    return logits.gather(1, indices.to(logits.device)), indices


def are_several(targets: Targets) -> bool:
    """Whether a list holds targets of different forms, rather than class indices image by image."""
    return isinstance(targets, list | tuple) and any(
        target is None
        or isinstance(target, str | Evidence)
        or callable(target)
        or (isinstance(target, np.ndarray | Tensor) and target.ndim > 0)
        for target in targets
    )


def in_words(targets: Targets) -> str:
    """How the manifest names the targets."""
    if isinstance(targets, Evidence):
        return f"those of audit {targets.digest[:12]}"
    if targets is None or isinstance(targets, str):
        return targets or "predicted"
    if callable(targets):
        return f"callable {getattr(targets, '__qualname__', type(targets).__name__)}"
    if isinstance(targets, int | np.integer):
        return f"class {int(targets)}"
    if are_several(targets):
        return ", ".join(in_words(target) for target in targets)
    return "given class indices"
