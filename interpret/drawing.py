"""Arrays to pictures: normalise, colour, tile, overlay, encode; and the previews of a bundle.

A grid of channels is one array of palette indices, one palette and one PNG; an overlay sheet is one JPEG. All
mathematics is in floats, with one cast to uint8 at the end. Signed data gets a diverging palette that is symmetric
about 0, everything else viridis.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from interpret.evidence import Call, Evidence, as_evidence

LEVELS = 255  # palette entries that carry values; the last one is the transparent gutter between tiles
GUTTER = 255
OPACITY = 0.3, 0.65  # how much of the photo the colour covers where a heatmap is 0 and where it is 1
CLIP_PERCENTILE = 99.5  # the top of an activation scale: a single hot pixel would leave the rest dark
ATTRIBUTION_PERCENTILE = 99.0  # the same of attributions, whose tails are longer
SEQUENTIAL_ATTRIBUTIONS = ("saliency", "smooth-grad", "full-grad")  # magnitudes: drawn from 0 on
COLOURED_ATTRIBUTIONS = ("guided-backprop", "deconvnet", "guided-grad-cam")  # pictures about mid-gray, if they have RGB
PREVIEW_SIDE = 112  # of a photo in a sheet of attributions
PALE, INK = 0.4, (27, 31, 35)  # contrast left of the photo behind a word, and the word's colour

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


def _palette(anchors: str) -> Bytes:
    """A palette of ``LEVELS`` colours, linear between evenly spaced anchors written as hexadecimal RGB."""
    colours = np.frombuffer(bytes.fromhex(anchors), np.uint8).reshape(-1, 3).astype(np.float64)
    position = np.linspace(0, len(colours) - 1, LEVELS)
    channels = [np.interp(position, np.arange(len(colours)), colours[:, channel]) for channel in range(3)]
    palette: Bytes = np.round(np.stack(channels, axis=1)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


# viridis (Smith and van der Walt, CC0), every fifth of its 256 colours: at most 1/255 from the original.
VIRIDIS = _palette(
    "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a3a538b38598c355e8d33638d31688e"
    "2e6d8e2c718e2a768e297b8e27808e25848e23898e218e8d20928c1f978b1e9c891fa18821a58524aa8328ae802eb37c35b7793dbc74"
    "46c06f50c46a5ac86465cb5e70cf577cd25089d54895d840a2da37b0dd2fbddf26cae11fd8e219e5e419f1e51dfde725"
)
# ColorBrewer's RdBu (Brewer and Harrower, Apache-2.0), reversed: blue below 0, near white at 0, red above; safe for
# colour-blind readers.
DIVERGING = _palette("0530612166ac4393c392c5ded1e5f0f7f7f7fddbc7f4a582d6604db2182b67001f")


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels and the values that the ends of their scale stand for.

    Attributes:
        pixels: palette indices (H, W) where there is a palette, else RGB or RGBA of shape (H, W, 3) or (H, W, 4);
            uint8.
        palette: (256 or fewer, 3) uint8, or None for true colours. Index 255 is transparent.
        low, high: values at the two ends of the palette (or at black and full intensity).
    """

    pixels: Bytes
    palette: Bytes | None = None
    low: float = 0.0
    high: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def image(self) -> Image.Image:
        """Return the picture as a PIL image, mode P, RGB or RGBA."""
        if self.palette is None:
            return Image.fromarray(self.pixels)
        image = Image.fromarray(self.pixels).convert("L")
        image.putpalette(_full_palette(self.palette).tobytes())
        if (self.pixels == GUTTER).any():
            image.info["transparency"] = GUTTER
        return image

    def png(self) -> bytes:
        """Return the picture as a PNG: the same bytes for the same pixels."""
        if self.palette is None:
            return encode_png(self.pixels)
        return encode_png(self.pixels, self.palette)

    def jpeg(self) -> bytes:
        """Return the picture as a JPEG of quality 85, for photographs."""
        buffer = io.BytesIO()
        self.image().convert("RGB").save(buffer, "JPEG", quality=85)
        return buffer.getvalue()


def encode_png(pixels: Bytes, palette: Bytes | None = None) -> bytes:
    """Pixels as a PNG file.

    Feature maps hardly compress, so run-length matching (``Z_RLE``) gives nearly the size of level 6 at a tenth of
    its cost.

    Args:
        pixels: (H, W) palette indices, or (H, W, 3) RGB, or (H, W, 4) RGBA; uint8.
        palette: (at most 256, 3) uint8 for indices; index 255 becomes transparent where it is used.
    """
    height, width = pixels.shape[:2]
    colour_type = 3 if palette is not None else {3: 2, 4: 6}[pixels.shape[2]]
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each row starts with its filter, 0: none
    rows[:, 1:] = pixels.reshape(height, -1)
    compressor = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", _full_palette(palette).tobytes()))
        if (pixels == GUTTER).any():
            chunks.append((b"tRNS", bytes([255] * GUTTER + [0])))
    chunks += [(b"IDAT", compressor.compress(rows.tobytes()) + compressor.flush()), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def kernel_image(weight: Any) -> Image.Image:
    """Kernels of a convolution (or the matrix of a linear layer) as one picture.

    Three input channels are drawn as colours about mid-gray, everything else on a diverging scale symmetric about 0.

    Args:
        weight: shape (O, I, h, w), or (O, I); numpy array or tensor.

    Raises:
        ValueError: the weight has another number of axes.
    """
    return kernel_picture(_floats(weight)).image()


def activation_image(activation: Any) -> Image.Image:
    """Channels of one image's activation as one grid of tiles, on one scale.

    Args:
        activation: shape (C, H, W), or (H, W) for a single channel; numpy array or tensor.

    Raises:
        ValueError: the activation has another number of axes.
    """
    values = _floats(activation)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3:
        raise ValueError(f"activation must have shape (C, H, W) or (H, W), not {values.shape}")
    return activation_picture(values, *value_range([values])).image()


def overlay(image: Any, heatmap: Any) -> Image.Image:
    """A heatmap in viridis over the gray photo, 30 % opaque at 0 and 65 % at 1.

    Args:
        image: PIL image, or array or tensor of shape (H, W), (H, W, 3) or (3, H, W): uint8, or floats in [0, 1].
        heatmap: values in [0, 1], shape (h, w); it is up-sampled to the photo's size where it is smaller.

    Raises:
        ValueError: the image or the heatmap has another shape.
    """
    return Image.fromarray(_blend(_gray(_photo(image)), _floats(heatmap)))


def heatmap(maps: Any, size: tuple[int, int], shared: bool = False) -> NDArray[np.float32]:
    """Raw class activation maps as heatmaps in [0, 1] at the size of the photo.

    Clamp at 0; (z - min) / (max - min) per map, all zeros where max = min; bilinear up-sampling (align_corners=False);
    the same scaling again.

    Args:
        maps: shape (..., h, w); where the scale is shared, also a sequence of arrays that differ in (h, w).
        size: (H, W) of the result.
        shared: one minimum and maximum over the first axis too: maps of several runs on one scale, so that a weaker
            map looks weaker.

    Returns:
        float32, shape (..., H, W).
    """
    if shared:  # up-sampling is linear, so scaling once, behind it, is the same
        enlarged = np.stack([_resize(_clamped(run), size) for run in maps])
        return _unit(enlarged, (0, -2, -1)).astype(np.float32)
    enlarged = _resize(_unit(_clamped(maps), (-2, -1)), size)
    return _unit(enlarged, (-2, -1)).astype(np.float32)


def value_range(arrays: Sequence[Floats], percentile: float = CLIP_PERCENTILE) -> tuple[float, float]:
    """The scale that the arrays share: (0, percentile), or symmetric about 0 where a value is negative.

    Non-finite values do not count; where nothing is finite the scale is (0, 1).
    """
    finite = np.concatenate([values[np.isfinite(values)].ravel() for values in arrays] or [np.zeros(0)])
    if not finite.size:
        return 0.0, 1.0
    if finite.min() < 0:
        limit = float(np.percentile(np.abs(finite), percentile)) or float(np.abs(finite).max())
        return -limit, limit
    high = float(np.percentile(finite, percentile)) or float(finite.max())
    return 0.0, high or 1.0


def channel_tops(arrays: Sequence[Floats], percentile: float = CLIP_PERCENTILE) -> Floats:
    """The magnitude at the top of each channel's own scale, which the arrays share.

    Args:
        arrays: shape (C, h, w) each; they may differ in h and w, and one may have fewer channels.
        percentile: of a channel's finite magnitudes; where it is 0 their largest counts, and 1 where all are 0.

    Returns:
        Shape (C,), positive.
    """
    tops = np.ones(max(map(len, arrays)))
    for channel in range(len(tops)):
        sizes = np.abs(np.concatenate([values[channel].ravel() for values in arrays if channel < len(values)]))
        sizes = sizes[np.isfinite(sizes)]
        if sizes.any():
            tops[channel] = np.percentile(sizes, percentile) or sizes.max()
    return tops


def indices(values: Floats, low: float, high: float) -> Bytes:
    """Palette indices 0 ... 254 of values on the scale [low, high]; outside is clipped, NaN is drawn as ``low``.

    >>> indices(np.array([-1.0, 0.0, 1.0, 9.0]), -1, 1).tolist()
    [0, 127, 254, 254]
    """
    span = high - low
    unit = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (span or 1)
    result: Bytes = np.round(np.clip(unit, 0, 1) * (LEVELS - 1)).astype(np.uint8)
    return result


def tile(tiles: Bytes, columns: int, scale: int = 1, gutter: int = 1, fill: int = GUTTER) -> Bytes:
    """Tiles laid out row by row in one array, each enlarged by an integer factor, with a thin gutter between them.

    Args:
        tiles: (K, h, w) or (K, h, w, channels), uint8.
        columns: tiles per row.
        scale: integer enlargement, nearest neighbour.
        gutter: pixels between tiles.
        fill: value of the gutter and of the places that stay empty.
    """
    count, height, width = tiles.shape[0], tiles.shape[1] * scale, tiles.shape[2] * scale
    columns = min(columns, count)
    rows = -(-count // columns)
    if scale > 1:
        tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    padded = np.full((rows * columns, height + gutter, width + gutter, *tiles.shape[3:]), fill, np.uint8)
    padded[:count, :height, :width] = tiles
    grid = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2)
    sheet = grid.reshape(rows * (height + gutter), columns * (width + gutter), *tiles.shape[3:])
    return sheet[: sheet.shape[0] - gutter, : sheet.shape[1] - gutter]


def kernel_picture(weight: Floats, limit: float | None = None, width: int = 320) -> Picture:
    """Kernels as a picture about ``width`` pixels wide; see :func:`kernel_image`.

    Args:
        weight: (O, I, h, w) or (O, I).
        limit: the scale is [-limit, limit]; None takes the largest finite magnitude.
        width: the width to aim for.

    Raises:
        ValueError: the weight has another number of axes.
    """
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    if weight.ndim != 4:
        raise ValueError(f"weight must have shape (O, I, h, w) or (O, I), not {weight.shape}")
    filters, channels, height, across = weight.shape
    limit = weight_limit([weight]) if limit is None else limit
    if channels == 3:
        columns = _columns(filters, across, height, width)
        colours = np.round((indices(weight, -limit, limit).astype(np.float64) / (LEVELS - 1)) * 255).astype(np.uint8)
        opaque = np.concatenate([colours, np.full_like(colours[:, :1], 255)], axis=1).transpose(0, 2, 3, 1)
        sheet = tile(opaque, columns, _enlargement(columns, across, width), fill=0)
        return Picture(np.ascontiguousarray(sheet), None, -limit, limit)
    drawn = indices(weight, -limit, limit)
    if height == across == 1:  # 1 x 1 kernels: the matrix itself, filters downwards
        factor = max(1, width // channels)
        return Picture(tile(drawn[None, :, :, 0, 0], 1, factor), DIVERGING, -limit, limit)
    columns = channels if channels > 1 else _columns(filters, across, height, width)
    sheet = tile(drawn.reshape(-1, height, across), columns, _enlargement(columns, across, width))
    return Picture(sheet, DIVERGING, -limit, limit)


def weight_limit(weights: Sequence[Floats]) -> float:
    """The largest finite magnitude of the weights; 1 where they are all zero."""
    largest = [np.abs(weight[np.isfinite(weight)]).max(initial=0) for weight in weights]
    return float(max(largest, default=0)) or 1.0


def activation_picture(values: Floats, low: float, high: float, width: int = 320) -> Picture:
    """Channels (C, h, w) on the scale [low, high] as one grid about ``width`` wide; diverging where low < 0."""
    count, height, across = values.shape
    columns = _columns(count, across, height, width)
    sheet = tile(indices(values, low, high), columns, _enlargement(columns, across, width))
    return Picture(sheet, DIVERGING if low < 0 else VIRIDIS, low, high)


def overlay_sheet(images: Bytes, heatmaps: Floats, side: int, gutter: int = 3) -> Picture:
    """Heatmaps over their photos: a row per group, a column per image; the first row may be the photos themselves.

    Args:
        images: (D, H, W, 3) uint8.
        heatmaps: (R, D, h, w) in [0, 1]: R rows.
        side: the longer side of a tile, in pixels.
        gutter: white pixels between tiles.
    """
    photos = [_shrink(image, side) for image in images]
    tiles = [overlay_tile(photo, heat) for row in heatmaps for photo, heat in zip(photos, row, strict=True)]
    return tile_sheet(tiles, len(photos), gutter)


def overlay_tile(photo: Bytes, heat: Floats) -> Bytes:
    """A heatmap over its photo; where there is no heat at all, the word "blank" over the pale photo.

    Args:
        photo: (H, W, 3) uint8.
        heat: (H, W) in [0, 1].
    """
    if heat.any():
        return _blend(_gray(photo), heat)
    pale = np.repeat(np.round(255 - PALE * (255 - _gray(photo))).astype(np.uint8)[..., None], 3, axis=2)
    pale[_lettering("blank", photo.shape[:2])] = INK
    return pale


def tile_sheet(tiles: Sequence[Bytes], columns: int, gutter: int = 3) -> Picture:
    """Pictures (H, W, 3) of one size, row by row on white paper."""
    return Picture(tile(np.stack(tiles), columns, gutter=gutter, fill=255))


def photo_tile(image: Bytes, side: int) -> Bytes:
    """A photo with its longer side at ``side`` pixels; a smaller one is enlarged by a whole factor instead."""
    factor = max(1, side // max(image.shape[:2]))
    return _shrink(image, side) if factor == 1 else image.repeat(factor, axis=0).repeat(factor, axis=1)


def attribution_view(values: Any, method: str, size: tuple[int, int]) -> Floats:
    """What is drawn of attributions, averaged over pixels to the size of a tile.

    Saliency: the largest magnitude of the channels; smooth-grad and full-grad: their sum. guided-backprop, deconvnet
    and guided-grad-cam: three channels as they are. All others: the sum over the channels, signed.

    Args:
        values: shape (D, C, H, W); what is not finite counts as 0.
        method: name of the method.
        size: (h, w) of the result.

    Returns:
        Shape (D, h, w), or (D, 3, h, w) where the attributions are colours.
    """
    finite = np.nan_to_num(_floats(values).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if method in SEQUENTIAL_ATTRIBUTIONS:
        finite = np.abs(finite)
        finite = finite.max(1) if method == "saliency" else finite.sum(1)
    elif method not in COLOURED_ATTRIBUTIONS or finite.shape[1] != 3:
        finite = finite.sum(1)
    return np.asarray(_averaging(finite.shape[-2], size[0]) @ finite @ _averaging(finite.shape[-1], size[1]).T)


def attribution_limit(views: Sequence[Floats]) -> float:
    """The magnitude at the ends of the scale that the views share: their 99th percentile; 1 where all are 0."""
    sizes = np.abs(np.concatenate([view.ravel() for view in views]))
    return float(np.percentile(sizes, ATTRIBUTION_PERCENTILE)) or float(sizes.max()) or 1.0


def attribution_tile(view: Floats, method: str, limit: float) -> Bytes:
    """One view as a picture (h, w, 3): viridis from 0 to the limit, diverging about 0, or colours about mid-gray."""
    if view.ndim == 3:
        colours: Bytes = np.round(127.5 + 127.5 * np.clip(view / limit, -1, 1)).astype(np.uint8)
        return colours.transpose(1, 2, 0)
    if method in SEQUENTIAL_ATTRIBUTIONS:
        return np.asarray(VIRIDIS[indices(view, 0, limit)])
    return np.asarray(DIVERGING[indices(view, -limit, limit)])


def photo_sheet(images: Bytes, side: int, gutter: int = 3) -> Picture:
    """Photos (D, H, W, 3) in one row, the longer side of each ``side`` pixels."""
    return Picture(tile(np.stack([_shrink(image, side) for image in images]), len(images), gutter=gutter, fill=255))


def decode_activations(evidence: Evidence, key: str) -> Floats:
    """Activations of the displayed images at a call, shape (D, c, h, w), from their stored bytes and ranges."""
    low, high = (
        evidence.array("activations", f"{key}/{end}").astype(np.float64)[..., None, None]
        for end in ("minimum", "maximum")
    )
    return np.asarray(evidence.array("activations", f"{key}/values") / 255 * (high - low) + low)


def write_previews(evidence: Evidence | str | Path) -> tuple[Path, ...]:
    """Draw ``previews/{inputs,kernels,activations,maps}/<NNN>-<slug>.png`` for people who browse the bundle.

    Maps are sheets with a row per method and a column per image, in 12 colours over 21 grays: one palette, one cheap
    PNG. Where they were recorded also ``previews/attributions/<method>.png``, photos above attributions, and
    ``previews/features/<NNN>-<slug>-<channel>.png``, the picture that excites the channel beside the patches that do.

    Returns:
        The files, in the order written.
    """
    evidence = as_evidence(evidence)
    written = []
    for kind, slug, picture in _previews(evidence):
        path = evidence.folder / "previews" / kind / f"{slug}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.png())
        written.append(path)
    return tuple(written)


def preview_kinds(evidence: Evidence, call: Call) -> tuple[str, ...]:
    """Which of the previews "kernels", "activations" and "maps" :func:`write_previews` draws of a call."""
    drawn = {
        "kernels": _kernels(evidence, call) is not None,
        "activations": evidence.has("activations", f"{call.key}/values"),
        "maps": evidence.has("inputs", "images") and bool(map_methods(evidence, call.key)),
    }
    return tuple(kind for kind, there in drawn.items() if there)


def _kernels(evidence: Evidence, call: Call) -> str | None:
    """Name of the call's tensor whose kernels were recorded."""
    return next((name for name in call.tensors if evidence.has("kernels", name)), None)


def map_methods(evidence: Evidence, key: str) -> tuple[str, ...]:
    """The methods whose maps of a call were recorded, in the order recorded."""
    names = (name.rpartition(f"/{key}") for name in evidence.keys("maps") if name.endswith(f"/{key}"))
    return tuple(method for method, _, rest in names if not rest and "/" not in method)


def attribution_methods(evidence: Evidence) -> tuple[str, ...]:
    """The methods whose attributions of the input were recorded, in the order recorded."""
    return tuple(name for name in evidence.keys("attributions") if "/" not in name)


def feature_channels(evidence: Evidence, key: str) -> tuple[int, ...]:
    """The channels of a call whose features were recorded, in order."""
    names = (name.removeprefix(f"{key}/").partition("/") for name in evidence.keys("features"))
    return tuple(sorted(int(channel) for channel, _, rest in names if rest == "excitation" and channel.isdigit()))


def feature_sheet(evidence: Evidence, key: str, channel: int, count: int = 9) -> Picture:
    """The ``count`` patches that excite a channel most, over what of them does where that was recorded (else white).

    Reconstructions are signed: diverging, symmetric about 0, on one scale for the channel.
    """
    stored = (evidence.array("features", f"{key}/{channel}/{name}") for name in ("crops", "reconstructions"))
    crops, parts = (values[:count] for values in stored)
    limit = attribution_limit([parts[np.isfinite(parts)]]) if np.isfinite(parts).any() else 1.0
    drawn = DIVERGING[indices(parts, -limit, limit)]
    drawn[~np.isfinite(parts)] = 255
    return replace(tile_sheet([*crops, *drawn], len(crops)), low=-limit, high=limit)


def _feature_preview(evidence: Evidence, key: str, channel: int) -> Picture:
    """The picture that excites the channel, in the height of its patches' sheet, and the sheet."""
    sheet = feature_sheet(evidence, key, channel)
    height = sheet.pixels.shape[0]
    maximized = Image.fromarray(evidence.array("features", f"{key}/{channel}/maximized"))
    width = max(1, round(maximized.width * height / maximized.height))
    gap = np.full((height, 3, 3), 255, np.uint8)
    scaled = np.asarray(maximized.resize((width, height), Image.Resampling.BICUBIC))
    return replace(sheet, pixels=np.concatenate([scaled, gap, sheet.pixels], axis=1))


def _previews(evidence: Evidence) -> list[tuple[str, str, Picture]]:
    pictures: list[tuple[str, str, Picture]] = []
    images = evidence.array("inputs", "images") if evidence.has("inputs", "images") else None
    if images is not None:
        for number, (name, image) in enumerate(zip(evidence.manifest.inputs["names"], images, strict=False)):
            slug = re.sub(r"[^A-Za-z0-9._-]", "_", Path(str(name)).stem)[:80]
            pictures.append(("inputs", f"{number:03d}-{slug}", Picture(np.ascontiguousarray(image))))
    for call in evidence.calls:
        pictures += [(kind, call.slug, _preview(evidence, call, kind)) for kind in preview_kinds(evidence, call)]
        pictures += [
            ("features", f"{call.slug}-{channel}", _feature_preview(evidence, call.key, channel))
            for channel in feature_channels(evidence, call.key)
        ]
    if images is not None:
        pictures += [
            ("attributions", method, _attribution_sheet(images, evidence.array("attributions", method)[:, 0], method))
            for method in attribution_methods(evidence)
        ]
    return pictures


def _preview(evidence: Evidence, call: Call, kind: str) -> Picture:
    if kind == "kernels":
        return kernel_picture(evidence.array("kernels", str(_kernels(evidence, call))), width=480)
    if kind == "activations":
        values = decode_activations(evidence, call.key)[0]
        return activation_picture(values, *value_range([values]), width=480)
    maps = [evidence.array("maps", f"{method}/{call.key}")[:, 0] for method in map_methods(evidence, call.key)]
    return _indexed_overlays(evidence.array("inputs", "images"), np.stack(maps))


def _attribution_sheet(images: Bytes, values: Floats, method: str) -> Picture:
    photos = [photo_tile(image, PREVIEW_SIDE) for image in images]
    views = attribution_view(values, method, photos[0].shape[:2])
    limit = attribution_limit([views])
    tiles = [*photos, *(attribution_tile(view, method, limit) for view in views)]
    return replace(tile_sheet(tiles, len(photos)), low=-limit, high=limit)


def _indexed_overlays(images: Bytes, maps: Floats, side: int = 80, colours: int = 12, grays: int = 21) -> Picture:
    """Overlay sheet of 12 x 21 = 252 colours; rows are methods, columns images."""
    photos = np.stack([_gray(_shrink(image, side)) for image in images])
    heat = heatmap(maps, (photos.shape[1], photos.shape[2]))
    level = np.round(heat * (colours - 1)) * grays + np.round(photos / 255 * (grays - 1))
    blank = ~heat.any(axis=(-2, -1), keepdims=True)
    level[blank & _lettering("blank", photos.shape[1:])] = colours * grays  # white, behind the palette's end
    ramp = VIRIDIS[np.round(np.linspace(0, LEVELS - 1, colours)).astype(int)].astype(np.float64)[:, None]
    gray = np.linspace(0, 255, grays)[None, :, None]
    cover = np.linspace(*OPACITY, colours)[:, None, None]
    palette = np.round(cover * ramp + (1 - cover) * gray).astype(np.uint8).reshape(-1, 3)
    tiles = level.astype(np.uint8).reshape(-1, *photos.shape[1:])
    return Picture(tile(tiles, len(images), gutter=2), palette)


def _clamped(maps: Any) -> Floats:
    return np.maximum(np.nan_to_num(_floats(maps).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0), 0)


def _full_palette(palette: Bytes) -> Bytes:
    """256 colours: the palette, and white for the indices it leaves free."""
    return np.concatenate([palette, np.full((256 - len(palette), 3), 255, np.uint8)])


def _floats(values: Any) -> Floats:
    """A float array from an array, a list or (without importing torch) a tensor."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    array = np.asarray(values)
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _photo(image: Any) -> Bytes:
    """An RGB photo (H, W, 3) uint8 from a PIL image, an array or a tensor."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"image must have shape (H, W), (H, W, 3) or (3, H, W), not {array.shape}")
    if array.dtype != np.uint8:
        array = np.round(np.clip(np.nan_to_num(array.astype(np.float64)), 0, 1) * 255).astype(np.uint8)
    return array


def _gray(photo: Bytes) -> Floats:
    """Luma of ITU-R BT.601, shape (H, W), in 0 ... 255."""
    return np.asarray(photo.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def _blend(gray: Floats, heat: Floats) -> Bytes:
    if heat.ndim != 2:
        raise ValueError(f"heatmap must have shape (h, w), not {heat.shape}")
    if heat.shape != gray.shape:
        heat = _resize(heat.astype(np.float64), gray.shape[:2])
    colours = VIRIDIS[indices(heat, 0, 1)].astype(np.float64)
    cover = (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * np.clip(heat, 0, 1))[..., None]
    blended: Bytes = np.round(cover * colours + (1 - cover) * gray[..., None]).astype(np.uint8)
    return blended


def _shrink(photo: Bytes, side: int) -> Bytes:
    """The photo with its longer side at most ``side`` pixels."""
    height, width = photo.shape[:2]
    ratio = side / max(height, width)
    if ratio >= 1:
        return photo
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(photo)).resize(size, Image.Resampling.BOX))


def _unit(values: Floats, axes: tuple[int, ...]) -> Floats:
    """(z - min) / (max - min) over the axes; zeros where max = min."""
    low, high = values.min(axis=axes, keepdims=True), values.max(axis=axes, keepdims=True)
    span = high - low
    return np.asarray(np.where(span > 0, (values - low) / np.where(span > 0, span, 1), 0))


def _resize(values: Floats, size: tuple[int, ...]) -> Floats:
    """Bilinear resize of the last two axes, align_corners=False, as two small matrix products."""
    return np.asarray(_bilinear(values.shape[-2], size[0]) @ values @ _bilinear(values.shape[-1], size[1]).T)


def _bilinear(length: int, size: int) -> Floats:
    """Interpolation weights (size, length): output i looks at (i + 1/2) length / size - 1/2, clamped to the ends."""
    position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    lower = np.floor(position).astype(int)
    upper = np.minimum(lower + 1, length - 1)
    weights = np.zeros((size, length))
    np.add.at(weights, (np.arange(size), lower), 1 - (position - lower))
    np.add.at(weights, (np.arange(size), upper), position - lower)
    return weights


def _averaging(length: int, size: int) -> Floats:
    """Weights (size, length) of the means over equal intervals of an axis; whole copies where it becomes longer."""
    edges, cells = np.arange(size + 1) * length / size, np.arange(length)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.maximum(overlap, 0.0) * size / length)


def _lettering(word: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a word written in the middle of a tile (H, W) is dark; a cross where the tile is too small for it."""
    height, width = shape
    canvas = Image.new("L", (width, height))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(9, min(shape) // 5))
    if font.getlength(word) < width - 2:
        pen.text((width / 2, height / 2), word, 255, font, anchor="mm")
    else:
        pen.line([(0, 0), (width - 1, height - 1)], 255)
        pen.line([(0, height - 1), (width - 1, 0)], 255)
    return np.asarray(canvas) > 127


def _columns(count: int, tile_width: int, tile_height: int, width: int) -> int:
    """Tiles per row that give a picture a little wider than high, and never wider than twice ``width``."""
    wish = int(np.ceil(np.sqrt(count * 1.6 * tile_height / tile_width)))
    return max(1, min(count, wish, max(1, 2 * width // (tile_width + 1))))


def _enlargement(columns: int, tile_width: int, width: int) -> int:
    """The integer factor that brings a row of tiles near to the wished width."""
    return max(1, round((width / columns - 1) / tile_width))
