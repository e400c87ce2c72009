"""Labels: the true class of each image, and the names of the classes."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from interpret.errors import ImageError, did_you_mean
from interpret.images import image_names

logger = logging.getLogger("interpret")


def labels_from_folders(
    paths: Sequence[str | Path], root: str | Path, class_names: Sequence[str] | None = None
) -> tuple[int, ...]:
    """The class of each image by the first folder below the root that it lies in.

    Folders are matched to the class names where these are given (case, spaces and underscores do not matter) or are the
    classes' numbers. Without class names, the sorted folders are numbered from 0, as torchvision's ImageFolder does:
    right only where every class has a folder, so the log says it.

    Raises:
        ImageError: an image lies in no folder, or a folder matches no class.
    """
    folders = [name.split("/") for name in image_names(paths, root)]
    for path, parts in zip(paths, folders, strict=True):
        if len(parts) < 2 or parts[0] == "..":
            raise ImageError(
                f"{str(path)!r} lies in no class folder below {str(root)!r}; expected {root}/CLASS/image.jpg"
            )
    names = sorted({parts[0] for parts in folders})
    index = {name: i for i, name in enumerate(names)}
    if class_names is None:
        logger.warning(
            "the %d class folders are numbered from 0 in the order of their names; "
            "give class names where the network has other classes",
            len(names),
        )
    else:
        index = {name: _class_index(name, class_names, f"folder {name!r}") for name in names}
    return tuple(index[parts[0]] for parts in folders)


def read_labels(
    file: str | Path, names: Sequence[str], class_names: Sequence[str] | None = None
) -> tuple[int | None, ...]:
    """The class of each named image from a CSV file with the columns ``file`` and ``label``.

    ``file`` is the image's name as recorded, or its last part where that is unique; ``label`` a number, a class name,
    or nothing where unknown. Other columns, and rows for other images, do not matter; of the rows the log tells.

    Args:
        file: the CSV file, UTF-8 or, with its byte order mark, UTF-16; separated by commas, semicolons or tabs.
        names: the images' names, as :func:`image_names` gives them.
        class_names: needed where the labels are names.

    Raises:
        ImageError: the file cannot be read, an image has no row or two that disagree, or a label is no class.
    """
    given = _label_rows(file)
    names = [_spelled(name) for name in names]
    last = [name.rpartition("/")[2] for name in names]
    count = Counter(last)
    keys = [short if name not in given and count[short] == 1 else name for name, short in zip(names, last, strict=True)]
    missing = [name for name, key in zip(names, keys, strict=True) if key not in given]
    if missing and len(missing) == len(names):
        listed = f", not {next(iter(given))!r}" if given else ""
        raise ImageError(
            f"{str(file)!r} has no row for any of the {len(names)} images; "
            f"its column 'file' must hold their names as they are recorded here, such as {names[0]!r}{listed}"
        )
    if missing:
        raise ImageError(
            f"{str(file)!r} has no row for {len(missing)} of {len(names)} images: {', '.join(missing[:3])}"
            f"{did_you_mean(missing[0], given)}; leave the label empty where it is unknown"
        )
    if unknown := sorted(set(given) - set(keys)):
        logger.warning(
            "%s names %d files that are not among the images: %s", file, len(unknown), ", ".join(unknown[:3])
        )
    return tuple(
        _class_index(given[key], class_names, f"label of {key!r} in {str(file)!r}") if given[key] else None
        for key in keys
    )


def _label_rows(file: str | Path) -> dict[str, str]:
    """The label of each file as the CSV spells it."""
    text = _read_text(file)
    head = next(iter(text.splitlines()), "").strip()
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    given: dict[str, str] = {}
    try:
        columns = {column.strip().casefold(): column for column in rows.fieldnames or ()}
        if not {"file", "label"} <= set(columns):
            raise ImageError(f"{str(file)!r} must begin with the line 'file,label', not {head[:80]!r}")
        for row in rows:
            name = _spelled(row[columns["file"]] or "")
            label = (row[columns["label"]] or "").strip()
            if given.setdefault(name, label) != label:
                raise ImageError(
                    f"{str(file)!r} gives {name!r} two labels, {given[name]!r} and in line {rows.line_num} {label!r}; "
                    "leave one out"
                )
    except csv.Error as error:
        raise ImageError(f"{str(file)!r} cannot be read as CSV: {error} (after line {rows.line_num})") from error
    return given


def _spelled(name: str) -> str:
    """A file's name as tables hold it, whatever system and program wrote them."""
    return name.strip().replace("\\", "/").removeprefix("./")


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Class names in order: one per line; or JSON: a list, index -> name, name -> index, or index -> [id, name].

    Raises:
        ImageError: the file cannot be read, or its indices are not 0, 1, 2, ...
    """
    text = _read_text(file)
    if not text.lstrip().startswith(("[", "{")):
        lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]
        if not any(lines):
            raise ImageError(f"{str(file)!r} is empty; it must hold one class name per line")
        if not all(lines):
            raise ImageError(f"{str(file)!r} must hold one class name per line; line {lines.index('') + 1} is empty")
        return tuple(lines)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{str(file)!r} is not valid JSON: {error}") from error
    count = len(content)  # before names of one index fall together
    if isinstance(content, list):
        content = dict(enumerate(content))
    elif all(isinstance(value, int) for value in content.values()):
        content = {index: name for name, index in content.items()}
    try:
        by_index = {int(key): value[-1] if isinstance(value, list) else value for key, value in content.items()}
        names = tuple(by_index[index] for index in range(count))
    except (ValueError, KeyError, IndexError) as error:
        raise ImageError(f"the classes in {str(file)!r} must be numbered 0, 1, 2, ... without a gap") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise ImageError(f'{str(file)!r} must hold class names as text, such as ["cat", "dog"]')
    return names


def _class_index(label: str, class_names: Sequence[str] | None, where: str) -> int:
    """The number of a class given by name or number. An exact name wins over a number."""
    known = class_names or ()
    plain = [name.casefold().replace("_", " ") for name in known]
    wanted = label.casefold().replace("_", " ")
    matches = [i for i, name in enumerate(known) if name == label] or [
        i for i, name in enumerate(plain) if name == wanted
    ]
    if len(matches) > 1:
        raise ImageError(f"{where}: {label!r} names classes {matches}; give the number instead")
    if matches:
        return matches[0]
    number = label.removesuffix(".0")  # tables with gaps hold their numbers as floats
    if number.isdecimal() and len(number) < 10 and (not known or int(number) < len(known)):
        return int(number)
    if not known:
        raise ImageError(f"{where}: {label!r} is no class number; give --class-names to use names")
    numbers = f" (0 to {len(known) - 1})" if number.lstrip("-").isdecimal() else ""
    raise ImageError(f"{where}: {label!r} is none of the {len(known)} classes{numbers}{did_you_mean(label, known)}")


def _read_text(file: str | Path) -> str:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ImageError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ImageError(
            f"{str(file)!r} cannot be read as UTF-8 text: {error.reason} in line {line}; save it as UTF-8"
        ) from error
