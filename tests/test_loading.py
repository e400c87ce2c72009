import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from checkpoints import Net, net, saved
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
