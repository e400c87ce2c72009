import argparse
import hashlib
import os
import pathlib
import pickle
import sys
import textwrap
import types
import warnings
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from interpret.checkpoint import (
    build_model,
    canonical_names,
    load_state,
    read_checkpoint,
    state_sha256,
    tensor_sha256,
    weights_of,
)
from interpret.errors import CheckpointError


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


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, **options)
    return str(error.value)


def assert_loads(path: Path, source: nn.Module, model: nn.Module | None = None, **options: object):
    model = Net() if model is None else model
    loaded = load_state(model, read_checkpoint(path, **options))
    assert list(loaded.state) == list(source.state_dict())
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
        torch.testing.assert_close(loaded.state[name], value, rtol=0, atol=0)
    assert state_sha256(loaded.state) == state_sha256(source.state_dict())
    return loaded


# ---------------------------------------------------------------------------------------------------- what is accepted


def test_a_state_dict_of_either_torch_format_and_of_safetensors(tmp_path: Path) -> None:
    model = net()
    zipped = saved(tmp_path / "检查点.pt", model.state_dict())
    legacy = saved(tmp_path / "no suffix", model.state_dict(), _use_new_zipfile_serialization=False)
    tensors = tmp_path / "wrong.pth"  # told by content, not by name
    safetensors.torch.save_file(model.state_dict(), tensors)
    for path, form in ((zipped, "zip"), (legacy, "legacy"), (tensors, "safetensors")):
        loaded = assert_loads(path, model)
        assert loaded.format == form
        assert loaded.branch is None
        assert loaded.uri == str(path)
        assert loaded.path == path
        assert loaded.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert loaded.dtypes == {"float32": 12, "int64": 1}
        assert (loaded.unexpected, loaded.missing, loaded.stripped_prefixes) == ((), (), ())
    assert read_checkpoint(zipped, uri="runs:/abc/model.pt").uri == "runs:/abc/model.pt"
    assert "Tensor" not in repr(read_checkpoint(zipped))


BRANCHES = [
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "weights",
    "params",
    "ema",
    "model_ema",
    "state_dict_ema",
    "backbone",
]


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_only_branch_is_found(tmp_path: Path, branch: str) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {"epoch": 3, "best": torch.tensor(0.5), "optimizer": optimizer.state_dict(), branch: model.state_dict()}
    assert assert_loads(saved(tmp_path / "c.pt", content), model).branch == branch


def test_plain_weights_win_over_averaged_ones_unless_asked(tmp_path: Path) -> None:
    plain, averaged = net(0), net(1)
    path = saved(tmp_path / "c.pt", {"model_ema": averaged.state_dict(), "model": plain.state_dict()})
    assert assert_loads(path, plain).branch == "model"
    assert assert_loads(path, averaged, branch="model_ema").branch == "model_ema"
    assert "has no branch 'model_emma'; did you mean 'model_ema'" in refusal(path, branch="model_emma")


def test_named_branches_win_in_their_order(tmp_path: Path) -> None:
    model = net()
    other = {"x": torch.ones(2)}
    path = saved(tmp_path / "c.pt", {"loose": torch.ones(3), "net": other, "state_dict": model.state_dict()})
    assert assert_loads(path, model).branch == "state_dict"
    nested = saved(tmp_path / "n.pt", {"ema": {"model": other}, "model": {"state_dict": model.state_dict()}})
    assert assert_loads(nested, model).branch == "model.state_dict"
    assert list(read_checkpoint(nested, branch="ema.model").state) == ["x"]


def test_equal_rivals_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    student, teacher = net(0), net(1)
    path = saved(tmp_path / "c.pt", {"student": student.state_dict(), "teacher": teacher.state_dict()})
    assert "several states: student, teacher; choose one with branch='student'" in refusal(path)
    assert assert_loads(path, teacher, branch="teacher").branch == "teacher"


def test_a_branch_may_be_the_first_part_of_the_names(tmp_path: Path) -> None:
    student, teacher = net(0), net(1)
    state = prefixed(student.state_dict(), "student.") | prefixed(teacher.state_dict(), "teacher.")
    path = saved(tmp_path / "c.pt", {"state_dict": state})
    with pytest.raises(CheckpointError, match=r"under several roots: 'student\.', 'teacher\.'; .*branch='student'"):
        load_state(Net(), read_checkpoint(path))
    loaded = assert_loads(path, teacher, branch="teacher")
    assert (loaded.branch, loaded.stripped_prefixes) == ("teacher", ("teacher.",))


def test_lightning(tmp_path: Path) -> None:
    model = net()
    content = {
        "pytorch-lightning_version": "2.5.0",
        "epoch": 4,
        "hyper_parameters": {"lr": 0.1, "classes": 3},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        "state_dict": prefixed(model.state_dict(), "model.") | {"loss.weight": torch.ones(3)},
    }
    loaded = assert_loads(saved(tmp_path / "last.ckpt", content), model)
    assert loaded.branch == "state_dict"
    assert loaded.stripped_prefixes == ("model.",)
    assert loaded.unexpected == ("loss.weight",)


@pytest.mark.parametrize(
    ("prefix", "stripped"),
    [
        ("module.", ("module.",)),
        ("_orig_mod.", ("_orig_mod.",)),
        ("module._orig_mod.module.", ("_orig_mod.", "module.", "module.")),
        ("net.module.", ("net.module.",)),
    ],
)
def test_nested_prefixes(tmp_path: Path, prefix: str, stripped: tuple[str, ...]) -> None:
    model = net()
    loaded = assert_loads(saved(tmp_path / "c.pt", prefixed(model.state_dict(), prefix)), model)
    assert loaded.stripped_prefixes == stripped


def test_blocks_that_were_compiled_one_by_one(tmp_path: Path) -> None:
    model = net()
    state = {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in model.state_dict().items()}
    assert assert_loads(saved(tmp_path / "c.pt", state), model).stripped_prefixes == ("_orig_mod.",)


def test_averaged_model_of_torch(tmp_path: Path) -> None:
    model = net()
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    loaded = assert_loads(saved(tmp_path / "c.pt", {"model_ema": averaged.state_dict()}), model)
    assert loaded.unexpected == ("n_averaged",)


def test_names_are_left_alone_where_stripping_would_merge_two() -> None:
    names = ["_orig_mod.weight", "weight"]
    assert canonical_names(names) == ({name: name for name in names}, ())
    assert canonical_names(["module.a", "b"])[0] == {"module.a": "module.a", "b": "b"}
    assert canonical_names([]) == ({}, ())


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


def test_the_stored_dtype_is_recorded(tmp_path: Path) -> None:
    model = net()
    half = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    target = Net()
    loaded = load_state(target, read_checkpoint(saved(tmp_path / "c.pt", half)))
    assert loaded.dtypes == {"bfloat16": 12, "int64": 1}
    assert loaded.state["fc.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(target.fc.weight.data, half["fc.weight"].float(), rtol=0, atol=0)
    assert state_sha256(loaded.state) == state_sha256(half) != state_sha256(model.state_dict())


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


# ----------------------------------------------------------------------------------------------------- what is refused


def test_missing_directory_empty_and_unreadable(tmp_path: Path) -> None:
    saved(tmp_path / "model.pt", net().state_dict())
    assert "does not exist; did you mean 'model.pt'?" in refusal(tmp_path / "modle.pt")
    assert "does not exist" in refusal(tmp_path / "no" / "model.pt")
    assert "is a directory; give one of its files: model.pt" in refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "is a directory; give the checkpoint file" in refusal(tmp_path / "empty")
    (tmp_path / "empty.pt").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.pt")
    assert "cannot be read: Not a directory" in refusal(tmp_path / "model.pt" / "x")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, form: str, share: float) -> None:
    path, state = tmp_path / "c.pt", net().state_dict()
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(len(content) * share))])
    assert "truncated" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a Git-LFS pointer.*git lfs pull",
        ),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(64), "a JPEG image"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        (b"\n<!DOCTYPE html><html>", "a web page.*download failed"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (b"hello", "not a checkpoint: it begins with b'hello'"),
        (bytes(40), "not a checkpoint"),
        (b"P", "not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        read_checkpoint(path)


def test_other_zip_archives(tmp_path: Path) -> None:
    inner = saved(tmp_path / "model.pt", net().state_dict())
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "model.pt")
    assert "zip archive but not a checkpoint (it holds model.pt)" in refusal(tmp_path / "outer.zip")
    with zipfile.ZipFile(inner) as old, zipfile.ZipFile(tmp_path / "again.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "packed again with compression" in refusal(tmp_path / "again.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_model(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "model.pt", nn.Sequential(nn.Linear(2, 2)), _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "is a pickled model, not its weights" in message
    assert "torch.nn.modules.linear.Linear" in message
    assert ".state_dict(), 'weights.pt')" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_named(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": net().state_dict(), "args": argparse.Namespace(lr=1), "out": pathlib.PurePosixPath("x")}
    path = saved(tmp_path / "model.ckpt", content, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "argparse.Namespace, pathlib.PurePosixPath" in message
    assert "save only the state_dict" in message


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("forced", [True, False])
def test_malicious_pickles_are_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, forced: bool
) -> None:
    victim = tmp_path / "pwned"
    path = saved(tmp_path / "c.pt", {"w": torch.ones(2), "x": Malicious(victim)}, _use_new_zipfile_serialization=zipped)
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert ".mkdir, which is not allowed; nothing was executed" in refusal(path)
    assert not victim.exists()
    if not forced:
        torch.load(path, weights_only=False)  # the control: the file does what it says
        assert victim.exists()


def test_newer_pickle_protocol(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", net().state_dict(), pickle_protocol=4)
    assert "cannot be read by PyTorch's safe loader (Unsupported operand" in refusal(path)


def test_torchscript_and_export_archives(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.ones(1, 2)).save(str(tmp_path / "script.pt"))
        torch.export.save(torch.export.export(model, (torch.ones(1, 2),)), tmp_path / "export.pt2")
    assert "is a TorchScript archive" in refusal(tmp_path / "script.pt")
    assert "is a torch.export archive (.pt2)" in refusal(tmp_path / "export.pt2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "loss": 0.1}, "holds no weights (its keys: 'epoch', 'loss')"),
        ({}, "holds no weights (its keys: none)"),
        ({"loss": torch.tensor(1.0)}, "holds no weights"),
        (torch.ones(3), "holds a Tensor, not a dict"),
        ([torch.ones(3)], "holds a list, not a dict"),
    ],
)
def test_files_of_torch_without_weights(tmp_path: Path, content: object, message: str) -> None:
    assert message in refusal(saved(tmp_path / "c.pt", content))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), value=st.integers(0, 255), form=st.sampled_from(["zip", "legacy", "safetensors"]))
def test_no_damage_escapes_as_another_error(tmp_path: Path, place: float, value: int, form: str) -> None:
    path = tmp_path / form
    state = nn.Linear(2, 2).state_dict()
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=form == "zip")
    content = bytearray(path.read_bytes())
    content[int(place * min(len(content), 700))] = value
    path.write_bytes(content)
    with suppress(CheckpointError):
        read_checkpoint(path)


# --------------------------------------------------------------------------------------------------- fitting the model


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(2)
    with pytest.raises(CheckpointError, match="without values"):
        load_state(lazy, checkpoint)


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


# ------------------------------------------------------------------------------------------------------------- digests


def test_state_digest_against_its_definition() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3, dtype=torch.int64)}
    a = hashlib.sha256(b"int64 ()\n" + np.array(3, "<i8").tobytes()).hexdigest()
    b = hashlib.sha256(b"float32 (2,)\n" + np.array([1, 2], "<f4").tobytes()).hexdigest()
    assert tensor_sha256(state["a"]) == a
    expected = hashlib.sha256(f"{a}  a\n{b}  b\n".encode()).hexdigest()
    assert state_sha256(state) == state_sha256({"a": a, "b": b}) == expected


def test_digests_see_values_not_storage() -> None:
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert tensor_sha256(base.permute(0, 1, 3, 2)) == tensor_sha256(base.permute(0, 1, 3, 2).contiguous())
    assert tensor_sha256(base.to(memory_format=torch.channels_last)) == tensor_sha256(base)
    assert tensor_sha256(nn.Parameter(base[:, 1:])) == tensor_sha256(base[:, 1:].clone())
    assert tensor_sha256(base) != tensor_sha256(base.reshape(24)) != tensor_sha256(base.reshape(24).int())
    shared = {"x": base, "y": base}
    assert state_sha256(shared) == state_sha256({"y": base.clone(), "x": base.clone()}) != state_sha256({"x": base})


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn],
)
def test_every_dtype_has_a_digest(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    assert tensor_sha256(tensor) == tensor_sha256(tensor.clone()) != tensor_sha256(tensor.flip(0))
    assert tensor_sha256(torch.tensor(1).to(dtype))  # no axes
    assert tensor_sha256(torch.zeros(0, 3).to(dtype))  # no entries


def test_bytes_of_bfloat16_are_its_own() -> None:
    assert (
        tensor_sha256(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
        == hashlib.sha256(b"bfloat16 (2,)\n" + bytes.fromhex("803f00c0")).hexdigest()
    )


def test_conjugate_views() -> None:
    tensor = torch.tensor([1 + 2j])
    assert tensor_sha256(tensor.conj()) == tensor_sha256(torch.tensor([1 - 2j]))


# ----------------------------------------------------------------------------------------------------- building models


def failure_of(spec: str, **arguments: object) -> str:
    with pytest.raises(CheckpointError) as error:
        build_model(spec, arguments)
    return str(error.value)


def test_torchvision_builders_never_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    with torch.device("meta"):
        assert build_model("torchvision:resnet18", {"num_classes": "5"}).fc.out_features == 5
        assert type(build_model("torchvision:fcn_resnet50", {"num_classes": "2"})).__name__ == "FCN"
        assert type(build_model("torchvision:googlenet")).__name__ == "GoogLeNet"
    assert type(build_model("torchvision:ssdlite320_mobilenet_v3_large")).__name__ == "SSD"


def test_torchvision_mistakes() -> None:
    assert "torchvision has no model 'resnet19'; did you mean 'resnet1" in failure_of("torchvision:resnet19")
    assert "give weights as the CHECKPOINT" in failure_of("torchvision:ResNet50_Weights.DEFAULT")
    assert "leave out the argument 'weights'" in failure_of("torchvision:resnet18", weights="DEFAULT")
    assert "'torchvision:resnet18' failed: TypeError: " in failure_of("torchvision:resnet18", clases=3)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def create_model(name: str, **arguments: object) -> nn.Module:
        calls.append((name, arguments))
        return nn.Linear(1, 1)

    monkeypatch.setitem(sys.modules, "timm", None)
    assert "needs timm, which is not installed; run `pip install timm`" in failure_of("timm:resnet18")
    timm = types.SimpleNamespace(
        is_model=lambda name: name == "resnet18", list_models=lambda: ["resnet18"], create_model=create_model
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    build_model("timm:resnet18", {"num_classes": "5"})
    assert calls == [("resnet18", {"num_classes": 5, "pretrained": False})]
    assert "did you mean 'resnet18'" in failure_of("timm:resnet81")
    assert "leave out the argument 'pretrained'" in failure_of("timm:resnet18", pretrained="true")


def python(path: Path, code: str) -> Path:
    path.write_text(textwrap.dedent(code))
    return path


def test_a_callable_in_a_file(tmp_path: Path) -> None:
    python(tmp_path / "parts.py", "def width(): return 7")
    file = python(
        tmp_path / "random.py",  # a name that must not hide the standard library's
        """
        from dataclasses import dataclass
        from torch import nn
        import parts

        @dataclass
        class Setting:
            width: "int" = 2

        def build(classes=3, bias=True, widths=(), name="x"):
            from parts import width
            build.seen = (classes, bias, widths, name)
            return nn.Linear(width(), classes, bias=bias)

        class Zoo:
            small = staticmethod(lambda: nn.Linear(1, 1))

        ready = nn.Linear(2, 2)
        number = 5
        def wrong(): return {"a": 1}
        def boom(): raise ValueError("no width")
        """,
    )
    import random

    path, modules = list(sys.path), set(sys.modules)
    model = build_model(f"{file}:build", {"classes": "5", "bias": "false", "widths": "[1, 2]", "name": "a b"})
    assert (model.in_features, model.out_features, model.bias) == (7, 5, None)
    assert build_model(f"{file}:build", {"classes": 4, "name": "None"}).out_features == 4
    assert build_model(f"{file}:Zoo.small").in_features == 1
    assert build_model(f"{file}:ready").in_features == 2
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if not name.startswith("_interpret_")} == set()
    assert sys.modules["random"] is random

    assert f"'{file}:boom' failed: ValueError: no width (random.py, line " in failure_of(f"{file}:boom")
    assert "returned a dict; it must return an nn.Module" in failure_of(f"{file}:wrong")
    assert "is a int; name a function" in failure_of(f"{file}:number")
    assert "has no argument 'clases'; did you mean 'classes'" in failure_of(f"{file}:build", clases=3)
    assert "built already: it takes no a" in failure_of(f"{file}:ready", a=3)
    assert "has no 'biuld'; did you mean 'build'" in failure_of(f"{file}:biuld")


def test_two_files_may_have_neighbours_of_one_name(tmp_path: Path) -> None:
    for width in (1, 2):
        folder = tmp_path / str(width)
        (folder / "blocks").mkdir(parents=True)
        python(folder / "blocks" / "__init__.py", f"WIDTH = {width}")
        python(folder / "net.py", "import blocks, torch\ndef build(): return torch.nn.Linear(blocks.WIDTH, 1)")
    assert [build_model(f"{tmp_path}/{width}/net.py:build").in_features for width in (1, 2, 1)] == [1, 2, 1]


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    assert "there is no file" in failure_of(f"{tmp_path}/none.py:build")
    broken = python(tmp_path / "broken.py", "def build(:")
    assert "cannot be imported: SyntaxError" in failure_of(f"{broken}:build")
    leaving = python(tmp_path / "leaving.py", "raise SystemExit(3)")
    assert "cannot be imported: SystemExit: 3" in failure_of(f"{leaving}:build")
    needy = python(tmp_path / "needy.py", "import not_installed_anywhere")
    assert "No module named 'not_installed_anywhere' (needy.py, line 1)" in failure_of(f"{needy}:build")
    assert not [
        name for name in sys.modules if name.startswith("_interpret_") and not hasattr(sys.modules[name], "__file__")
    ]


def test_a_callable_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_model("torch.nn:Linear", {"in_features": "2", "out_features": "3"}).out_features == 3
    (tmp_path / "zoo_of_this_test").mkdir()
    python(tmp_path / "zoo_of_this_test" / "small.py", "import torch\ndef build(): return torch.nn.ReLU()")
    monkeypatch.chdir(tmp_path)  # the console command does not have the current folder on its path
    assert isinstance(build_model("zoo_of_this_test.small:build"), nn.ReLU)
    assert "there is no module 'zoo_of_that_test'; install it, or run in the folder" in failure_of(
        "zoo_of_that_test:build"
    )
    python(tmp_path / "needs_of_this_test.py", "import not_installed_anywhere")
    assert "No module named 'not_installed_anywhere'" in failure_of("needs_of_this_test:build")
    for spec in ("resnet18", "torch.nn:", ":build"):
        assert "names no callable; write package.module:callable" in failure_of(spec)


# ----------------------------------------------------------------------------------------------- torchvision's weights


def test_what_weights_imply_is_known_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    weights = weights_of("torchvision:ResNet50_Weights.IMAGENET1K_V2")
    assert (weights.spec, weights.arguments) == ("torchvision:resnet50", {"num_classes": 1000})
    assert weights.transform.resize_size == [232]
    assert weights.class_names is not None
    assert weights.class_names[:2] == ("tench", "goldfish")
    assert weights_of("torchvision:ResNet50_Weights.DEFAULT").weights is weights.weights
    with pytest.raises(CheckpointError, match="weights of detection are not built here"):
        weights_of("torchvision:FasterRCNN_ResNet50_FPN_Weights.COCO_V1")
    for wrong in ("torchvision:ResNet50_Weights.IMAGENET1K_V3", "ResNet50_Weigths.IMAGENET1K_V2"):
        with pytest.raises(CheckpointError, match=r"did you mean 'ResNet50_Weights\.IMAGENET1K_V2'"):
            weights_of(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "ResNet18_Weights.IMAGENET1K_V1",
        "GoogLeNet_Weights.IMAGENET1K_V1",
        "Inception_V3_Weights.IMAGENET1K_V1",
        "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
        "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
        "LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1",
    ],
)
def test_the_model_of_weights_is_the_one_torchvision_builds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from torchvision import models

    weights = weights_of(f"torchvision:{name}")
    monkeypatch.setattr(type(weights.weights), "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
    with torch.device("meta"):
        ours = build_model(weights.spec, weights.arguments)
        theirs = models.get_model_builder(weights.spec.removeprefix("torchvision:"))(weights=weights.weights)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert [getattr(ours, key, None) for key in ("transform_input", "image_size")] == [
        getattr(theirs, key, None) for key in ("transform_input", "image_size")
    ]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights of torchvision that are served from a folder instead of the web."""
    from torchvision.models import SqueezeNet1_1_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    model = build_model("torchvision:squeezenet1_1")
    path = saved(tmp_path / "weights.pth", model.state_dict())

    def serve(digest: str | None = None, name: str = "weights"):
        digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        served = tmp_path / f"{name}-{digest}.pth"
        served.write_bytes(path.read_bytes())
        weights = SqueezeNet1_1_Weights.IMAGENET1K_V1
        monkeypatch.setattr(weights._value_, "url", served.as_uri())
        return model, weights_of("torchvision:SqueezeNet1_1_Weights.IMAGENET1K_V1")

    return serve


def test_weights_are_downloaded_once_and_read_safely(published, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = published()
    for _ in range(2):
        target = build_model(weights.spec, weights.arguments)
        loaded = load_state(target, weights.read())
        assert loaded.uri == weights.uri
        torch.testing.assert_close(dict(target.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert capsys.readouterr().err.count("Downloading") == 1


def test_downloads_that_are_not_what_they_should_be(published, tmp_path: Path) -> None:
    _, weights = published(digest="0123456789")
    with pytest.raises(CheckpointError, match="was not downloaded correctly: invalid hash value"):
        weights.read()
    _, weights = published()
    cached = tmp_path / "hub" / "checkpoints" / Path(weights.weights.url).name
    saved(cached, nn.Linear(1, 1).state_dict())
    with pytest.raises(CheckpointError, match="does not match the digest in its name; delete it"):
        weights.read()


def test_offline(published, tmp_path: Path) -> None:
    _, weights = published()
    Path(weights.weights.url.removeprefix("file://")).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(.*\); fetch file:.* elsewhere and put it at"):
        weights.read()
