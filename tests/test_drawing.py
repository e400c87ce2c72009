from __future__ import annotations

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from bundles import bundle, network, with_attributions, with_features
from interpret import drawing


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    """The image as rows of RGB triples."""
    return np.asarray(image.convert("RGB")).tolist()


def test_viridis_is_within_one_level_of_the_published_table():
    matplotlib = pytest.importorskip("matplotlib")
    published = np.asarray(matplotlib.colormaps["viridis"](np.linspace(0, 1, drawing.LEVELS)))[:, :3] * 255
    # matplotlib snaps 255 samples to its 256 entries: one step more
    assert np.abs(drawing.VIRIDIS - published).max() <= 2.5


def test_diverging_palette_is_brightest_at_zero_and_dark_at_both_ends():
    middle = drawing.DIVERGING[drawing.LEVELS // 2]
    assert middle.tolist() == [247, 247, 247]
    assert drawing.DIVERGING[0].tolist() == [5, 48, 97]
    assert drawing.DIVERGING[-1].tolist() == [103, 0, 31]


def test_a_4x4_picture_drawn_by_hand():
    # two tiles of 2 x 2 on the scale [0, 4] side by side are 2 rows of "ab|cd"; enlarged by 1, one transparent column
    values = np.array([[[0.0, 4.0], [2.0, 1.0]], [[4.0, 4.0], [0.0, 3.0]]])
    drawn = drawing.tile(drawing.indices(values, 0, 4), columns=2)
    assert drawn.tolist() == [[0, 254, 255, 254, 254], [127, 64, 255, 0, 190]]


def test_tiles_are_enlarged_by_whole_factors_and_empty_places_are_gutter():
    drawn = drawing.tile(np.array([[[1]], [[2]], [[3]]], np.uint8), columns=2, scale=2)
    assert drawn.tolist() == [
        [1, 1, 255, 2, 2],
        [1, 1, 255, 2, 2],
        [255, 255, 255, 255, 255],
        [3, 3, 255, 255, 255],
        [3, 3, 255, 255, 255],
    ]


def test_our_png_is_what_pillow_reads_back():
    generator = np.random.default_rng(0)
    index = generator.integers(0, 256, (13, 7), dtype=np.uint8)
    read = Image.open(io.BytesIO(drawing.encode_png(index, drawing.VIRIDIS)))
    assert read.mode == "P"
    assert np.array_equal(np.asarray(read), index)
    assert np.array_equal(np.asarray(read.convert("RGBA"))[..., 3] == 0, index == drawing.GUTTER)
    inside = index < drawing.LEVELS
    assert np.array_equal(np.asarray(read.convert("RGB"))[inside], drawing.VIRIDIS[index[inside]])
    for channels in (3, 4):
        colours = generator.integers(0, 256, (5, 6, channels), dtype=np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(drawing.encode_png(colours)))), colours)


def test_png_has_correct_checksums_and_one_data_chunk():
    content = drawing.encode_png(np.zeros((2, 2), np.uint8), drawing.VIRIDIS)
    position, kinds = 8, []
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        body = content[position + 4 : position + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(content[position + 8 + length : position + 12 + length], "big")
        kinds.append(body[:4])
        position += 12 + length
    assert kinds == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]


def test_first_layer_kernels_are_colours_about_mid_gray():
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, 0], weight[0, 1], weight[0, 2] = 0.5, 0.0, -0.5
    picture = drawing.kernel_image(weight)
    assert picture.mode == "RGBA"
    # red at +limit, green at 0, blue at -limit
    assert pixels(picture)[0][0] == [255, 128, 0]


def test_deeper_kernels_are_drawn_on_a_scale_symmetric_about_zero():
    weight = np.array([-2.0, 0.0, 1.0, 2.0], np.float32).reshape(2, 2, 1, 1)
    picture = drawing.kernel_picture(weight, width=2)
    assert (picture.low, picture.high) == (-2.0, 2.0)
    assert picture.pixels.tolist() == [[0, 127], [190, 254]]
    assert pixels(picture.image())[0] == [[5, 48, 97], [247, 247, 247]]


def test_kernel_limit_is_shared_when_given():
    weak = drawing.kernel_picture(np.full((1, 1, 1, 1), 0.1), limit=1.0, width=1)
    assert weak.pixels.tolist() == [[round((0.1 + 1) / 2 * 254)]]


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (8, 5, 3, 3), (16, 16, 1, 1), (10, 20), (40, 3, 7, 7), (1, 2, 1, 5)])
def test_every_shape_of_weights_has_a_picture(shape):
    image = drawing.kernel_image(np.random.default_rng(0).normal(size=shape))
    assert min(image.size) >= 1
    assert max(image.size) < 2000


def test_wrong_shapes_are_quoted():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        drawing.kernel_image(np.zeros(3))
    with pytest.raises(ValueError, match=r"\(1, 1, 1, 1\)"):
        drawing.activation_image(np.zeros((1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        drawing.overlay(np.zeros((2, 2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(1, 2, 2\)"):
        drawing.overlay(np.zeros((2, 2)), np.zeros((1, 2, 2)))


def test_activations_use_viridis_from_zero_and_diverging_colours_where_negative():
    image = drawing.activation_image(np.array([[0.0, 1.0]]))
    assert pixels(image)[0][0] == [68, 1, 84]
    assert pixels(image)[0][-1] == [253, 231, 37]
    signed = drawing.activation_image(np.array([[-1.0, 1.0]]))
    assert pixels(signed)[0][0] == [5, 48, 97]


def test_value_range_ignores_what_is_not_finite():
    assert drawing.value_range([np.array([np.nan, np.inf, 0.0, 2.0])], percentile=100) == (0.0, 2.0)
    assert drawing.value_range([np.array([-3.0, 1.0])], percentile=100) == (-3.0, 3.0)
    assert drawing.value_range([np.array([np.nan])]) == (0.0, 1.0)
    assert drawing.value_range([np.zeros(4)]) == (0.0, 1.0)


def test_non_finite_values_are_drawn_at_the_ends():
    drawn = drawing.indices(np.array([np.nan, -np.inf, np.inf]), 0, 1)
    assert drawn.tolist() == [0, 0, 254]


def test_overlay_blends_colour_over_gray_by_hand():
    image = np.full((1, 1, 3), 100, np.uint8)
    # 0: 0.3 * (68, 1, 84) + 0.7 * 100; 1: 0.65 * (253, 231, 37) + 0.35 * 100
    assert pixels(drawing.overlay(image, np.zeros((1, 1)))) == [[[90, 70, 95]]]
    assert pixels(drawing.overlay(image, np.ones((1, 1)))) == [[[199, 185, 59]]]


def test_overlay_takes_pil_floats_tensors_and_small_heatmaps():
    torch = pytest.importorskip("torch")
    photo = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    heat = np.random.default_rng(1).random((3, 4)).astype(np.float32)
    expected = np.asarray(drawing.overlay(photo, heat))
    assert expected.shape == (6, 8, 3)
    chw = torch.from_numpy(photo.transpose(2, 0, 1).copy()).float() / 255
    for image in (Image.fromarray(photo), photo / 255, chw, torch.from_numpy(photo)):
        assert np.array_equal(np.asarray(drawing.overlay(image, torch.from_numpy(heat))), expected)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 7, 7), (224, 224)), ((1, 5, 9), (31, 17)), ((1, 56, 56), (24, 80))]
)
def test_heatmap_agrees_with_torch(shape, size):
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values = torch.from_numpy(maps).double().clamp(min=0)

    def unit(z):
        low, high = z.amin((-2, -1), keepdim=True), z.amax((-2, -1), keepdim=True)
        return (z - low) / (high - low)

    flat = unit(values).reshape(1, -1, *shape[-2:])
    enlarged = torch.nn.functional.interpolate(flat, size, mode="bilinear", align_corners=False)
    expected = unit(enlarged.reshape(*shape[:-2], *size))
    assert np.abs(drawing.heatmap(maps, size) - expected.numpy()).max() < 1e-6


def test_heatmap_of_a_flat_map_is_zero():
    assert not drawing.heatmap(np.full((1, 3, 3), 5.0), (6, 6)).any()
    assert not drawing.heatmap(np.full((1, 3, 3), -5.0), (6, 6)).any()


def test_shared_heatmaps_keep_their_ratio():
    strong = np.array([[0.0, 4.0]])
    heat = drawing.heatmap(np.stack([strong, strong / 4]), (1, 2), shared=True)
    assert heat.tolist() == [[[0.0, 1.0]], [[0.0, 0.25]]]


def test_drawing_imports_neither_torch_nor_matplotlib():
    code = "import sys, interpret.drawing; sys.exit(bool({'torch', 'matplotlib', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_previews_are_one_sheet_per_call_and_kind(tmp_path):
    with bundle(network(widths=(8, 12)), tmp_path / "bundle") as evidence:
        written = drawing.write_previews(evidence)
        again = [path.read_bytes() for path in drawing.write_previews(evidence.folder)]
    names = [str(path.relative_to(tmp_path / "bundle" / "previews")) for path in written]
    assert names[:4] == [f"inputs/{number:03d}-image_{number:02d}.png" for number in range(4)]
    assert names[4:] == [
        f"{kind}/{slug}.png" for slug in ("000-conv1", "003-layer1.conv") for kind in ("kernels", "activations", "maps")
    ]
    assert [path.read_bytes() for path in written] == again
    sheet = Image.open(io.BytesIO(again[-1]))  # two methods, four images of 16 x 16, two pixels between them
    assert (sheet.mode, sheet.size) == ("P", (4 * 18 - 2, 2 * 18 - 2))


def test_activations_are_decoded_to_their_values(tmp_path):
    with bundle(network(widths=(8, 12)), tmp_path / "bundle") as evidence:
        values = drawing.decode_activations(evidence, "conv1")
        low, high = (evidence.array("activations", f"conv1/{end}") for end in ("minimum", "maximum"))
    assert values.shape == (4, 8, 16, 16)
    assert np.allclose(values.min((2, 3)), low)
    assert np.allclose(values.max((2, 3)), high)


@pytest.mark.parametrize(("shape", "size"), [((13, 17), (5, 4)), ((8, 8), (8, 8)), ((4, 6), (8, 18))])
def test_attributions_are_averaged_over_equal_parts(shape, size):
    values = np.random.default_rng(0).normal(size=(1, 3, *shape))
    view = drawing.attribution_view(values, "input-x-gradient", size)[0]
    fine = values[0].sum(0).repeat(size[0], 0).repeat(size[1], 1)  # every part a whole number of copies
    expected = fine.reshape(size[0], shape[0], size[1], shape[1]).mean((1, 3))
    assert np.abs(view - expected).max() < 1e-12


def test_attributions_are_reduced_as_the_field_draws_them():
    values = np.array([1.0, -3.0, 0.5]).reshape(1, 3, 1, 1)
    assert drawing.attribution_view(values, "saliency", (1, 1)).tolist() == [[[3.0]]]
    assert drawing.attribution_view(values, "full-grad", (1, 1)).tolist() == [[[4.5]]]
    assert drawing.attribution_view(values, "integrated-gradients", (1, 1)).tolist() == [[[-1.5]]]
    assert drawing.attribution_view(values, "deconvnet", (1, 1)).ravel().tolist() == [1.0, -3.0, 0.5]
    assert drawing.attribution_view(values[:, :1], "deconvnet", (1, 1)).tolist() == [[[1.0]]]
    assert drawing.attribution_view(np.full((1, 3, 1, 1), np.nan), "saliency", (1, 1)).tolist() == [[[0.0]]]


def test_attribution_tiles_by_hand():
    colours = drawing.attribution_tile(np.array([2.0, 0.0, -1.0]).reshape(3, 1, 1), "guided-backprop", 2.0)
    assert colours.tolist() == [[[255, 128, 64]]]
    assert drawing.attribution_tile(np.array([[0.0, 2.0]]), "saliency", 2.0).tolist() == [[[68, 1, 84], [253, 231, 37]]]
    signed = drawing.attribution_tile(np.array([[-2.0, 0.0, 9.0]]), "integrated-gradients", 2.0)
    assert signed.tolist() == [[[5, 48, 97], [247, 247, 247], [103, 0, 31]]]


def test_the_limit_of_attributions_is_robust():
    values = np.zeros(1000)
    values[:20] = -1.0
    values[0] = 99.0
    assert drawing.attribution_limit([values]) == 1.0
    assert drawing.attribution_limit([np.zeros(4)]) == 1.0
    assert drawing.attribution_limit([np.eye(40)]) == 1.0


def test_previews_of_attributions_and_features(tmp_path):
    def edit(content):
        with_attributions(content)
        with_features(content)

    with bundle(network(widths=(8, 12)), tmp_path / "bundle", edit=edit) as evidence:
        root = tmp_path / "bundle" / "previews"
        written = {str(path.relative_to(root)): path.read_bytes() for path in drawing.write_previews(evidence)}
        crops = evidence.array("features", "conv1/5/crops")
    names = ("saliency", "integrated-gradients", "guided-backprop")
    assert [name for name in written if name.startswith("attributions")] == [
        f"attributions/{name}.png" for name in names
    ]
    tile = 16 * 7
    assert Image.open(io.BytesIO(written["attributions/saliency.png"])).size == (4 * tile + 9, 2 * tile + 3)
    feature = np.asarray(Image.open(io.BytesIO(written["features/000-conv1-5.png"])))
    assert feature.shape == (19, 19 + 3 + 3 * 8 + 6, 3)
    assert np.array_equal(feature[:8, 22:30], crops[0])


def test_a_blank_map_says_so_in_its_preview():
    images = np.full((1, 80, 80, 3), 90, np.uint8)
    maps = np.stack([np.zeros((1, 4, 4)), np.eye(4)[None]])
    sheet = drawing._indexed_overlays(images, maps)
    white = (np.asarray(sheet.image().convert("RGB")) == 255).all(2)
    assert 40 < white[:80].sum() < 2000  # the letters
    assert not white[82:].any()
