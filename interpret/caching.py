"""Downloaded files by their sha256, in the user's cache folder: what was fetched once is not fetched again.

The folder is `$INTERPRET_CACHE`, else `$XDG_CACHE_HOME/mlflow-interpret`, else `~/.cache/mlflow-interpret`. It holds
files of evidence bundles and nothing else, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from interpret.errors import EvidenceError

logger = logging.getLogger("interpret")

DIGEST = "[0-9a-f]{64}"
LIMIT = 10 * 1024**3  # bytes; what was not used for longest goes first
ABANDONED_SECONDS = 24 * 3600  # age of a half-written file whose process is gone


@dataclass(frozen=True, slots=True)
class Cache:
    """Files by their digest. Several processes may share the folder.

    Attributes:
        folder: where the files lie, as `<first two digits>/<sha256>`.
    """

    folder: Path

    def read(self, what: str, sha256: str | None, download: Callable[[Path], None]) -> bytes:
        """A file's content, downloaded where it is not here yet.

        Args:
            what: name of the file, for messages.
            sha256: of its content, in lower case; without it, or where it is no digest, the file is downloaded and not
                kept.
            download: writes the file to the path that it is given.

        Raises:
            EvidenceError: what was downloaded has another digest.
        """
        place = None
        if sha256 is not None and re.fullmatch(DIGEST, sha256):
            place = self.folder / sha256[:2] / sha256
            content = _content(place)
            if content is not None and _sha256(content) == sha256:
                with suppress(FileNotFoundError):
                    os.utime(place)
                return content
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".part-") as part:
            file = Path(part, "file")
            download(file)
            content = file.read_bytes()
            if sha256 is not None and _sha256(content) != sha256:
                raise EvidenceError(f"{what} was changed after the audit: its sha256 does not match")
            if place is not None:
                place.parent.mkdir(exist_ok=True)
                file.replace(place)  # at once or not at all: another process never sees half a file
        return content

    def shrink(self, limit: int = LIMIT) -> None:
        """Delete what was not used for longest until the files take no more than the limit, in bytes.

        Only files that bear a digest as their name are touched: the folder may be somebody's own.
        """
        files = []
        for file in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):  # another process deleted it
                status = file.stat()
                if re.fullmatch(DIGEST, file.name):
                    files.append((status.st_mtime, status.st_size, file))
        for part in self.folder.glob(".part-*"):
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(part, ignore_errors=True)
        excess = sum(size for _, size, _ in files) - limit
        for _, size, file in sorted(files):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= size


def open_cache(fallback: Path) -> Cache:
    """The user's cache, within its bounds; in the fallback folder where it is switched off or cannot be written.

    Args:
        fallback: a folder of the caller, who deletes it.
    """
    fallback.mkdir(parents=True, exist_ok=True)
    folder = cache_folder()
    if folder is None:
        return Cache(fallback)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logger.warning(
            "nothing is cached in %s (%s); set INTERPRET_CACHE to a folder that can be written, or to nothing",
            folder,
            error.strerror,
        )
        return Cache(fallback)
    cache = Cache(folder)
    cache.shrink()
    return cache


def cache_folder() -> Path | None:
    """The user's cache folder; None where `INTERPRET_CACHE` is set to nothing."""
    chosen = os.environ.get("INTERPRET_CACHE")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "mlflow-interpret"


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
