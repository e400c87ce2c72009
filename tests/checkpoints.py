"""A small network, its checkpoints, and what every one of them must survive: being loaded to the bit."""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from interpret.checkpoint import read_checkpoint, state_sha256
from interpret.loading import load_state


class Net(nn.Module):
    def __init__(self, classes: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(depth)])
        self.fc = nn.Linear(4, classes)


def net(seed: int = 0, **arguments: int) -> Net:
    torch.manual_seed(seed)
    model = Net(**arguments)
    model.norm.running_mean.uniform_(-1, 1)
    return model


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def sharded(folder: Path, state: dict[str, torch.Tensor], form: str = "safetensors", count: int = 3) -> Path:
    """The index of a state that lies in ``count`` shards, every ``count``-th tensor in the same one."""
    stem, suffix = {"safetensors": ("model", "safetensors")}.get(form, ("pytorch_model", "bin"))
    places = {
        name: f"{stem}-{1 + number % count:05}-of-{count:05}.{suffix}" for number, name in enumerate(sorted(state))
    }
    folder.mkdir(exist_ok=True)
    for shard in set(places.values()):
        part = {name: state[name] for name in state if places[name] == shard}
        if form == "safetensors":
            safetensors.torch.save_file(part, folder / shard)
        else:
            saved(folder / shard, part, _use_new_zipfile_serialization=form == "zip")
    size = sum(tensor.nbytes for tensor in state.values())
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2))
    return index


def assert_loads(path: Path, source: nn.Module, model: nn.Module | None = None, **options: object):
    model = Net() if model is None else model
    loaded = load_state(model, read_checkpoint(path, **options))
    assert list(loaded.state) == list(source.state_dict())
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
        torch.testing.assert_close(loaded.state[name], value, rtol=0, atol=0)
    assert state_sha256(loaded.state) == state_sha256(source.state_dict())
    return loaded
