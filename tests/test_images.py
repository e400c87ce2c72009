import hashlib
import io
import json
import logging
import os
import shutil
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile

from interpret import images
from interpret.errors import ImageError
from interpret.images import FORMATS, find_images, image_names, load_images, probe_from_tensor, read_image
from interpret.labels import labels_from_folders, read_labels
from interpret.preprocessing import PIXEL_BUDGET, PictureError, Preprocessing
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


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif", "ppm"])
def test_truncated_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, lenient: bool) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # WeasyPrint sets it for the whole process
    path = tmp_path / f"断.{suffix}"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"断\.{suffix}' is (broken|no image)"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"])
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ImageError, match=rf"x\.jpg' is no image that can be read \({FORMATS[0]}.*convert it or take it out"
    ):
        read_image(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png' does not exist; check the path"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is broken"):
        read_image(tmp_path)


def png_of_size(width: int, height: int) -> bytes:
    header = chunked(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunked(b"IDAT", zlib.compress(bytes(99))) + chunked(b"IEND", b"")


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


# ----------------------------------------------------------------- formats, against values by hand and another decoder


def outside(path: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """The pixels as OpenCV decodes them, (H, W, 3) in RGB."""
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
    assert decoded is not None
    return decoded[..., ::-1]


def chunked(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, colour: int, bits: int = 8, key: bytes = b"", adam7: bool = False) -> bytes:
    """A PNG file of samples (H, W) or (H, W, C): Pillow writes no 16-bit RGB and does not interlace."""
    height, width = values.shape[:2]
    passes = [(0, 0, 1, 1)]
    if adam7:  # first column and row, step of each, as the specification lists them
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    data = b""
    for left, top, across, down in passes:
        part = values[top::down, left::across]
        for row in part if part.size else ():
            samples = row.astype(">u2").view(np.uint8) if bits == 16 else row.reshape(-1).astype(np.uint8)
            if bits < 8:
                samples = np.packbits(np.unpackbits(samples[:, None], axis=1)[:, -bits:])
            data += b"\0" + samples.tobytes()
    header = chunked(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(adam7)))
    end = chunked(b"IDAT", zlib.compress(data)) + chunked(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + (chunked(b"tRNS", key) if key else b"") + end


def flat_jpeg(stored: tuple[int, ...], transform: int | None) -> bytes:
    """A baseline JPEG of one 8 x 8 block in which every pixel holds the stored components, and nothing is lost.

    The quantum 8 makes the coefficient of the constant the value less 128. ``transform`` is Adobe's: 0 CMYK, 2 YCCK.
    """

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    count = len(stored)
    bits = ""
    for value in (component - 128 for component in stored):
        size = abs(value).bit_length()
        bits += f"{size:04b}"  # the code of each size is its number in 4 bits
        bits += f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""
        bits += "0"  # the end of the block
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    identified = b"".join(bytes([number, 0x11, 0]) for number in range(1, count + 1))
    tables = b"".join(bytes([number, 0]) for number in range(1, count + 1))
    adobe = b"" if transform is None else segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))
    return b"".join(
        [
            b"\xff\xd8",
            adobe,
            segment(0xDB, bytes([0, *[8] * 64])),
            segment(0xC0, struct.pack(">BHHB", 8, 8, 8, count) + identified),
            segment(0xC4, bytes([0x00, 0, 0, 0, 12, *[0] * 12, *range(12)])),
            segment(0xC4, bytes([0x10, 1, *[0] * 15, 0])),
            segment(0xDA, bytes([count]) + tables + bytes([0, 63, 0])),
            scan + b"\xff\xd9",
        ]
    )


def pixels(path: Path) -> list[list[int]]:
    return np.asarray(read_image(path)).reshape(-1, 3).tolist()


@pytest.mark.parametrize("options", [{"quality": 5}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_as_opencv_decodes_them(tmp_path: Path, mode: str, options: dict[str, int]) -> None:
    photo().convert(mode).save(tmp_path / "x.JPG", **options)
    assert np.abs(np.asarray(read_image(tmp_path / "x.JPG"), int) - outside(tmp_path / "x.JPG")).max() <= 2


@pytest.mark.parametrize(
    ("stored", "transform", "expected"),
    [
        ((200,), None, (200, 200, 200)),
        ((255, 0, 0, 255), 0, (255, 0, 0)),  # Adobe stores what is left of white: no cyan, all magenta and yellow
        ((255, 0, 0, 255), None, (255, 0, 0)),  # no marker: OpenCV and torchvision take it for Adobe's as well
        ((255, 0, 255, 128), 0, (128, 0, 128)),  # R = 255 * (1 - 0) * (128 / 255)
        ((255, 255, 255, 255), 0, (255, 255, 255)),
        ((179, 171, 0, 255), 2, (255, 0, 0)),  # YCCK: YCbCr of the ink (0, 255, 255), Y = 255 * (0.587 + 0.114)
    ],
)
def test_jpegs_of_one_colour_by_hand(
    tmp_path: Path, stored: tuple[int, ...], transform: int | None, expected: tuple[int, ...]
) -> None:
    (tmp_path / "x.jpg").write_bytes(flat_jpeg(stored, transform))
    found = np.asarray(read_image(tmp_path / "x.jpg"), int)
    assert found.shape == (8, 8, 3)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - outside(tmp_path / "x.jpg")).max() <= 2


@pytest.mark.parametrize("adam7", [False, True])
@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_pngs_of_every_kind(tmp_path: Path, colour: int, channels: int, adam7: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (11, 13, channels), np.uint8)
    (tmp_path / "x.png").write_bytes(png(values, colour, adam7=adam7))
    solid, alpha = values.astype(float), np.full((11, 13, 1), 1.0)
    if channels in (2, 4):
        solid, alpha = values[..., :-1].astype(float), values[..., -1:] / 255
    expected = np.broadcast_to(solid * alpha + 255 * (1 - alpha), (11, 13, 3))
    assert np.abs(np.asarray(read_image(tmp_path / "x.png"), int) - expected).max() < (
        1.01 if channels in (2, 4) else 0.1
    )
    if channels in (1, 3):
        assert np.array_equal(read_image(tmp_path / "x.png"), outside(tmp_path / "x.png"))


def test_pngs_of_few_bits(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 2, 3]])
    (tmp_path / "x.png").write_bytes(png(levels, 0, 2))
    assert pixels(tmp_path / "x.png") == [[level * 85] * 3 for level in range(4)]
    (tmp_path / "x.png").write_bytes(png(levels, 0, 2, key=struct.pack(">H", 1)))
    assert pixels(tmp_path / "x.png") == [[0] * 3, [255] * 3, [170] * 3, [255] * 3]
    (tmp_path / "x.png").write_bytes(png(levels, 0, 4, key=struct.pack(">H", 2)))
    assert pixels(tmp_path / "x.png") == [[0] * 3, [17] * 3, [255] * 3, [51] * 3]
    (tmp_path / "x.png").write_bytes(png(np.array([[1, 0, 1]]), 0, 1))
    assert pixels(tmp_path / "x.png") == [[255] * 3, [0] * 3, [255] * 3]


def test_sixteen_bits_of_colour_are_cut_as_in_training(tmp_path: Path) -> None:
    samples = np.array([0, 128, 255, 256, 32896, 65279, 65280, 65535], np.uint16)
    values = np.stack([samples, samples[::-1], samples], -1)[None]
    (tmp_path / "x.png").write_bytes(png(values, 2, 16))
    high = [[r >> 8, g >> 8, b >> 8] for r, g, b in values[0].tolist()]
    assert pixels(tmp_path / "x.png") == high
    assert outside(tmp_path / "x.png")[0].tolist() == high
    assert np.array_equal(outside(tmp_path / "x.png", cv2.IMREAD_UNCHANGED), values)  # all 16 bits were there
    assert np.abs(np.array(high) - (values[0].astype(int) + 128) // 257).max() <= 1
    opaque = np.concatenate([values, np.full((1, 8, 1), 65535, np.uint16)], -1)
    (tmp_path / "x.png").write_bytes(png(opaque, 6, 16))
    assert pixels(tmp_path / "x.png") == high


def test_a_transparent_colour_of_sixteen_bits(tmp_path: Path) -> None:
    grey = np.array([[300, 32896]], np.uint16)
    (tmp_path / "x.png").write_bytes(png(grey, 0, 16, key=struct.pack(">H", 300)))
    assert pixels(tmp_path / "x.png") == [[255] * 3, [128] * 3]
    colour = np.array([[[0x1234] * 3, [0x3434] * 3]], np.uint16)
    (tmp_path / "x.png").write_bytes(png(colour, 2, 16, key=struct.pack(">3H", *[0x1234] * 3)))
    assert pixels(tmp_path / "x.png") == [[255] * 3, [0x34] * 3]


def test_webp(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.webp", quality=60)
    assert np.abs(np.asarray(read_image(tmp_path / "x.webp"), int) - outside(tmp_path / "x.webp")).max() <= 1
    clear = photo().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "x.webp", lossless=True, exact=True)
    rgba = np.asarray(clear).astype(float)
    alpha = rgba[..., 3:] / 255
    drawn = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(read_image(tmp_path / "x.webp")) - drawn).max() <= 1


def test_a_bitmap_by_hand(tmp_path: Path) -> None:
    # 2 x 2 pixels of 24 bits: rows from the bottom, blue first, padded to 4 bytes
    rows = bytes([0, 0, 255, 0, 255, 0, 0, 0, 255, 0, 0, 9, 9, 9, 0, 0])
    header = struct.pack("<IHHIIiiHHIIiiII", 54 + 16, 0, 0, 54, 40, 2, 2, 1, 24, 0, 16, 0, 0, 0, 0)
    (tmp_path / "x.bmp").write_bytes(b"BM" + header + rows)
    assert pixels(tmp_path / "x.bmp") == [[0, 0, 255], [9, 9, 9], [255, 0, 0], [0, 255, 0]]


def tiff(values: np.ndarray, photometric: int) -> bytes:
    """A little-endian TIFF of grey values (H, W), of one strip."""
    height, width = values.shape
    size = values.itemsize
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8 * size), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, values.nbytes)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
        + values.astype(f"<u{size}").tobytes()
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_of_grey_by_hand(tmp_path: Path, dtype: type) -> None:
    top = np.iinfo(dtype).max
    values = np.array([[0, top, 10 * (top // 255), 128 * (top // 255)]], dtype)
    (tmp_path / "x.tif").write_bytes(tiff(values, 1))
    assert pixels(tmp_path / "x.tif") == [[v] * 3 for v in (0, 255, 10, 128)]
    (tmp_path / "x.tif").write_bytes(tiff(values, 0))  # white is 0
    assert pixels(tmp_path / "x.tif") == [[v] * 3 for v in (255, 0, 245, 127)]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", None])
def test_compressed_tiffs(tmp_path: Path, compression: str | None) -> None:
    photo().save(tmp_path / "x.TIFF", compression=compression, save_all=True, append_images=[noise(8, 8)])
    assert np.array_equal(read_image(tmp_path / "x.TIFF"), photo())


def test_a_colour_profile_changes_nothing(tmp_path: Path) -> None:
    # a profile under which every viewer would show other colours: the channels change places
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    swapped = ImageCms.ImageCmsProfile(io.BytesIO(bytes(profile)))
    viewed = ImageCms.profileToProfile(Image.new("RGB", (1, 1), "red"), swapped, ImageCms.createProfile("sRGB"))
    assert viewed is not None
    assert np.argmax(np.asarray(viewed)) == 1
    for name in ("x.png", "x.jpg", "x.tiff", "x.webp"):
        photo().save(tmp_path / name, icc_profile=bytes(profile), **({"lossless": True} if name == "x.webp" else {}))
        with Image.open(tmp_path / name) as file:
            assert file.info["icc_profile"] == bytes(profile)
        expected = outside(tmp_path / name) if name == "x.jpg" else np.asarray(photo())
        assert np.abs(np.asarray(read_image(tmp_path / name), int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_stand_upright_as_in_opencv(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / "x.jpg", exif=exif)
    expected = outside(tmp_path / "x.jpg")
    image = read_image(tmp_path / "x.jpg")
    assert image.size == (photo().size if orientation < 5 else photo().size[::-1])
    assert np.abs(np.asarray(image, int) - expected).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    noise(*size).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), noise(*size))
    assert load_images([tmp_path / "x.png"], Preprocessing(16, 8)).images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "name", ["a b.png", "花 猫.png", "🦒.PNG", 'it\'s "it".Png', "100%.JPEG", "[x]*.png", "-o.png"]
)
def test_odd_names(tmp_path: Path, name: str) -> None:
    noise(8, 8).save(tmp_path / name)
    assert load_images(find_images(tmp_path), WHOLE, root=tmp_path).names == (name,)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PictureError, match="is no image that can be read") as caught:
        read_image(tmp_path / name)
    assert repr(str(tmp_path / name)) in str(caught.value)


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


# ---------------------------------------------------------------------------------------------- broken images, and many


def broken(paths: list[Path], *indices: int) -> None:
    for index in indices:
        paths[index].write_bytes(paths[index].read_bytes()[:60])


def test_broken_images_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = written(tmp_path, *[f"{index:02d}.png" for index in range(10)])
    broken(paths, 2, 9)
    with pytest.raises(PictureError, match=r"02\.png' is broken .* --skip-broken \(skip_broken=True\)"):
        load_images(paths, WHOLE)
    with caplog.at_level(logging.WARNING, "interpret"):
        probe = load_images(paths, WHOLE, labels=range(10), skip_broken=True)
    assert probe.labels == (0, 1, 3, 4, 5, 6, 7, 8)
    assert probe.names == tuple(f"{index:02d}.png" for index in probe.labels)
    assert probe.images.shape == (8, 3, 8, 8)
    assert [name for name, _ in probe.skipped] == ["02.png", "09.png"]
    assert all(reason.startswith("is broken (") and str(tmp_path) not in reason for _, reason in probe.skipped)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "skipped '02.png': it is broken (" in caplog.text
    assert "2 of 10 images are broken and left out; 8 are used" in caplog.text
    sound = load_images([path for index, path in enumerate(paths) if index not in (2, 9)], WHOLE)
    assert sound.probe_sha256 == probe.probe_sha256
    assert sound.skipped == ()


def test_neighbours_take_the_place_of_broken_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = written(tmp_path, *[f"{index:02d}.png" for index in range(12)])
    broken(paths, 4, 5, 8)
    seen: list[tuple[int, int]] = []
    chosen = [
        load_images(paths, WHOLE, limit=3, labels=range(12), skip_broken=True, progress=lambda *step: seen.append(step))
        for _ in range(2)
    ]
    assert chosen[0].labels == chosen[1].labels == (0, 3, 9)  # 0, 4 -> 5 -> 3, 8 -> 9
    assert chosen[0].names == ("00.png", "03.png", "09.png")
    assert [name for name, _ in chosen[0].skipped] == ["04.png", "05.png", "08.png"]
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    broken(paths, *range(12))
    noise(8, 8).save(paths[7])
    caplog.clear()
    alone = load_images(paths, WHOLE, limit=3, labels=range(12), skip_broken=True)
    assert (alone.labels, alone.images.shape, len(alone.skipped)) == ((7,), (1, 3, 8, 8), 11)
    assert len(caplog.records) == 6  # five by name, and the count
    broken(paths, 7)
    with pytest.raises(ImageError, match=r"none of 12 images can be read: '00\.png' is broken"):
        load_images(paths, WHOLE, limit=3, skip_broken=True)


def test_what_fails_for_every_image_is_not_skipped(tmp_path: Path) -> None:
    paths = written(tmp_path, "a.png", "b.png", "c.png")
    Image.new("RGB", (5000, 1)).save(paths[1])
    Path(paths[2]).write_bytes(png_of_size(10_100, 10_100))
    probe = load_images(paths, Preprocessing(256, 8), skip_broken=True)
    assert [reason for _, reason in probe.skipped] == [
        "has 5000 x 1 pixels, too narrow to resize to 256",
        "has 10100 x 10100 pixels, over the limit of 100,000,000",
    ]
    with pytest.raises(
        PictureError, match=r"b\.png' has 5000 x 1 pixels, too narrow to resize to 256; take it out, or"
    ):
        load_images(paths, Preprocessing(256, 8))

    def fails(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("out of luck")

    with pytest.raises(ImageError, match=r"^'a\.png': 'mine' failed: RuntimeError: out of luck"):
        load_images(paths, Preprocessing(transform=fails, name="mine"), skip_broken=True)


def test_many_images_lie_in_a_file_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = written(tmp_path / "photos", *[f"{index}.png" for index in range(5)])
    broken(paths, 3)
    plain = load_images(paths, WHOLE, skip_broken=True)
    monkeypatch.setattr(images, "MEMORY_BUDGET", 4 * 3 * 8 * 8 * 4)  # four of the five
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    (tmp_path / "disk").mkdir()
    mapped: list[dict[str, object]] = []
    from_file = torch.from_file

    def watched(name: str, **options: object) -> torch.Tensor:
        mapped.append({"name": name, **options})
        return from_file(name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "from_file", watched)
    probe = load_images(paths, WHOLE, skip_broken=True)
    assert mapped[0]["shared"] is True
    assert Path(str(mapped[0]["name"])).parent == tmp_path / "disk"
    assert list((tmp_path / "disk").iterdir()) == []
    assert torch.equal(probe.images, plain.images)
    assert probe.probe_sha256 == plain.probe_sha256
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    assert load_images(paths, WHOLE, skip_broken=True).probe_sha256 == plain.probe_sha256
    assert len(mapped) == 1


def test_thousands_of_files_are_found_and_labelled_in_linear_time(tmp_path: Path) -> None:
    for index in range(4000):
        (tmp_path / f"class{index % 40}").mkdir(exist_ok=True)
        (tmp_path / f"class{index % 40}" / f"{index}.png").touch()
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{index}.png,{index % 40}\n" for index in range(4000))
    )
    begun = time.perf_counter()
    paths = find_images(tmp_path)
    names = image_names(paths, tmp_path)
    from_folders = labels_from_folders(paths, tmp_path, [f"class{index}" for index in range(40)])
    assert read_labels(tmp_path / "labels.csv", names) == from_folders
    assert time.perf_counter() - begun < 5  # 0.3 s; quadratic would be minutes
