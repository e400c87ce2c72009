from pathlib import Path

import pytest
import torch

from interpret import memory


def test_what_the_cpu_still_has_is_what_the_system_says() -> None:
    free = memory.available_bytes(torch.device("cpu"))
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(fields["MemTotal"].split()[0]) * 1024
    assert 2**26 < free < total


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("1000", "400", 650), ("max", "400", None), ("1000", "2000", 0), (None, None, None)],
)
def test_containers_have_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, used: str | None, free: int | None
) -> None:
    for name, text in (("max", limit), ("current", used)):
        if text is not None:
            (tmp_path / name).write_text(text)
    (tmp_path / "stat").write_text("active_file 7\ninactive_file 50\n")
    monkeypatch.setattr(memory, "CGROUPS", (tuple(str(tmp_path / name) for name in ("max", "current", "stat")),))
    found = memory.available_bytes(torch.device("cpu"))
    assert found == free if free is not None else found > 2**26


def test_where_the_system_does_not_say_half_of_the_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUPS", ())
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere") / str(name).lstrip("/"))
    assert memory.available_bytes(torch.device("cpu")) > 2**28
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.available_bytes(torch.device("cpu")) == memory.UNKNOWN
