import argparse
import hashlib
import os
import pathlib
import pickle
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from checkpoints import Net, assert_loads, net, prefixed, saved
from interpret.checkpoint import canonical_names, read_checkpoint, state_sha256, tensor_sha256
from interpret.errors import CheckpointError
from interpret.loading import load_state


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, **options)
    return str(error.value)


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
@example(place=0.25, value=141, form="legacy")  # a length of petabytes
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
