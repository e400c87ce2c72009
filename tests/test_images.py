import hashlib
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from interpret.errors import ImageError
from interpret.images import FORMATS, find_images, image_names, load_images, probe_from_tensor, read_image
from interpret.preprocessing import PIXEL_BUDGET, Preprocessing
from pictures import noise, photo, written

WHOLE = Preprocessing(resize=None, crop=None, source="options")


# ------------------------------------------------------------------------------------------------------------- finding


def test_a_folder_is_searched_to_its_depth_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "a.webp", "c/d/e.tiff", "花/猫 1.jpeg", "a b'\"#%.bmp", "z.gif", "y.ppm"]
    written(tmp_path, *names, ".hidden.png", ".cache/x.png", "c/._mac.jpg")
    (tmp_path / "notes.txt").touch()
    found = find_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(names)
    assert find_images(str(tmp_path)) == found
    assert image_names(found, tmp_path) == tuple(sorted(names))


def test_a_hidden_folder_is_searched_where_it_is_what_was_asked_for(tmp_path: Path) -> None:
    written(tmp_path, ".cache/x.png")
    assert len(find_images(tmp_path / ".cache")) == 1


def test_one_file_and_globs(tmp_path: Path) -> None:
    first, second, odd = written(tmp_path, "a/1.png", "b/2.png", "b/[x].png")
    (tmp_path / "b" / "3.txt").touch()
    assert find_images(first) == (first,)
    assert find_images(odd) == (odd,)
    assert find_images(f"{tmp_path}/b/[0-9].*") == (second,)
    assert find_images(f"{tmp_path}/**/*.png") == (first, second, odd)


def test_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "photo.heic").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"only files with the suffix \.heic, \.txt; expected \.jpg"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match=r"no images in .*empty': there are no files"):
        find_images(tmp_path / "empty")
    with pytest.raises(ImageError, match="no images in"):
        find_images(f"{tmp_path}/*.png")
    with pytest.raises(ImageError, match="does not exist; did you mean 'empty'"):
        find_images(tmp_path / "emtpy")
    with pytest.raises(ImageError, match="does not exist"):
        find_images(tmp_path / "no" / "where")


def test_names_are_relative_to_the_root_or_the_common_folder(tmp_path: Path) -> None:
    paths = written(tmp_path, "x/a/1.png", "x/b/1.png")
    assert image_names(paths) == ("a/1.png", "b/1.png")
    assert image_names(paths, tmp_path) == ("x/a/1.png", "x/b/1.png")
    assert image_names(paths[:1]) == ("1.png",)
    assert image_names(paths[:1], tmp_path / "x" / "b") == ("../a/1.png",)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_names_that_are_not_utf8_can_be_written_as_json(tmp_path: Path) -> None:
    (path,) = written(tmp_path, os.fsdecode(b"caf\xe9.png"))
    assert image_names([path]) == ("caf\ufffd.png",)
    assert json.dumps(load_images([path], WHOLE).names, ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif", "jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    picture = photo()
    path = tmp_path / f"x.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", picture.size)
    difference = np.abs(np.asarray(image, int) - np.asarray(picture, int))
    assert difference.mean() < (8 if suffix in ("gif", "jpg") else 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(
        np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [9, 9, 9], [255, 255, 255]]], np.uint8)
    )
    # what a camera stores so that the viewer's operation gives the upright picture
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), upright)


def decoded(path: Path, image: Image.Image, **options: object) -> list[list[int]]:
    image.save(path, **options)
    return np.asarray(read_image(path)).reshape(-1, 3).tolist()


def test_grey_and_bilevel(tmp_path: Path) -> None:
    assert decoded(tmp_path / "l.png", Image.fromarray(np.array([[0, 7, 255]], np.uint8))) == [
        [0] * 3,
        [7] * 3,
        [255] * 3,
    ]
    assert decoded(tmp_path / "1.png", Image.fromarray(np.array([[False, True]]))) == [[0] * 3, [255] * 3]


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)  # v / 257, rounded
    expected = [[v] * 3 for v in (0, 0, 1, 1, 128, 255)]
    assert decoded(tmp_path / "x.png", Image.fromarray(values)) == expected
    assert decoded(tmp_path / "x.tiff", Image.fromarray(values)) == expected
    (tmp_path / "x.pgm").write_bytes(b"P5 6 1 65535\n" + values.astype(">u2").tobytes())
    assert np.asarray(read_image(tmp_path / "x.pgm")).reshape(-1, 3).tolist() == expected


def test_thirty_two_bit_values_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tiff")
    Image.fromarray(np.array([[0, 0.5]], np.float32)).save(tmp_path / "f.tiff")
    for name, kind in (("i", "32-bit"), ("f", "floating point")):
        with pytest.raises(ImageError, match=rf"{name}\.tiff' has {kind} values; save it with 8 or 16 bits"):
            read_image(tmp_path / f"{name}.tiff")


def test_transparency_shows_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[255, 0, 0], [255, 255, 255], [204, 204, 204]]  # 0 * 0.2 + 255 * 0.8
    assert decoded(tmp_path / "rgba.png", Image.fromarray(rgba)) == expected
    la = Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA")
    assert decoded(tmp_path / "la.png", la) == [[9] * 3, [255] * 3]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decoded(tmp_path / "key.png", keyed, transparency=(4, 5, 6)) == [[1, 2, 3], [255, 255, 255]]


def test_palettes(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert decoded(tmp_path / "p.png", image) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert decoded(tmp_path / "t.png", image, transparency=1) == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    assert decoded(tmp_path / "t.gif", image, transparency=1) == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_cmyk(tmp_path: Path) -> None:
    cmyk = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8), "CMYK")
    assert decoded(tmp_path / "x.tiff", cmyk) == [[255] * 3, [255, 0, 0], [0] * 3]
    plain = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    plain.save(tmp_path / "x.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "x.jpg"), int) - [255, 0, 0]).max() <= 3


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("x.gif", "x.tiff", "x.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.abs(np.asarray(read_image(tmp_path / name), int) - [255, 0, 0]).max() <= 2
    frames[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=frames[1:])  # what phones write
    assert np.abs(np.asarray(read_image(tmp_path / "x.jpg"), int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif", "ppm"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"断.{suffix}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"断\.{suffix}' is (broken|no image)"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"])
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ImageError, match=rf"x\.jpg' is no image that can be read \({FORMATS[0]}.*convert it or take it out"
    ):
        read_image(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image '.*none\.png' does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is broken"):
        read_image(tmp_path)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_100, 60_000])
@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_decompression_bombs_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, pillow_limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("unpacks"))
    (tmp_path / "bomb.png").write_bytes(png_of_size(side, side))
    assert side * side > PIXEL_BUDGET
    with pytest.raises(ImageError, match=r"bomb\.png'.* make it smaller"):
        read_image(tmp_path / "bomb.png")


# -------------------------------------------------------------------------------------------------------- probe images


def test_probe_images_and_their_digests(tmp_path: Path) -> None:
    paths = written(tmp_path, "a.png", "b/c.png", "d.png")
    seen: list[tuple[int, int]] = []
    probe = load_images(
        paths,
        WHOLE,
        labels=[1, None, 0],
        display_count=2,
        root=tmp_path,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert probe.names == ("a.png", "b/c.png", "d.png")
    assert (len(probe), probe.labels) == (3, (1, None, 0))
    assert (probe.images.shape, probe.images.dtype) == ((3, 3, 8, 8), torch.float32)
    assert (probe.pictures.shape, probe.pictures.dtype) == ((2, 8, 8, 3), np.uint8)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert np.array_equal(probe.pictures[1], noise(8, 8, 1))
    source = hashlib.sha256(b"8 8\n" + noise(8, 8, 0).tobytes()).hexdigest()
    tensor = hashlib.sha256(b"(3, 8, 8)\n" + probe.images[0].numpy().astype("<f4").tobytes()).hexdigest()
    assert probe.source_sha256[0] == source
    assert probe.tensor_sha256[0] == tensor
    assert probe.probe_sha256 == hashlib.sha256("\n".join(probe.tensor_sha256).encode()).hexdigest()
    assert probe.preprocessing == WHOLE.to_dict()


def test_digests_know_pixels_from_preprocessing(tmp_path: Path) -> None:
    (path,) = written(tmp_path, "a.png")
    noise(8, 8, 0).save(tmp_path / "same.bmp")
    one, two = load_images([path], WHOLE), load_images([tmp_path / "same.bmp"], WHOLE)
    other = load_images([path], Preprocessing(None, 4))
    assert one.source_sha256 == two.source_sha256 == other.source_sha256
    assert one.probe_sha256 == two.probe_sha256 != other.probe_sha256
    Image.fromarray(np.asarray(noise(8, 8, 0)).reshape(4, 16, 3)).save(tmp_path / "reshaped.png")
    assert load_images([tmp_path / "reshaped.png"], WHOLE).source_sha256 != one.source_sha256


def test_a_limit_takes_images_from_the_whole_range(tmp_path: Path) -> None:
    paths = written(tmp_path, *[f"{index:02d}.png" for index in range(10)])
    probe = load_images(paths, WHOLE, limit=4, labels=range(10), display_count=99)
    assert probe.names == ("00.png", "02.png", "05.png", "07.png")
    assert probe.labels == (0, 2, 5, 7)
    assert len(probe.pictures) == 4
    assert len(load_images(paths, WHOLE, limit=None)) == len(load_images(paths, WHOLE)) == 10
    assert load_images(paths, WHOLE, display_count=0).pictures.shape == (0, 8, 8, 3)


def test_probe_images_that_do_not_go_together(tmp_path: Path) -> None:
    paths = written(tmp_path, "a.png", "b.png")
    noise(9, 8).save(paths[1])
    with pytest.raises(ImageError, match=r"'a\.png' gives \(3, 8, 8\) and 'b\.png' gives \(3, 8, 9\); set --crop"):
        load_images(paths, WHOLE)
    with pytest.raises(ImageError, match="1 labels were given for 2 images"):
        load_images(paths, WHOLE, labels=[1])
    with pytest.raises(ImageError, match="no images were given"):
        load_images([], WHOLE)
    with pytest.raises(ImageError, match="at least one probe image is needed, not 0"):
        load_images(paths, WHOLE, limit=0)


def test_tensors_from_python() -> None:
    tensor = torch.rand(3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    probe = probe_from_tensor(tensor, labels=[1, None, 2], display_count=2)
    assert probe.names == ("image-000", "image-001", "image-002")
    assert probe.images.dtype == torch.float32
    assert not probe.images.requires_grad
    assert probe.pictures.shape == (2, 4, 5, 3)
    assert probe.source_sha256 == probe.tensor_sha256
    assert probe.preprocessing == {"source": "tensor", "picture": "minimum to maximum of the tensor"}
    assert probe.labels == (1, None, 2)
    assert probe.tensor_sha256 == probe_from_tensor(tensor.float()).tensor_sha256
    pictures = np.full((3, 4, 5, 3), 7, np.uint8)
    given_ones = probe_from_tensor(tensor, ["x", "y", "z"], pictures, preprocessing={"mean": [0]}, display_count=2)
    assert np.array_equal(given_ones.pictures, pictures[:2])
    assert given_ones.names == ("x", "y", "z")
    assert given_ones.preprocessing == {"source": "tensor", "picture": "given", "mean": [0]}
    assert probe_from_tensor(torch.rand(1, 5, 2, 2)).pictures.shape == (1, 2, 2, 3)


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        (torch.rand(3, 4, 4), {}, r"must have shape \(N, C, H, W\) .* not \(3, 4, 4\)"),
        (torch.rand(0, 3, 4, 4), {}, "must have shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {}, "must be floats, not torch.uint8"),
        (torch.full((2, 1, 1, 1), torch.nan), {}, "image 0 holds NaN"),
        (torch.rand(2, 3, 4, 4), {"names": ["a"]}, "1 names were given for 2 images"),
        (torch.rand(2, 3, 4, 4), {"labels": [1, 2, 3]}, "3 labels were given for 2 images"),
        (torch.rand(2, 3, 4, 4), {"pictures": np.zeros((2, 5, 4, 3), np.uint8)}, r"uint8 \(D, 4, 4, 3\), not uint8"),
        (torch.rand(2, 3, 4, 4), {"pictures": np.zeros((2, 4, 4, 3))}, "not float64"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(tensor: torch.Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        probe_from_tensor(tensor, **options)  # type: ignore[arg-type]
