"""What a map explains: one score per image and target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from interpret.errors import LayerError
from interpret.evidence import Evidence
from interpret.tracing import output_tensor

Targets = Any  # None, "predicted", an int, N ints, an (N, R) array, a callable, or several of these; see resolve


def answer_of(output: Any) -> Any:
    """What a model's output decides by: a tensor, or a list of detections.

    Of a mapping or an object (a dataclass, a named output) its ``logits`` or ``out``; of a tuple or list of tensors the
    first; itself otherwise.
    """
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if not isinstance(output, Mapping | Tensor) and hasattr(output, name):
            return getattr(output, name)
    if is_detections(output):
        return output
    return output_tensor(output)


def is_detections(output: Any) -> bool:
    """Whether an output is torchvision's list of detections: one mapping with boxes, labels and scores per image."""
    return (
        isinstance(output, list | tuple)
        and len(output) > 0
        and all(isinstance(item, Mapping) and {"boxes", "labels", "scores"} <= set(item) for item in output)
    )


def logits_of(output: Any) -> Tensor:
    """The (N, K) logits in a model's output; see :func:`answer_of`.

    Raises:
        LayerError: there is none.
    """
    tensor = answer_of(output)
    if not isinstance(tensor, Tensor) or tensor.ndim != 2:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else ""
        raise LayerError(
            f"the model's output is not (N, K) logits (got {type(output).__name__} {shape}); "
            "give a callable target: outputs -> (N,) scores"
        )
    return tensor


class Target(ABC):
    """What is explained of each image, fixed by the output on the images themselves.

    It scores that output, and the outputs for altered copies of one image, by the same classes, pixels or boxes.

    Attributes:
        indices: classes, shape (N, R) int64; -1 where the target is no class.
    """

    indices: Tensor
    found = True  # False where no image has what is to be explained

    @abstractmethod
    def scores(self, output: Any, image: int | None = None) -> Tensor:
        """Scores of an output, shape (N, R); with ``image``, of an output for B copies of that image, (B, R)."""

    def of(self, image: int) -> Target:
        """The same target of one image alone."""
        return _OneOf(self, image)


class _OneOf(Target):
    def __init__(self, whole: Target, image: int) -> None:
        self.whole, self.image = whole, image
        self.indices = whole.indices[image : image + 1]
        self.found = whole.found

    def scores(self, output: Any, image: int | None = None) -> Tensor:
        return self.whole.scores(output, self.image)


class _Several(Target):
    def __init__(self, parts: Sequence[Target]) -> None:
        self.parts = parts
        self.indices = torch.cat([part.indices for part in parts], 1)
        self.found = all(part.found for part in parts)

    def scores(self, output: Any, image: int | None = None) -> Tensor:
        return torch.cat([part.scores(output, image) for part in self.parts], 1)


class _Callable(Target):
    """The user's function; it may say by ``of(image)`` what it is for copies of one image."""

    def __init__(self, score: Callable[[Any], Tensor], output: Any) -> None:
        self.score = score
        self.indices = torch.full((len(self.scores(output)), 1), -1)

    def scores(self, output: Any, image: int | None = None) -> Tensor:
        score = self.score if image is None else getattr(self.score, "of", lambda _: self.score)(image)
        values = score(output)
        if not isinstance(values, Tensor) or values.ndim != 1:
            raise LayerError("a callable target must return one score per image, shape (N,)")
        return values[:, None]


class _Classes(Target):
    """Logits of classes. A single logit answers for two: itself for class 1, with the other sign for class 0."""

    def __init__(self, logits: Tensor, targets: Any) -> None:
        predicted = logits.detach().argmax(1) if logits.shape[1] > 1 else (logits.detach()[:, 0] > 0).long()
        self.indices = _class_indices(targets, predicted, max(2, logits.shape[1]))

    def scores(self, output: Any, image: int | None = None) -> Tensor:
        logits = logits_of(output)
        indices = (self.indices if image is None else self.indices[image].expand(len(logits), -1)).to(logits.device)
        if logits.shape[1] == 1:
            return logits * (2 * indices - 1)
        return logits.gather(1, indices)


class _Regions(Target):
    """Of a segmentation: the mean logit of a class over the pixels where it is predicted (over all where it is not).

    The predicted class of an image is the one with the most pixels, background (0) only where there is no other.
    """

    def __init__(self, logits: Tensor, targets: Any) -> None:
        count = logits.shape[1]
        labels = logits.detach().argmax(1) if count > 1 else (logits.detach()[:, 0] > 0).long()  # (N, H, W)
        pixels = torch.stack([torch.bincount(image.flatten(), minlength=max(2, count)) for image in labels])
        foreground = pixels[:, 1:]
        predicted = torch.where(foreground.sum(1) > 0, foreground.argmax(1) + 1, 0)
        self.indices = _class_indices(targets, predicted, max(2, count))
        masks = labels[:, None] == self.indices[:, :, None, None].to(labels.device)  # (N, R, H, W)
        self.masks = masks | ~masks.any(3, keepdim=True).any(2, keepdim=True)

    def scores(self, output: Any, image: int | None = None) -> Tensor:
        logits = answer_of(output)
        number = len(logits)
        indices = (self.indices if image is None else self.indices[image].expand(number, -1)).to(logits.device)
        masks = (self.masks if image is None else self.masks[image].expand(number, -1, -1, -1)).to(logits.dtype)
        if logits.shape[1] == 1:
            chosen = logits * (2 * indices - 1)[:, :, None, None]
        else:
            chosen = logits.gather(1, indices[:, :, None, None].expand(masks.shape))
        means: Tensor = (chosen * masks).sum((2, 3)) / masks.sum((2, 3))
        return means


class _Detections(Target):
    """Of a detector: the score of each image's most certain detection, or of its most certain one of a given class.

    On altered copies: the largest score of a detection of that class, times its overlap (IoU) with the same box. An
    image without any has score 0.
    """

    def __init__(self, output: Sequence[Mapping[str, Tensor]], targets: Any) -> None:
        best = [int(item["labels"][item["scores"].argmax()]) if len(item["scores"]) else -1 for item in output]
        self.found = max(best) >= 0 or not (targets is None or isinstance(targets, str))
        self.indices = _class_indices(targets, torch.tensor(best), None)
        rows = zip(output, self.indices.tolist(), strict=True)
        self.boxes = [[self._box(item, label) for label in row] for item, row in rows]

    @staticmethod
    def _box(item: Mapping[str, Tensor], label: int) -> Tensor | None:
        scores = torch.where(item["labels"] == label, item["scores"].detach(), -1.0)
        return item["boxes"][scores.argmax()].detach() if len(scores) and scores.max() >= 0 else None

    def scores(self, output: Any, image: int | None = None) -> Tensor:
        rows = []
        for number, item in enumerate(output):
            source = number if image is None else image
            row = zip(self.indices[source].tolist(), self.boxes[source], strict=True)
            rows.append(torch.stack([box_score(item, label, box) for label, box in row]))
        return torch.stack(rows)


def box_score(detections: Mapping[str, Tensor], label: int, box: Tensor | None) -> Tensor:
    """Largest score of the detections of a class, each times its IoU with a box; 0 where there is none. A scalar."""
    from torchvision.ops import box_iou

    scores = detections["scores"]
    candidates = (detections["labels"] == label).nonzero()[:, 0]
    if box is None or not len(candidates):
        return scores.sum() * 0.0
    overlap = box_iou(box[None].to(scores), detections["boxes"][candidates].detach())[0]
    best: Tensor = (scores[candidates] * overlap).amax()
    return best


class Similarity:
    """A callable target for networks that give embeddings: cosine similarity to one reference per image.

    Args:
        references: shape (N, D), or (D,) for the same one everywhere.
    """

    def __init__(self, references: Tensor) -> None:
        self.references = references

    def __call__(self, output: Any) -> Tensor:
        """Similarities, shape (N,)."""
        embeddings = logits_of(output)
        return functional.cosine_similarity(embeddings, self.references.to(embeddings).expand_as(embeddings))

    def of(self, image: int) -> Similarity:
        """The same for copies of one image."""
        return self if self.references.ndim == 1 else Similarity(self.references[image])


class Region:
    """A callable target for segmentation: the mean logit of a class over pixels of the user's choice.

    Args:
        label: the class.
        masks: bool, shape (N, H, W) or (H, W), at the size of the output.
    """

    def __init__(self, label: int, masks: Tensor) -> None:
        self.label, self.masks = label, masks

    def __call__(self, output: Any) -> Tensor:
        """Mean logits, shape (N,)."""
        logits = answer_of(output)[:, self.label]
        masks = self.masks.to(logits).expand_as(logits)
        means: Tensor = (logits * masks).sum((1, 2)) / masks.sum((1, 2))
        return means

    def of(self, image: int) -> Region:
        """The same for copies of one image."""
        return self if self.masks.ndim == 2 else Region(self.label, self.masks[image])


class Box:
    """A callable target for detection: the score of the detection of a class at a box; see :func:`box_score`.

    Args:
        labels: class of each image's box.
        boxes: (x1, y1, x2, y2) in pixels, shape (N, 4).
    """

    def __init__(self, labels: Sequence[int], boxes: Tensor) -> None:
        self.labels, self.boxes = labels, boxes

    def __call__(self, output: Any) -> Tensor:
        """Scores, shape (N,)."""
        rows = zip(output, self.labels, self.boxes, strict=True)
        return torch.stack([box_score(item, label, box) for item, label, box in rows])

    def of(self, image: int) -> Callable[[Any], Tensor]:
        """The same for copies of one image."""
        return lambda output: Box([self.labels[image]] * len(output), self.boxes[image].expand(len(output), 4))(output)


def resolve(output: Any, targets: Targets) -> Target:
    """What the targets are, given the model's output on the images.

    Args:
        output: what the model returned.
        targets: None or "predicted", an int, N ints, an (N, R) array, a callable ``outputs -> (N,)`` scores, or a list
            of these ("predicted", callables and (N,) tensors mixed). What a class is scored by follows from the
            output: (N, K) logits; one logit for two classes; (N, K, H, W) logits of a segmentation; or torchvision's
            detections.

    Raises:
        LayerError: a class index is out of range, the number of targets does not fit the images, or nothing was
            detected in any of them.
    """
    target = resolve_each(output, targets)
    refuse_nothing([target])
    return target


def refuse_nothing(targets: Sequence[Target]) -> None:
    """Raise a LayerError where none of several targets was found in its images."""
    if not any(target.found for target in targets):
        raise LayerError("nothing was detected in these images; lower the model's score threshold")


def resolve_each(output: Any, targets: Targets) -> Target:
    """What :func:`resolve` gives, also where nothing was detected: then the class is -1."""
    if callable(targets):
        return _Callable(targets, output)
    if are_several(targets):
        return _Several([resolve_each(output, target) for target in targets])
    answer = answer_of(output)
    if isinstance(answer, Tensor) and answer.ndim == 4:
        return _Regions(answer, targets)
    if answer is not None and is_detections(answer):
        return _Detections(answer, targets)
    return _Classes(logits_of(output), targets)


def of_image(targets: Targets, image: int, count: int) -> Targets:
    """The targets of one image among several.

    Args:
        targets: as :func:`resolve` takes them, or what it gave.
        image: its number.
        count: how many images there are.

    Raises:
        LayerError: the number of targets does not fit the images.
    """
    if isinstance(targets, Target):
        return targets.of(image)
    if callable(targets):
        narrowed = getattr(targets, "of", lambda _: targets)(image)
        return lambda output: narrowed(output)  # narrowed once: without an `of` of its own
    if are_several(targets):
        return [of_image(target, image, count) for target in targets]
    if targets is None or isinstance(targets, str):
        return targets
    return _class_indices(targets, torch.zeros(count), None)[image : image + 1]


def target_scores(output: Any, targets: Targets) -> tuple[Tensor, Tensor]:
    """Scores of the targets, shape (N, R), and their class indices, shape (N, R) int64; see :func:`resolve`."""
    target = resolve(output, targets)
    return target.scores(output), target.indices


def _class_indices(targets: Any, predicted: Tensor, classes: int | None) -> Tensor:
    """Class indices as the user gave them, or the predicted ones, shape (N, R) int64.

    Args:
        targets: None, "predicted", an int, N ints, or an (N, R) array.
        predicted: shape (N,).
        classes: how many there are, or None where that is not known.
    """
    count = len(predicted)
    if targets is None or (isinstance(targets, str) and targets == "predicted"):
        return predicted[:, None].cpu()
    if isinstance(targets, str):
        raise LayerError(f"unknown target {targets!r}; give 'predicted', 'label', a class index or an array of them")
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
    if classes is not None and len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= classes):
        worst = int(indices.max()) if int(indices.max()) >= classes else int(indices.min())
        raise LayerError(f"target class {worst} is out of range: the model has {classes} classes (0 to {classes - 1})")
    return indices


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
