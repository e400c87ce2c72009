"""Architectures: the model that a short spec names, and what torchvision's published weights imply."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch
from torch import nn

from interpret.checkpoint import Checkpoint, read_checkpoint
from interpret.errors import CheckpointError, did_you_mean
from interpret.specs import failure, imported

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


def build_model(spec: str, arguments: Mapping[str, object] | None = None) -> nn.Module:
    """The model that a spec names, with random weights.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``package.module:callable`` or ``path/to/file.py:callable``.
        arguments: keyword arguments of the builder. Strings are read as Python literals where they are one (``5``,
            ``0.1``, ``[1, 2]``, ``None``; also ``true`` and ``false``), else kept.

    Raises:
        CheckpointError: the spec names nothing, the builder fails, or it returns no module.
    """
    given = {key: _literal(value) for key, value in (arguments or {}).items()}
    source, _, name = spec.partition(":")
    if source == "torchvision":
        return _call(_torchvision_builder(name), {**given, **_no_downloads(name, given, spec)}, spec)
    if source == "timm":
        return _call(_timm_builder(name, given, spec), given, spec)
    with imported(spec, CheckpointError) as target:
        if isinstance(target, nn.Module):
            if given:
                raise CheckpointError(f"{spec!r} is a module that was built already: it takes no {', '.join(given)}")
            return target
        if not callable(target):
            raise CheckpointError(
                f"{spec!r} is a {type(target).__name__}; name a function or class that returns an nn.Module"
            )
        return _call(target, given, spec)


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """An entry of torchvision's weights enums: all that is known of it without a download.

    Attributes:
        uri: as it was given.
        spec: the model's spec for :func:`build_model`, and ``arguments`` for it.
        transform: the weights' own preprocessing.
        class_names: None where the weights do not classify.
        weights: the enum's entry.
    """

    uri: str
    spec: str
    arguments: Mapping[str, object]
    transform: Callable[..., Any]
    class_names: tuple[str, ...] | None
    weights: WeightsEnum

    def read(self) -> Checkpoint:
        """The weights, downloaded once by torchvision into its cache.

        Raises:
            CheckpointError: they are neither in the cache nor to be had, or do not match the digest in their name.
        """
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(self.weights.url).name
        if not cached.exists():
            try:
                with redirect_stdout(sys.stderr):  # where it says what it downloads: stdout is for results
                    self.weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
            except (URLError, OSError) as error:
                raise CheckpointError(
                    f"{self.uri!r} cannot be downloaded ({getattr(error, 'reason', error)}); "
                    f"fetch {self.weights.url} elsewhere and put it at {cached}"
                ) from error
            except RuntimeError as error:
                raise CheckpointError(f"{self.uri!r} was not downloaded correctly: {error}") from error
        checkpoint = read_checkpoint(cached, uri=self.uri)
        digest = re.search(r"-([0-9a-f]{8,})\.", cached.name)
        if digest and not checkpoint.file_sha256.startswith(digest[1]):
            raise CheckpointError(f"{cached} does not match the digest in its name; delete it and run again")
        return checkpoint


def weights_of(uri: str) -> PublishedWeights:
    """What torchvision's weights ``torchvision:ResNet50_Weights.IMAGENET1K_V2`` imply; reads metadata only.

    Raises:
        CheckpointError: torchvision has no such weights.
    """
    from torchvision import models

    enums = {name: models.get_model_weights(name) for name in models.list_models()}
    name = uri.removeprefix("torchvision:")
    kind, _, entry = name.partition(".")
    model = next((model for model, enum in enums.items() if enum.__name__ == kind), None)
    if model is None or entry not in enums[model].__members__:
        known = [f"{enum.__name__}.{member}" for enum in enums.values() for member in enum.__members__]
        raise CheckpointError(f"torchvision has no weights {name!r}{did_you_mean(name, known)}")
    weights = enums[model][entry]
    family = models.get_model_builder(model).__module__.split(".")[2]
    if family in ("detection", "optical_flow", "quantization", "video"):
        # Their builders change more than arguments (FrozenBatchNorm2d, its eps), or take something else than an image.
        raise CheckpointError(
            f"{uri!r}: weights of {family} are not built here; "
            "save their state_dict and name a function of your own that builds the model as --model"
        )
    categories = weights.meta.get("categories")
    return PublishedWeights(
        uri=uri,
        spec=f"torchvision:{model}",
        arguments=_published_arguments(model, weights),
        transform=weights.transforms(),
        class_names=tuple(categories) if categories else None,
        weights=weights,
    )


def _call(target: Callable[..., Any], arguments: Mapping[str, object], spec: str) -> nn.Module:
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # some builtins hide their signature
        parameters = {}
    if parameters and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise CheckpointError(
                    f"{spec!r} has no argument {key!r}{did_you_mean(key, parameters)}; it has {', '.join(parameters)}"
                )
    try:
        model = target(**arguments)
    except (Exception, SystemExit) as error:
        raise CheckpointError(failure(spec, "failed", error)) from error
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{spec!r} returned a {type(model).__name__}; it must return an nn.Module")
    return model


def _literal(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _torchvision_builder(name: str) -> Callable[..., Any]:
    from torchvision import models  # 1 s, and only where it is asked for

    known = models.list_models()
    if name.lower() not in known:
        weights = "; give weights as the CHECKPOINT, they imply their model" if "_Weights" in name else ""
        raise CheckpointError(f"torchvision has no model {name!r}{did_you_mean(name.lower(), known)}{weights}")
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder


def _no_downloads(name: str, given: Mapping[str, object], spec: str) -> dict[str, object]:
    """The arguments that keep a torchvision builder from the network, and from its slow random initialisation."""
    _refuse_pretrained(given, ("weights", "weights_backbone", "pretrained"), spec)
    parameters = inspect.signature(_torchvision_builder(name)).parameters
    quiet: dict[str, object] = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    if name.lower() in ("googlenet", "inception_v3"):  # without it they warn that their initialisation will change
        quiet["init_weights"] = given.get("init_weights", False)
    return quiet


def _timm_builder(name: str, given: Mapping[str, object], spec: str) -> Callable[..., Any]:
    _refuse_pretrained(given, ("pretrained",), spec)
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{spec!r} needs timm, which is not installed; run `pip install timm`") from error
    if not timm.is_model(name):
        raise CheckpointError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")

    def create(**arguments: object) -> Any:
        return timm.create_model(name, pretrained=False, **arguments)

    return create


def _refuse_pretrained(given: Mapping[str, object], names: Iterable[str], spec: str) -> None:
    for name in names:
        if name in given:
            raise CheckpointError(f"{spec!r}: leave out the argument {name!r}; the weights come from the checkpoint")


def _published_arguments(model: str, weights: WeightsEnum) -> dict[str, object]:
    """What torchvision's builder would change in the architecture for these weights."""
    arguments: dict[str, object] = {}
    if weights.meta.get("categories"):
        arguments["num_classes"] = len(weights.meta["categories"])
    if model.startswith("vit_"):
        arguments["image_size"] = weights.meta["min_size"][0]
    if "aux_loss" in inspect.signature(_torchvision_builder(model)).parameters:
        arguments["aux_loss"] = True
    if model in ("googlenet", "inception_v3"):
        arguments["transform_input"] = True
    if model == "googlenet":
        arguments["aux_logits"] = False
    return arguments
