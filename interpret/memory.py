"""Memory: what a device still has."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import torch

# limit, what is used, and what of it is cached files that can go
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
UNKNOWN = 2**31  # where no system says anything


def available_bytes(device: torch.device) -> int:
    """Bytes that a device can still give, as far as the system says; of the CPU within the limits of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    amounts = [UNKNOWN]
    with suppress(AttributeError, ValueError, OSError):  # Windows has no such call
        amounts = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    with suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        amounts = [int(found[1]) * 1024] if found else amounts
    for limit, used, stat in CGROUPS:
        with suppress(OSError, ValueError):  # no such control group, or "max"
            free = int(Path(limit).read_text()) - int(Path(used).read_text())
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", Path(stat).read_text(), re.MULTILINE)
            amounts.append(free + (int(cached[1]) if cached else 0))
    return max(0, min(amounts))


def size_in_words(size: float) -> str:
    """A number of bytes for people.

    >>> size_in_words(3 * 2**30), size_in_words(45 * 2**20)
    ('3.0 GiB', '45 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
