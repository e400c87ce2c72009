import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from checkpoints import Net, net, prefixed, saved
from interpret.architectures import build_model
from interpret.checkpoint import read_checkpoint, state_sha256, tensor_sha256
from interpret.errors import CheckpointError
from interpret.loading import load_state


def test_wrapped_models_are_loaded_under_their_bare_names(tmp_path: Path) -> None:
    model = net()
    path = saved(tmp_path / "c.pt", model.state_dict())
    for wrapped in (nn.DataParallel(Net()), torch.compile(Net()), torch.compile(nn.DataParallel(Net()))):
        loaded = load_state(wrapped, read_checkpoint(path))
        assert list(loaded.state) == list(model.state_dict())
        torch.testing.assert_close(list(wrapped.parameters()), list(model.parameters()), rtol=0, atol=0)
    partly = Net()
    partly.blocks[0] = torch.compile(partly.blocks[0])
    assert list(load_state(partly, read_checkpoint(path)).state) == list(model.state_dict())


def test_a_wrapper_of_the_users_own_keeps_its_names(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Net()

    wrapper = Wrapper()
    loaded = load_state(wrapper, read_checkpoint(saved(tmp_path / "c.pt", net().state_dict())))
    assert list(loaded.state) == list(wrapper.state_dict())
    torch.testing.assert_close(dict(wrapper.state_dict()), dict(loaded.state), rtol=0, atol=0)


def test_batchnorm_counters_of_old_files_may_be_absent(tmp_path: Path) -> None:
    model = net()
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    loaded = load_state(Net(), read_checkpoint(saved(tmp_path / "c.pt", state)))
    assert loaded.missing == ("norm.num_batches_tracked",)
    assert state_sha256(loaded.state) == state_sha256(state)


def test_modules_that_rename_their_old_keys_are_heard(tmp_path: Path) -> None:
    from torchvision.models.vision_transformer import MLPBlock

    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(mlp=MLPBlock(4, 8, 0.0)))
    old = {"mlp.linear_1.weight": torch.rand(8, 4), "mlp.linear_1.bias": torch.rand(8)}
    old |= {"mlp.linear_2.weight": torch.rand(4, 8), "mlp.linear_2.bias": torch.rand(4)}
    loaded = load_state(model, read_checkpoint(saved(tmp_path / "c.pt", old)))
    assert list(loaded.state) == ["mlp.0.weight", "mlp.0.bias", "mlp.3.weight", "mlp.3.bias"]
    torch.testing.assert_close(loaded.state["mlp.3.weight"], old["mlp.linear_2.weight"])
    assert loaded.unexpected == ()


def test_tied_weights_of_which_safetensors_keeps_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    source, target = Tied(), Tied()
    safetensors.torch.save_model(source, str(tmp_path / "tied.safetensors"))
    loaded = load_state(target, read_checkpoint(tmp_path / "tied.safetensors"))
    assert state_sha256(loaded.state) == state_sha256(source.state_dict())
    torch.testing.assert_close(target.b.weight, source.a.weight)


def test_memory_of_the_file_is_not_written_to(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", net().state_dict())
    before = path.read_bytes()
    read_checkpoint(path).state["fc.weight"].zero_()
    assert path.read_bytes() == before


def assert_refused(model: nn.Module, path: Path, message: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_state(model, read_checkpoint(path))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_another_number_of_classes(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", net(classes=5).state_dict())
    assert_refused(
        Net(), path, "'fc.weight': .* has 5 classes, the model was built with 3: .*--model-arg num_classes=5"
    )


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    state = net().state_dict()
    state["stem.weight"] = torch.ones(4, 1, 3, 3)
    assert_refused(
        Net(), saved(tmp_path / "c.pt", state), r"1 of 13 tensors .*stem\.weight \(4, 1, 3, 3\) against the model's"
    )


def test_another_architecture(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", build_model("torchvision:squeezenet1_1").state_dict())
    assert_refused(
        Net(), path, r"belongs to another architecture; 12 of 13 .* missing: stem.weight.*unexpected: features.0"
    )


def test_a_few_missing_names(tmp_path: Path) -> None:
    state = net().state_dict()
    state["fc.wieght"] = state.pop("fc.weight")
    assert_refused(
        Net(), saved(tmp_path / "c.pt", state), r"1 of 13 tensors are missing: fc\.weight; .*did you mean 'fc.wieght'"
    )


def test_missing_names_and_other_shapes_together(tmp_path: Path) -> None:
    state = net(classes=7).state_dict()
    del state["stem.weight"]
    assert_refused(Net(), saved(tmp_path / "c.pt", state), r"1 of 13 tensors are missing: stem\.weight")


def test_a_deeper_network(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", net(depth=3).state_dict())
    assert_refused(Net(), path, r"deeper network: it has 'blocks\.2', but 'blocks' of Net has only 2 parts")


def test_a_model_whose_end_was_cut_off_is_legitimate(tmp_path: Path) -> None:
    whole = nn.Sequential(
        OrderedDict(features=nn.Conv2d(3, 4, 3), classifier=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    )
    cut = nn.Sequential(OrderedDict(features=nn.Conv2d(3, 4, 3), classifier=nn.Sequential(nn.Linear(4, 4))))
    loaded = load_state(cut, read_checkpoint(saved(tmp_path / "c.pt", whole.state_dict())))
    assert loaded.unexpected == ("classifier.1.weight", "classifier.1.bias")
    assert "classifier.1.weight" not in loaded.state


def test_auxiliary_heads_are_unexpected_but_fine(tmp_path: Path) -> None:
    state = net().state_dict() | {"aux.0.weight": torch.ones(2)}
    assert load_state(Net(), read_checkpoint(saved(tmp_path / "c.pt", state))).unexpected == ("aux.0.weight",)


def test_sparse_quantized_and_empty_tensors(tmp_path: Path) -> None:
    sparse = net().state_dict() | {"fc.weight": torch.eye(3, 4).to_sparse()}
    assert_refused(Net(), saved(tmp_path / "s.pt", sparse), "'fc.weight' .* is sparse")
    meta = net().state_dict() | {"fc.weight": torch.empty(3, 4, device="meta")}
    assert_refused(Net(), saved(tmp_path / "m.pt", meta), "'fc.weight' .* is without values")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.qint8)
        path = saved(tmp_path / "q.pt", net().state_dict() | {"fc.weight": quantized})
        assert_refused(Net(), path, "'fc.weight' .* is quantized")
    with pytest.raises(CheckpointError, match="no digest"):
        tensor_sha256(torch.eye(2).to_sparse())


def test_models_that_cannot_take_weights(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "c.pt", net().state_dict()))
    with pytest.raises(CheckpointError, match="ReLU has no weights"):
        load_state(nn.ReLU(), checkpoint)
    with torch.device("meta"), pytest.raises(CheckpointError, match="without values"):
        load_state(Net(), checkpoint)


def test_what_torch_itself_refuses_is_quoted(tmp_path: Path) -> None:
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *arguments: object) -> None:
            super()._load_from_state_dict(*arguments)
            raise KeyError("not today")

    assert_refused(
        Picky(2, 2),
        saved(tmp_path / "c.pt", nn.Linear(2, 2).state_dict()),
        "(?s)cannot be loaded into Picky.*not today",
    )


class Refusing(nn.Linear):
    def get_extra_state(self) -> torch.Tensor:
        return torch.ones(1)

    def set_extra_state(self, state: object) -> None:
        raise KeyError("not this state")


def hooked(register: str) -> nn.Module:
    def hook(*_: object) -> None:
        raise KeyError("not with this hook")

    model = nn.Linear(2, 2)
    getattr(model, register)(hook)
    return model


def patched() -> nn.Module:
    model = nn.Linear(2, 2)

    def load(state: object, prefix: str, *_: object) -> None:
        raise KeyError("not this instance")

    model._load_from_state_dict = load
    return model


def expanded() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.zeros(1, 2).expand(3, 2))
    return model


def strict_norm() -> nn.Module:
    return nn.InstanceNorm2d(2, track_running_stats=False)


@pytest.mark.parametrize(
    ("build", "state"),
    [
        (lambda: Refusing(2, 2), {"_extra_state": torch.ones(1)}),
        (lambda: hooked("register_load_state_dict_pre_hook"), {}),
        (lambda: hooked("register_load_state_dict_post_hook"), {}),
        (patched, {}),
        (expanded, {"mask": torch.ones(3, 2)}),
        (strict_norm, {"running_mean": torch.ones(2), "running_var": torch.ones(2)}),
    ],
)
def test_models_that_fail_half_way_are_as_they_were(
    tmp_path: Path, build: Callable[[], nn.Module], state: dict[str, torch.Tensor]
) -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), own=build(), last=nn.Linear(2, 2)))
    given = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    given |= {f"own.{name}": value for name, value in state.items()}
    assert_refused(model, saved(tmp_path / "c.pt", given), "(?s)cannot be loaded into Sequential: ")


# ---------------------------------------------------------------------------------------------------------------- lazy


def blocks(lazy: bool, classes: int = 3) -> nn.Module:
    """A network whose input sizes are left open, or the same with all of them given."""
    layers = {
        "conv": nn.LazyConv2d(8, 3, groups=2, bias=False) if lazy else nn.Conv2d(6, 8, 3, groups=2, bias=False),
        "norm": nn.LazyBatchNorm2d() if lazy else nn.BatchNorm2d(8),
        "unscaled": nn.LazyBatchNorm2d(affine=False) if lazy else nn.BatchNorm2d(8, affine=False),
        "instance": nn.LazyInstanceNorm2d() if lazy else nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        # without tensors there is nothing to tell its size from; torch's own forward leaves it at 0 as well
        "bare": (nn.LazyBatchNorm2d if lazy else lambda **options: nn.BatchNorm2d(0, **options))(
            affine=False, track_running_stats=False
        ),
        "up": nn.LazyConvTranspose2d(4, 2, groups=2) if lazy else nn.ConvTranspose2d(8, 4, 2, groups=2),
        "plain": nn.Conv2d(4, 4, 1),
        "flat": nn.Flatten(),
        "head": nn.LazyLinear(classes) if lazy else nn.Linear(4 * 7 * 7, classes),
    }
    return nn.Sequential(OrderedDict(layers)).eval()


@pytest.fixture
def trained(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = blocks(lazy=False)
    for norm in (model.norm, model.unscaled):
        norm.running_mean.uniform_(-1, 1)
    return model, saved(tmp_path / "c.pt", model.state_dict())


def test_lazy_modules_become_ordinary_ones(trained: tuple[nn.Module, Path]) -> None:
    source, path = trained
    model = blocks(lazy=True)
    parameters = list(model.parameters())
    random_state = torch.get_rng_state()
    loaded = load_state(model, read_checkpoint(path))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert state_sha256(loaded.state) == state_sha256(source.state_dict()) == state_sha256(model.state_dict())
    assert repr(model) == repr(source)  # with every in_channels, in_features and num_features
    for ours, theirs in zip(model.modules(), source.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
        assert not ours._forward_pre_hooks
        assert not ours._load_state_dict_pre_hooks
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    images = torch.rand(2, 6, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), rtol=0, atol=0)
    assert state_sha256(model.state_dict()) == state_sha256(source.state_dict())


def test_lazy_modules_under_wrappers_and_prefixes(trained: tuple[nn.Module, Path], tmp_path: Path) -> None:
    source, _ = trained
    state = prefixed(source.state_dict(), "module.encoder.")
    model = nn.DataParallel(blocks(lazy=True))
    assert load_state(model, read_checkpoint(saved(tmp_path / "p.pt", state))).stripped_prefixes == (
        "module.",
        "encoder.",
    )
    assert repr(model.module) == repr(source)
    alone = nn.LazyLinear(3)
    load_state(alone, read_checkpoint(saved(tmp_path / "l.pt", nn.Linear(5, 3).state_dict())))
    assert repr(alone) == repr(nn.Linear(5, 3))


def test_lazy_modules_that_torch_loaded_but_did_not_finish(trained: tuple[nn.Module, Path]) -> None:
    source, path = trained
    model = blocks(lazy=True)
    model.load_state_dict(source.state_dict())
    assert type(model.conv) is nn.LazyConv2d
    load_state(model, read_checkpoint(path))
    assert repr(model) == repr(source)


def test_lazy_modules_one_of_which_is_used_twice(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.a = self.b = layer

    source, model = Shared(nn.Linear(5, 3)), Shared(nn.LazyLinear(3))
    load_state(model, read_checkpoint(saved(tmp_path / "c.pt", source.state_dict())))
    assert repr(model) == repr(source)
    safetensors.torch.save_model(source, str(tmp_path / "c.safetensors"))  # keeps one of the two names
    model = Shared(nn.LazyLinear(3))
    load_state(model, read_checkpoint(tmp_path / "c.safetensors"))
    assert repr(model) == repr(source)


def assert_still_lazy(model: nn.Module, path: Path, message: str) -> None:
    """Refused, and then exactly as lazy as a fresh one: its first forward makes it ordinary, with nothing left over."""
    before = {name: repr(value) for name, value in model.state_dict().items()}
    described, keys = repr(model), [list(vars(module)) for module in model.modules()]
    with pytest.raises(CheckpointError, match=message):
        load_state(model, read_checkpoint(path))
    assert {name: repr(value) for name, value in model.state_dict().items()} == before
    assert (repr(model), [list(vars(module)) for module in model.modules()]) == (described, keys)
    model(torch.rand(1, 6, 8, 8))
    assert "Lazy" not in repr(model)
    assert not any(module._forward_pre_hooks or module._load_state_dict_pre_hooks for module in model.modules())


def test_lazy_modules_are_as_they_were_where_shapes_or_names_do_not_fit(
    trained: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    source, path = trained
    assert_still_lazy(blocks(lazy=True, classes=5), path, "has 3 classes, the model was built with 5")
    for name, value, message in (
        ("conv.weight", torch.ones(8, 3, 5, 5), r"conv\.weight \(8, 3, 5, 5\) against the model's \(8, 3, 3, 3\)"),
        ("conv.weight", torch.ones(8), r"conv\.weight \(8,\) against"),
        ("norm.bias", torch.ones(9), r"norm\.bias \(9,\) against the model's \(8,\)"),
        ("up.weight", torch.ones(7, 2, 2, 2), "must be divisible by groups"),
        ("head.bias", torch.ones(4), r"head\.bias \(4,\) against"),
        ("plain.weight", torch.ones(4, 5, 1, 1), r"plain\.weight \(4, 5, 1, 1\) against"),
        ("head.weight", torch.eye(3, 196).to_sparse(), "is sparse"),
    ):
        changed = saved(tmp_path / "changed.pt", source.state_dict() | {name: value})
        assert_still_lazy(blocks(lazy=True), changed, message)
    for name in ("conv.weight", "norm.bias", "plain.weight"):
        lacking = {key: value for key, value in source.state_dict().items() if key != name}
        assert_still_lazy(blocks(lazy=True), saved(tmp_path / "l.pt", lacking), f"1 of 20 tensors are missing: {name}")


def test_lazy_modules_beside_one_that_fails_are_as_they_were(trained: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, path = trained
    model = blocks(lazy=True)
    model.plain.register_load_state_dict_post_hook(lambda *_: 1 / 0)
    assert_still_lazy(model, path, "division by zero")


def test_lazy_modules_of_the_users_own_need_a_forward(tmp_path: Path) -> None:
    class Scale(nn.modules.lazy.LazyModuleMixin, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.UninitializedParameter()

    path = saved(tmp_path / "c.pt", {"weight": torch.ones(3)})
    with pytest.raises(
        CheckpointError, match=r"without values \(meta device or lazy modules of its own\); .*run it once"
    ):
        load_state(Scale(), read_checkpoint(path))
    with torch.device("meta"), pytest.raises(CheckpointError, match="without values"):
        load_state(nn.LazyLinear(3), read_checkpoint(saved(tmp_path / "l.pt", nn.Linear(5, 3).state_dict())))


# -------------------------------------------------------------------------------------------------------------- memory

MEASURE = """
import sys
from pathlib import Path
from torch import nn
from interpret.checkpoint import read_checkpoint
from interpret.loading import load_state

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

model = nn.Sequential(*[nn.utils.skip_init(nn.Linear, 1024, 1024) for _ in range(50)])
for parameter in model.parameters():
    parameter.data.fill_(0)
before = memory("VmRSS:")
checkpoint = read_checkpoint(sys.argv[1])
read = memory("VmRSS:") - before
load_state(model, checkpoint)
print(read, memory("VmHWM:") - before, bool((model[49].bias == 1).all()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_memory_of_reading_and_loading(tmp_path: Path) -> None:
    # VmHWM is the high-water mark that ru_maxrss reports, without what a child inherits from its parent's.
    layers = nn.Sequential(*[nn.utils.skip_init(nn.Linear, 1024, 1024) for _ in range(50)])
    path = saved(tmp_path / "c.pt", {name: torch.ones_like(value) for name, value in layers.state_dict().items()})
    size = path.stat().st_size
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    path.unlink()
    read, peak, right = done.stdout.split()
    assert size > 200e6
    assert right == "True"
    assert int(read) < 0.25 * size  # measured: 0; a file that is not mapped takes 1
    assert int(peak) < 1.5 * size  # measured: 1, the file's pages; a copy of the model for roll-back makes it 2
