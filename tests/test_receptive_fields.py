"""Receptive fields against published ones, and against which pixels really reach each position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import interpret
from interpret.evidence import Call, ReceptiveField
from interpret.tracing import without_onednn

SIDE = 20


def last_spatial(model: nn.Module, side: int) -> Call:
    calls = interpret.layers(model, torch.rand(1, 3, side, side))
    return [call for call in calls if call.spatial_shape is not None and call.spatial_shape != (1, 1)][-1]


@pytest.mark.parametrize(
    ("name", "side", "size"),
    [
        # Araujo et al. 2019 for the same layers; torchvision's ResNet-50 strides in its 3 x 3 convolutions: theirs 483
        ("alexnet", 224, 195),
        ("vgg16", 224, 212),
        ("inception_v3", 299, 1311),
        ("resnet18", 224, 435),
        ("resnet50", 224, 427),
    ],
)
def test_published_sizes(name: str, side: int, size: int) -> None:
    arguments = {"init_weights": False} if name == "inception_v3" else {}
    field = last_spatial(torchvision.models.get_model(name, weights=None, **arguments), side).receptive_field
    assert field is not None
    assert field.size == (size, size)
    assert field.stride == (32, 32)


def reached(model: nn.Module, side: int = SIDE) -> list[list[set[tuple[int, int]]]]:
    """Of every position of the output the pixels that reach it: NaN spreads through whatever depends on it."""
    images = torch.rand(side * side, 1, side, side)
    images.view(side * side, -1).fill_diagonal_(torch.nan)
    # Winograd's and Fourier's way of convolving would spread NaN further
    with torch.no_grad(), without_onednn(), torch.backends.nnpack.flags(enabled=False):
        broken = model(images).isnan().any(1)
    rows, columns = broken.shape[1:]
    pixels = [(index // side, index % side) for index in range(side * side)]
    return [
        [
            {pixel for pixel, is_hit in zip(pixels, broken[:, i, j].tolist(), strict=True) if is_hit}
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def assert_fields_are_those_reached(model: nn.Module, side: int = SIDE, exactly: bool = True) -> None:
    """Every position sees nothing outside of its field; and, inside of the picture, all of it to its edges."""
    model.eval()
    root = nn.Sequential(model)
    field = interpret.layers(root, torch.rand(1, 1, side, side))[-1].receptive_field
    assert field is not None
    for i, row in enumerate(reached(model, side)):
        for j, pixels in enumerate(row):
            for axis, index in enumerate((i, j)):
                start = field.start[axis] + index * field.stride[axis]
                stop = start + field.size[axis]
                places = [pixel[axis] for pixel in pixels]
                assert all(start <= place < stop for place in places), (i, j, axis, field)
                if exactly and inside(field, i, j, side):  # elsewhere padding on the way may cut a field short
                    assert (min(places), max(places)) == (start, stop - 1), (i, j, axis, field)


def inside(field: ReceptiveField, i: int, j: int, side: int) -> bool:
    starts = [start + index * step for start, index, step in zip(field.start, (i, j), field.stride, strict=True)]
    return all(start >= 0 and start + size <= side for start, size in zip(starts, field.size, strict=True))


LAYERS = st.one_of(
    st.builds(
        lambda kernel, stride, padding, dilation: nn.Conv2d(1, 1, kernel, stride, padding, dilation),
        st.tuples(st.integers(1, 4), st.integers(1, 3)), st.integers(1, 2), st.integers(0, 1), st.integers(1, 2),
    ),
    st.builds(lambda kernel, stride: nn.MaxPool2d(kernel, stride), st.integers(1, 3), st.integers(1, 2)),
    st.builds(lambda kernel: nn.AvgPool2d(kernel, ceil_mode=False), st.integers(1, 2)),
    st.just(nn.ReLU(inplace=True)),
    st.just(nn.BatchNorm2d(1)),
    st.just(nn.ZeroPad2d((1, 0, 0, 1))),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(LAYERS, min_size=1, max_size=4))
def test_random_chains(layers: Sequence[nn.Module]) -> None:
    model = nn.Sequential(*layers)
    try:
        model(torch.rand(1, 1, SIDE, SIDE))
    except RuntimeError:  # nothing is left of the picture
        reject()
    assert_fields_are_those_reached(model)


class Branches(nn.Module):
    """A residual, a concatenation, functional calls, channels moved to the end and a gate over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 4, 5, padding=2)
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1))
        self.mix = nn.Linear(8, 4)
        self.normalization = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = torch.cat([self.wide(x), x + self.deep(x)], 1)
        x = self.normalization(self.mix(x.flatten(2).transpose(1, 2)))  # tokens
        x = x.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        x = x.view(len(x), 2, 2, SIDE, SIDE).transpose(1, 2).reshape(len(x), 4, SIDE, SIDE)  # a channel shuffle
        return functional.avg_pool2d(x[:, :, 2:, ::2], 2)


def test_branches_tokens_and_functions() -> None:
    assert_fields_are_those_reached(Branches())


class Resampled(nn.Module):
    """A convolution, and what makes another size of it."""

    def __init__(self, resample: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.convolution(x))


@pytest.mark.parametrize(
    "resample",
    [
        lambda x: functional.interpolate(x, scale_factor=2),
        lambda x: functional.interpolate(x, (25, 30)),
        lambda x: functional.interpolate(x, scale_factor=0.45),
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: functional.interpolate(x, scale_factor=0.25, mode="bilinear"),
        lambda x: functional.interpolate(x, (7, 40), mode="bilinear", align_corners=True),
        lambda x: functional.adaptive_avg_pool2d(x, (5, 7)),
        lambda x: functional.interpolate(functional.adaptive_avg_pool2d(x, 1), (18, 18), mode="bilinear"),
        lambda x: functional.adaptive_avg_pool2d(x, 1) + torch.ones(1, 2, 4, 4),
    ],
)
def test_resampled_positions_see_nothing_outside_of_their_field(resample: Callable[[Tensor], Tensor]) -> None:
    assert_fields_are_those_reached(Resampled(resample), exactly=False)


class Written(nn.Module):
    """Parts of tensors that are written to in place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 7, padding=3)
        self.end = nn.Identity()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.near(x), self.far(x)
        if self.how == "a part":
            y[:, :2].add_(z[:, :2])
        elif self.how == "a new tensor":
            y = torch.zeros_like(z)
            y[:, :2].add_(z[:, :2])
            y = y + self.near(x)
        elif self.how == "behind a view":
            view = y.view(len(y), 2, 2, *y.shape[2:])
            y.add_(z)
            y = view.flatten(1, 2)
        elif self.how == "swapped":
            y = y.transpose(2, 3)
        elif self.how == "control flow":
            y = torch.cond(y.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (y,))
        elif self.how == "nothing left":
            y = functional.adaptive_avg_pool2d(y, (0, 0))
        return self.end(y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["a part", "a new tensor", "behind a view", "swapped", "control flow", "nothing left"])
def test_what_is_written_in_place_has_no_stale_field(how: str) -> None:
    table = {call.key: call for call in interpret.layers(Written(how), torch.rand(1, 1, 12, 12))}
    assert table["far"].receptive_field is not None
    assert table["end"].receptive_field is None


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.Sigmoid())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        x = x * self.squeeze(x)
        return self.head(x.mean((2, 3)))


def test_gates_do_not_count_and_vectors_see_all() -> None:
    table = {call.key: call for call in interpret.layers(Gated(), torch.rand(1, 1, 12, 12))}
    local, gate, head = (table[key].receptive_field for key in ("convolution", "squeeze", "head"))
    assert local is not None
    assert gate is not None
    assert head is not None
    assert (local.size, gate.size, head.size) == ((3, 3), (12, 12), (12, 12))


class Mixer(nn.Module):
    """Every token is mixed with all others, and then added to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 5, 4, 4)
        self.mix = nn.Linear(9, 9)
        self.end = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2)
        return self.end(tokens + self.mix(tokens))


class Unfollowed(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.end = nn.Identity()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        if self.how == "transposed":
            x = self.up(x)
        elif self.how == "rolled":
            x = x.roll(1, 2)
        elif self.how == "attention":
            x = x @ x.transpose(2, 3)
        elif self.how == "replaced":
            whole = torch.zeros_like(x)
            whole[:, :, 1:] = x[:, :, :-1]
            x = whole
        return self.end(x)


def test_tokens_that_were_mixed_see_all() -> None:
    field = interpret.layers(Mixer(), torch.rand(1, 1, 12, 12))[-1].receptive_field
    assert field is not None
    assert field.size == (12, 12)


@pytest.mark.parametrize("how", ["transposed", "rolled", "attention", "replaced"])
def test_none_is_better_than_a_wrong_one(how: str) -> None:
    table = {call.key: call for call in interpret.layers(Unfollowed(how), torch.rand(1, 1, 12, 12))}
    assert table["convolution"].receptive_field is not None
    assert table["end"].receptive_field is None


def test_fields_of_sequences_are_unknown() -> None:
    assert interpret.layers(nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 4))[0].receptive_field is None
