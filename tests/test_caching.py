from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interpret import caching
from interpret.caching import Cache, cache_folder, open_cache
from interpret.errors import EvidenceError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def giving(content: bytes) -> Callable[[Path], None]:
    def download(file: Path) -> None:
        file.write_bytes(content)

    return download


def refuse(_: Path) -> None:
    raise AssertionError("downloaded")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_downloaded_once(tmp_path: Path) -> None:
    digest = sha256(b"layers")
    cache = Cache(tmp_path)
    assert cache.read("layers.npz", digest, giving(b"layers")) == b"layers"
    assert cache.read("layers.npz", digest, refuse) == b"layers"
    assert files(tmp_path) == {f"{digest[:2]}/{digest}": b"layers"}


def test_without_a_digest_nothing_is_kept(tmp_path: Path) -> None:
    assert Cache(tmp_path).read("journal.json", None, giving(b"{}")) == b"{}"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_downloaded_again(tmp_path: Path) -> None:
    digest = sha256(b"layers")
    place = tmp_path / digest[:2] / digest
    place.parent.mkdir()
    place.write_bytes(b"half")
    assert Cache(tmp_path).read("layers.npz", digest, giving(b"layers")) == b"layers"
    assert place.read_bytes() == b"layers"


@pytest.mark.parametrize("digest", [sha256(b"layers"), "../../evil", ""])
def test_another_content_is_refused_and_not_kept(tmp_path: Path, digest: str) -> None:
    cache = Cache(tmp_path / "cache")
    cache.folder.mkdir()
    with pytest.raises(EvidenceError, match=r"^layers\.npz of run 3f2a was changed after the audit"):
        cache.read("layers.npz of run 3f2a", digest, giving(b"other"))
    assert list(cache.folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [cache.folder]


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="downloaded"):
        Cache(tmp_path).read("layers.npz", sha256(b"layers"), refuse)
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    contents = [bytes([65 + number]) * 10 for number in range(4)]
    for age, content in enumerate(contents):
        cache.read("x", sha256(content), giving(content))
        os.utime(tmp_path / sha256(content)[:2] / sha256(content), (1000 + age, 1000 + age))
    assert cache.read("x", sha256(contents[0]), refuse) == contents[0]  # used just now
    cache.shrink(limit=25)
    assert sorted(files(tmp_path).values()) == [contents[0], contents[3]]
    cache.shrink(limit=20)
    assert len(files(tmp_path)) == 2
    cache.shrink(limit=0)
    assert files(tmp_path) == {}


def test_only_the_caches_own_files_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "thesis.txt").write_bytes(b"mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / sha256(b"")).write_bytes(b"mine")
    old, new = tmp_path / ".part-old", tmp_path / ".part-new"
    for part in (old, new):
        part.mkdir()
        (part / "file").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * caching.ABANDONED_SECONDS,) * 2)
    Cache(tmp_path).shrink(limit=0)
    assert set(files(tmp_path)) == {"ab/thesis.txt", f"photos/{sha256(b'')}", ".part-new/file"}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("INTERPRET_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "mlflow-interpret"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mlflow-interpret"
    monkeypatch.setenv("INTERPRET_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert open_cache(tmp_path / "unused").folder == tmp_path / "mine"
    monkeypatch.setenv("INTERPRET_CACHE", "")
    assert cache_folder() is None
    assert open_cache(tmp_path / "temporary").folder == tmp_path / "temporary"


def test_a_folder_that_cannot_be_written_is_said_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "file" / "cache"))
    assert open_cache(tmp_path / "temporary").folder == tmp_path / "temporary"
    assert "nothing is cached in" in caplog.text
    assert "Not a directory" in caplog.text


def test_an_opened_cache_is_within_its_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Cache.shrink, "__defaults__", (15,))
    for content in (b"a" * 10, b"b" * 10):
        open_cache(tmp_path / "temporary").read("x", sha256(content), giving(content))
    assert len(files(tmp_path / "cache")) == 2
    open_cache(tmp_path / "temporary")
    assert len(files(tmp_path / "cache")) == 1


def test_several_processes_share_the_folder(tmp_path: Path) -> None:
    script = (
        "import hashlib, sys\nfrom pathlib import Path\nfrom interpret.caching import Cache\n"
        "for number in range(50):\n"
        "    content = bytes([number]) * 100_000\n"
        "    digest = hashlib.sha256(content).hexdigest()\n"
        "    cache = Cache(Path(sys.argv[1]))\n"
        "    assert cache.read('x', digest, lambda file: file.write_bytes(content)) == content\n"
        "    cache.shrink(limit=1_000_000)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    kept = files(tmp_path)
    assert 0 < len(kept) <= 10
    assert all(sha256(content) == Path(name).name for name, content in kept.items())
