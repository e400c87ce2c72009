import argparse
import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import pickle
import re
import struct
import sys
import types
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

import interpret.checkpoint
from checkpoints import Net, assert_loads, net, prefixed, saved, sharded
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
    assert loaded.others == {}


def test_a_nested_state_in_the_legacy_format(tmp_path: Path) -> None:
    model = net()
    content = {"epoch": 3, "model": {"state_dict": prefixed(model.state_dict(), "module.")}}
    loaded = assert_loads(saved(tmp_path / "c.tar", content, _use_new_zipfile_serialization=False), model)
    assert (loaded.format, loaded.branch, loaded.stripped_prefixes) == ("legacy", "model.state_dict", ("module.",))


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


def test_averaged_weights_of_timm(tmp_path: Path) -> None:
    plain, averaged = net(0), net(1)
    content = {"epoch": 1, "arch": "net", "state_dict": plain.state_dict(), "state_dict_ema": averaged.state_dict()}
    path = saved(tmp_path / "model_best.pth.tar", content)
    assert assert_loads(path, plain).others == {"state_dict_ema": state_sha256(averaged.state_dict())}
    assert assert_loads(path, averaged, branch="state_dict_ema").others == {
        "state_dict": state_sha256(plain.state_dict())
    }


def test_averaged_weights_of_mmengine(tmp_path: Path) -> None:
    plain, averaged = net(0), net(1)
    content = {
        "meta": {"epoch": 1},
        "state_dict": plain.state_dict(),
        "ema_state_dict": prefixed(averaged.state_dict(), "module.") | {"steps": torch.tensor(7)},
    }
    path = saved(tmp_path / "epoch_1.pth", content)
    assert list(assert_loads(path, plain).others) == ["ema_state_dict"]
    loaded = assert_loads(path, averaged, branch="ema_state_dict")
    assert (loaded.stripped_prefixes, loaded.unexpected) == (("module.",), ("steps",))


def test_averaged_weights_beside_the_plain_ones_under_names_without_dots(tmp_path: Path) -> None:
    plain, averaged = net(0), net(1)
    flat = {f"ema_{name.replace('.', '_')}": value for name, value in averaged.state_dict().items()}
    for wrapper in ("", "module.", "backbone."):
        both = prefixed(plain.state_dict(), wrapper) | prefixed(flat, "module." if wrapper == "module." else "")
        loaded = assert_loads(saved(tmp_path / "c.pth", {"meta": {}, "state_dict": both}), plain)
        assert loaded.unexpected == tuple(flat)


def test_averaged_weights_under_a_prefix_of_their_own(tmp_path: Path) -> None:
    plain, averaged = net(0), net(1)
    counters = {"initted": torch.tensor(True), "step": torch.tensor(100)}
    alone = {"ema_model_state_dict": prefixed(averaged.state_dict(), "ema_model.") | counters}
    loaded = assert_loads(saved(tmp_path / "alone.pt", alone), averaged)
    assert (loaded.branch, loaded.stripped_prefixes) == ("ema_model_state_dict", ("ema_model.",))
    assert loaded.unexpected == ("initted", "step")
    both = prefixed(averaged.state_dict(), "ema_model.") | prefixed(plain.state_dict(), "model.")
    path = saved(tmp_path / "both.pt", {"state_dict": both})
    assert assert_loads(path, plain).stripped_prefixes == ("model.",)
    assert assert_loads(path, averaged, branch="ema_model").stripped_prefixes == ("ema_model.",)


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


def test_half_precision_in_every_format(tmp_path: Path) -> None:
    model = net().half()
    tensors = tmp_path / "c.safetensors"
    safetensors.torch.save_file(model.state_dict(), tensors)
    legacy = saved(tmp_path / "legacy.pt", model.state_dict(), _use_new_zipfile_serialization=False)
    for path in (tensors, legacy, saved(tmp_path / "zip.pt", model.state_dict())):
        loaded = assert_loads(path, model, net(1).half())
        assert loaded.dtypes == {"float16": 12, "int64": 1}
        target = Net()
        load_state(target, read_checkpoint(path))
        assert target.fc.weight.dtype == torch.float32
        torch.testing.assert_close(target.fc.weight.data, model.fc.weight.data.float(), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------- other states


def messages(caplog: pytest.LogCaptureFixture, path: Path, **options: object) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="interpret"):
        read_checkpoint(path, **options)
    assert all(record.name == "interpret" and record.levelname == "INFO" for record in caplog.records)
    return caplog.messages


def test_other_states_are_identified_and_the_choice_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, averaged = net(0), net(1)
    content = {"model": plain.state_dict(), "model_ema": prefixed(averaged.state_dict(), "module.")}
    path = saved(tmp_path / "best.ckpt", content)
    assert assert_loads(path, plain).others == {"model_ema": state_sha256(averaged.state_dict())}
    assert assert_loads(path, averaged, branch="model_ema").others == {"model": state_sha256(plain.state_dict())}
    taken = "weights taken from 'model'; it also holds 'model_ema' (choose with --branch)"
    assert messages(caplog, path) == [f"{path}: {taken}"]
    assert messages(caplog, path, uri="runs:/3f2a/best.ckpt") == [f"runs:/3f2a/best.ckpt: {taken}"]
    assert messages(caplog, path, branch="model_ema") == [
        f"{path}: weights taken from 'model_ema'; it also holds 'model' (choose with --branch)"
    ]


def test_a_state_at_the_top_level_beside_a_nested_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    top = saved(tmp_path / "top.pt", net().state_dict() | {"ema": net(1).state_dict()})
    assert list(read_checkpoint(top).others) == ["ema"]
    assert messages(caplog, top)[0].endswith("taken from the top level; it also holds 'ema' (choose with --branch)")
    assert read_checkpoint(top, branch="ema").others == {}  # no branch is the name of the top level
    nested = saved(tmp_path / "nested.pt", {"class_weights": torch.ones(3), "model": net().state_dict()})
    assert (read_checkpoint(nested).branch, read_checkpoint(nested).others) == ("model", {})


def test_nothing_is_digested_or_said_where_there_are_no_other_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(interpret.checkpoint, "tensor_sha256", lambda _: pytest.fail("digests a tensor"))
    parameter = net().fc.weight.detach()
    optimizers = {
        "optimizer": {"state": {0: {"exp_avg": parameter}, "fc.weight": {"exp_avg": parameter}}},
        "optimizer_states": [{"state": {0: {"exp_avg": parameter}}}],
        "optim_state_dict": {"fc.weight": parameter},
    }
    path = saved(tmp_path / "c.pt", {"model": net().state_dict(), **optimizers})
    assert messages(caplog, path) == []
    assert read_checkpoint(path).others == {}


@pytest.mark.parametrize("kind", ["sparse", "quantized", "meta", "nested"])
def test_other_states_without_a_digest_do_no_harm(tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        special = {
            "sparse": torch.eye(3, 4).to_sparse(),
            "quantized": torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.qint8),
            "meta": torch.empty(3, 4, device="meta"),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        }[kind]
        model = net()
        path = saved(tmp_path / "c.pt", {"model": model.state_dict(), "small": {"x": torch.ones(2), "fc": special}})
        assert assert_loads(path, model).others == {"small": None}


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    content = {"model": net().state_dict()}
    content["self"] = content
    assert assert_loads(saved(tmp_path / "c.pt", content), net()).branch == "model"


# -------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_shards_with_an_index(tmp_path: Path, form: str) -> None:
    model = net()
    index = sharded(tmp_path / "model", model.state_dict(), form)
    shards = sorted(path for path in index.parent.iterdir() if path != index)
    assert len(shards) == 3
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted([index, *shards])]
    for given_path in (index, index.parent):
        loaded = assert_loads(given_path, model)
        assert (loaded.format, loaded.branch, loaded.others) == (f"{form}-sharded", None, {})
        assert (loaded.uri, loaded.path) == (str(given_path), index)
        assert loaded.file_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
        assert loaded.dtypes == {"float32": 12, "int64": 1}
    assert list(read_checkpoint(index).state) == sorted(model.state_dict())  # the order of the index
    index.rename(index.with_name("renamed"))
    assert read_checkpoint(index.with_name("renamed")).format == f"{form}-sharded"


def test_shards_of_several_formats_wrappers_and_branches(tmp_path: Path) -> None:
    student, teacher = net(0), net(1)
    state = prefixed(student.state_dict(), "module.student.") | prefixed(teacher.state_dict(), "module.teacher.")
    index = sharded(tmp_path / "model", state, "zip", count=2)
    shard = index.parent / "pytorch_model-00002-of-00002.bin"
    saved(shard, torch.load(shard), _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="choose one with branch='student'"):
        load_state(Net(), read_checkpoint(index))
    loaded = assert_loads(index, teacher, branch="teacher")
    assert loaded.format == "legacy+zip-sharded"
    assert loaded.stripped_prefixes == ("module.", "teacher.")


def test_every_shard_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = sharded(tmp_path / "model", net().state_dict())
    opened = []
    read = interpret.checkpoint._read_safetensors
    monkeypatch.setattr(interpret.checkpoint, "_read_safetensors", lambda file: opened.append(file.name) or read(file))
    read_checkpoint(index)
    assert opened == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def test_links_to_shards_as_in_the_cache_of_hugging_face(tmp_path: Path) -> None:
    model = net()
    index = sharded(tmp_path / "blobs", model.state_dict())
    (tmp_path / "snapshot").mkdir()
    for path in index.parent.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert_loads(tmp_path / "snapshot", model)
    (tmp_path / "blobs" / "model-00002-of-00003.safetensors").unlink()
    message = refusal(tmp_path / "snapshot")
    assert "model-00002-of-00003.safetensors' does not exist" in message
    assert "did you mean 'model-00002" not in message


def test_several_indexes_in_a_folder(tmp_path: Path) -> None:
    for form in ("safetensors", "zip"):
        sharded(tmp_path, net().state_dict(), form, count=1)
    message = refusal(tmp_path)
    assert "is a directory; give one of its files: " in message
    assert "model.safetensors.index.json" in message
    assert "pytorch_model.bin.index.json" in message


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "sub\\x", "..", ".", "", "C:\\x", "C:x", "x/", "a\0b"],
)
def test_shards_outside_the_folder_of_the_index_are_refused(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": name}}))
    message = refusal(index)
    assert f"names the shard {name!r}" in message
    assert "only read from the index's own folder" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "b"', "cannot be read as one"),
        ("{", "cannot be read as one"),
        ('{"weight_map": ' + "[" * 100_000, "cannot be read as one"),
        ('{"a": "\xff"}', "cannot be read as one"),
        ('{"architectures": ["Net"]}', "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": ["a"]}', "has no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "has no 'weight_map'"),
    ],
)
def test_malformed_indexes(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content.encode("latin-1"))
    assert message in refusal(path)


def test_shards_that_are_missing_damaged_or_no_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model", net().state_dict())
    shard = index.parent / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    assert "names 3 shards, of which 1 are not beside it: model-00002-of-00003.safetensors" in refusal(index)
    for damaged, message in (
        (content[:100], "-00002-of-00003.safetensors' is truncated"),
        (content[:-1], "-00002-of-00003.safetensors' is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "-00002-of-00003.safetensors' is a Git-LFS pointer"),
        (index.read_bytes(), "'model-00002-of-00003.safetensors' as a shard, which is JSON"),
        (b"", "-00002-of-00003.safetensors' is empty"),
    ):
        shard.write_bytes(damaged)
        assert message in refusal(index)
    shard.unlink()
    shard.mkdir()
    assert "-00002-of-00003.safetensors' is a directory" in refusal(index)


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_an_index_and_shards_that_disagree(tmp_path: Path, form: str) -> None:
    index = sharded(tmp_path / "model", net().state_dict(), form)
    content = json.loads(index.read_text())
    places = content["weight_map"]
    shard = places["fc.weight"]

    index.write_text(json.dumps({"weight_map": {**places, "fc.extra": shard}}))
    assert f"{shard}' and its index" in refusal(index)
    assert "the shard does not hold 1 tensors: fc.extra" in refusal(index)

    index.write_text(json.dumps({"weight_map": {name: place for name, place in places.items() if name != "fc.weight"}}))
    assert "the shard holds, against the index, 1 tensors: fc.weight" in refusal(index)

    other = next(place for place in places.values() if place != shard)
    index.write_text(json.dumps({"weight_map": {**places, "fc.weight": other}}))
    assert ": fc.weight; copy or download both again" in refusal(index)


def test_a_shard_that_holds_no_tensors(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model", net().state_dict(), "zip", count=1)
    saved(index.parent / "pytorch_model-00001-of-00001.bin", [1, 2])
    assert "the shard does not hold 13 tensors: " in refusal(index)


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


def test_zip_archives_that_claim_more_than_the_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("reads it"))
    path = saved(tmp_path / "c.pt", net().state_dict())
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first of the directory at the end
    struct.pack_into("<I", content, entry + 24, 3 << 30)  # its uncompressed size
    path.write_bytes(content)
    message = refusal(path)
    assert f"has {len(content)} bytes, but the entries in it claim 322" in message
    assert "it was not read" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path, zipped: bool) -> None:
    content = {"model": net().state_dict(), "ema": {"x": torch.ones(1).expand(10**13)}}
    path = saved(tmp_path / "c.pt", content, _use_new_zipfile_serialization=zipped)
    assert "'x' in " in refusal(path)
    assert "claims 40000000000000 bytes, more than the file has" in refusal(path)


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


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float64(0.9), "numpy._core.multiarray.scalar"),
        (functools.partial(torch.relu), "functools.partial"),
        (nn.functional.relu, "torch.nn.functional.relu"),
    ],
)
def test_single_objects_are_named(tmp_path: Path, zipped: bool, value: object, name: str) -> None:
    content = {"state_dict": net().state_dict(), "best": value}
    message = refusal(saved(tmp_path / "last.ckpt", content, _use_new_zipfile_serialization=zipped))
    assert "holds more than weights: it asks for " in message
    assert name in message


def test_module_that_mlflow_pickled(tmp_path: Path) -> None:
    class Local(nn.Module):  # cloudpickle takes its code into the file
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

    pickle_module = types.SimpleNamespace(__name__="mlflow.pytorch.pickle_module", Pickler=cloudpickle.CloudPickler)
    path = saved(tmp_path / "model.pth", Local(), pickle_module=pickle_module)
    message = refusal(path)
    assert "is a pickled model, not its weights" in message
    assert "cloudpickle" in message


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


def test_torchscript(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "script.pt"))
    assert "is a TorchScript archive" in refusal(tmp_path / "script.pt")


# ------------------------------------------------------------------------------------------------- archives of export


class Shared(nn.Module):
    """Tied weights, counters, buffers that are not saved, strides of their own, nothing in it, half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        self.again = self.fc
        whole = torch.arange(12.0)
        self.register_buffer("part", whole[3:9].view(2, 3).t())
        self.register_buffer("rest", whole[9:])
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("rounded", torch.arange(3).bfloat16())
        self.register_buffer("loose", torch.ones(3), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.again(self.fc(self.norm(self.conv(images)).mean((2, 3)))) + self.part.sum() + self.loose.sum()


def exported(path: Path, model: nn.Module | None = None) -> tuple[Path, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    program = torch.export.export((model or Shared()).eval(), (torch.ones(2, 3, 8, 8),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.14 doubts weights in channels_last, and writes them as they are
        torch.export.save(program, path)
    return path, program


def repacked(source: Path, path: Path, change: dict[str, bytes | None]) -> Path:
    """The archive with entries, named by their ends, replaced or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = next((value for end, value in change.items() if name.endswith(end)), old.read(name))
            if content is not None:
                new.writestr(name, content)
    return path


def old_archive(path: Path, program: torch.export.ExportedProgram, state: bytes | None = None) -> Path:
    """As torch.export wrote it first: every part a file of torch.save."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    artifact = serialize(program)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr("serialized_state_dict.pt", artifact.state_dict if state is None else state)
        archive.writestr("serialized_constants.pt", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
    return path


def test_an_exported_network_gives_its_weights(tmp_path: Path) -> None:
    path, program = exported(tmp_path / "net.pt2")
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "pt2"
    assert checkpoint.module is None
    read = torch.export.load(path).state_dict  # the oracle
    for state in (program.state_dict, read):
        assert sorted(checkpoint.state) == sorted(state)
        assert state_sha256(checkpoint.state) == state_sha256(state)
    assert checkpoint.dtypes == {"float32": 13, "int64": 1, "bfloat16": 1}
    assert {"part", "empty", "again.weight"} <= checkpoint.state.keys()
    assert "loose" not in checkpoint.state


def test_numbers_of_exported_dtypes_are_those_of_torch() -> None:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE, _TORCH_TO_SERIALIZE_LAYOUT

    assert interpret.checkpoint.EXPORTED_DTYPES.items() <= _SERIALIZE_TO_TORCH_DTYPE.items()
    assert _TORCH_TO_SERIALIZE_LAYOUT[torch.strided] == interpret.checkpoint.STRIDED


def test_older_archives_of_export(tmp_path: Path) -> None:
    path, program = exported(tmp_path / "net.pt2")
    buffer = io.BytesIO()
    torch.save(program.state_dict, buffer)
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].split("/")[0]
    middle = repacked(path, tmp_path / "middle.pt2", {"_weights_config.json": None, "/byteorder": None})
    with zipfile.ZipFile(middle, "a") as archive:
        archive.writestr(f"{prefix}/data/weights/model.pt", buffer.getvalue())
    old = old_archive(tmp_path / "old.pt2", program)
    for file in (middle, old):
        assert read_checkpoint(file).format == "pt2"
        assert state_sha256(read_checkpoint(file).state) == state_sha256(program.state_dict)


def test_an_archive_of_several_networks_has_a_branch_for_each(tmp_path: Path) -> None:
    from torch.export.pt2_archive._package import package_pt2

    models = {name: Shared() for name in ("student", "teacher")}
    programs = {name: torch.export.export(model, (torch.ones(2, 3, 8, 8),)) for name, model in models.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package_pt2(tmp_path / "two.pt2", exported_programs=programs)
    assert "several states: student, teacher" in refusal(tmp_path / "two.pt2")
    teacher = read_checkpoint(tmp_path / "two.pt2", branch="teacher")
    assert state_sha256(teacher.state) == state_sha256(models["teacher"].state_dict())


def test_malicious_archives_of_export_are_never_executed(tmp_path: Path) -> None:
    victim, buffer = tmp_path / "pwned", io.BytesIO()
    program = exported(tmp_path / "net.pt2")[1]
    torch.save({"w": torch.ones(2), "x": Malicious(victim)}, buffer)
    path = old_archive(tmp_path / "old.pt2", program, buffer.getvalue())
    for options in ({}, {"trust_pickle": True}):
        assert "are a pickle that cannot be read safely" in refusal(path, **options)
        assert not victim.exists()
    with suppress(Exception):  # the control, and why torch.export.load is not used: it falls back to running the file
        torch.export.load(path)
    assert victim.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [{"as_int": 10**9}]}, "truncated or damaged"),
        ({"storage_offset": {"as_int": 10**6}}, "truncated or damaged"),
        ({"strides": [{"as_int": -1}]}, "truncated or damaged"),
        ({"sizes": [{"as_expr": "s0"}]}, "truncated or damaged"),
        ({"sizes": [{"as_int": 10**12}], "strides": [{"as_int": 0}]}, "claims 4000000000000 bytes"),
        ({"dtype": 99}, "'norm.bias' in .* is no plain tensor"),
        ({"layout": 1}, "'norm.bias' in .* is no plain tensor"),
    ],
)
def test_archives_of_export_that_lie(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path, _ = exported(tmp_path / "net.pt2")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("_weights_config.json"))
        config = json.loads(archive.read(name))
    config["config"]["norm.bias"]["tensor_meta"] |= change
    lie = repacked(path, tmp_path / "lie.pt2", {"_weights_config.json": json.dumps(config).encode()})
    assert re.search(message, refusal(lie))


def test_archives_of_export_in_parts(tmp_path: Path) -> None:
    path, _ = exported(tmp_path / "net.pt2")
    for number, (change, message) in enumerate(
        [
            ({"/weight_0": None}, "truncated or damaged"),
            ({"/weight_0": b"123"}, "truncated or damaged"),
            ({"_weights_config.json": b"[]"}, "truncated or damaged"),
            ({"_weights_config.json": None}, "without weights that can be read"),
            ({"/byteorder": b"big"}, "not little-endian"),
        ]
    ):
        assert message in refusal(repacked(path, tmp_path / f"{number}.pt2", change))


# ------------------------------------------------------------------------------------------------------ pickled modules


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("forced", [True, False])
def test_a_trusted_module_gives_its_weights_and_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, zipped: bool, forced: bool
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    model = net()
    path = saved(tmp_path / "net.pt", nn.DataParallel(model), _use_new_zipfile_serialization=zipped)
    assert "pass --trust-pickle (trust_pickle=True): the file's code runs with your rights" in refusal(path)
    assert not caplog.records
    loaded = assert_loads(path, model, trust_pickle=True)
    assert loaded.format == "pickled module (trusted)"
    assert loaded.stripped_prefixes == ("module.",)
    assert loaded.module is not None
    assert state_sha256(loaded.module.module.state_dict()) == state_sha256(model.state_dict())
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: unpickled on trust, which runs the file's code with your rights"
    ]
    own = load_state(loaded.module, read_checkpoint(path, trust_pickle=True))
    assert state_sha256(own.state) == state_sha256(model.state_dict())


def test_trust_runs_nothing_that_need_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "net.pt", {"model": net().state_dict()})
    monkeypatch.setattr(interpret.checkpoint, "_unpickle", lambda file: pytest.fail("unpickled"))
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert (checkpoint.format, checkpoint.module) == ("zip", None)


def test_trusted_dicts_of_modules_and_of_other_objects(tmp_path: Path) -> None:
    plain, averaged = net(0), net(1)
    path = saved(tmp_path / "yolo.pt", {"epoch": 3, "ema": averaged.half(), "model": plain})
    for branch, model in (("model", plain), ("ema", averaged)):
        loaded = read_checkpoint(path, branch=branch, trust_pickle=True)
        assert loaded.format == "pickled module (trusted)"
        assert (loaded.branch, list(loaded.others)) == (branch, ["ema" if branch == "model" else "model"])
        assert loaded.module is not None
        for state in (loaded.state, loaded.module.state_dict()):
            assert state_sha256(state) == state_sha256(model.state_dict())
    assert read_checkpoint(path, trust_pickle=True).branch == "model"
    content = {"state_dict": plain.state_dict(), "args": argparse.Namespace(lr=1)}
    loaded = assert_loads(saved(tmp_path / "args.pt", content), plain, trust_pickle=True)
    assert (loaded.format, loaded.module) == ("pickle (trusted)", None)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_of_a_file_runs_on_trust_alone(tmp_path: Path, zipped: bool) -> None:
    victim = tmp_path / "pwned"
    path = saved(tmp_path / "c.pt", {"w": torch.ones(2), "x": Malicious(victim)}, _use_new_zipfile_serialization=zipped)
    refusal(path)
    assert not victim.exists()
    assert list(read_checkpoint(path, trust_pickle=True).state) == ["w"]
    assert victim.is_dir()


def test_a_module_whose_class_is_not_to_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_old.py").write_text("from torch import nn\n\nclass Old(nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import networks_of_old

    path = saved(tmp_path / "old.pt", networks_of_old.Old(2, 2))
    monkeypatch.undo()
    del sys.modules["networks_of_old"]
    before = list(sys.path)
    message = refusal(path, trust_pickle=True)
    assert "cannot be unpickled (ModuleNotFoundError: No module named 'networks_of_old')" in message
    assert "run in the folder that holds them or set PYTHONPATH" in message
    monkeypatch.chdir(tmp_path)
    assert type(read_checkpoint(path, trust_pickle=True).module).__name__ == "Old"
    assert sys.path == before
    del sys.modules["networks_of_old"]


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
@given(
    place=st.floats(0, 0.999),
    value=st.integers(0, 255),
    form=st.sampled_from(["zip", "legacy", "safetensors", "index"]),
)
def test_no_damage_escapes_as_another_error(tmp_path: Path, place: float, value: int, form: str) -> None:
    path = tmp_path / form
    state = nn.Linear(2, 2).state_dict()
    if form == "index":
        path = sharded(tmp_path / "sharded", state, count=2)
    elif form == "safetensors":
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


@pytest.mark.parametrize(
    ("name", "content", "step"),
    [
        ("net.pt", {}, None),
        ("epoch_9.pt", {}, 9),
        ("epoch=2-step=300.ckpt", {}, 300),
        ("epoch=2-step=300.ckpt", {"epoch": 2, "global_step": 301}, 301),
        ("net-epoch12.pt", {}, 12),
        ("global_step_100/checkpoint.pth", {}, 100),
        ("global_step_100/epoch_3.pth", {}, 3),  # the file's own name counts before its folder's
        ("footstep7.pt", {}, None),
        ("net.pt", {"epoch": 4, "step": "many"}, 4),
        ("net.pt", {"epoch": True}, None),
        ("net.pt", {"iteration": -1}, None),
    ],
)
def test_the_step_that_a_checkpoint_says(
    tmp_path: Path, name: str, content: dict[str, object], step: int | None
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), **content}, path)
    assert read_checkpoint(path).step == step
