"""CPU cores and memory available to this process."""

import os
from pathlib import Path

sharing = 1
"""Number of worker processes on this machine, including this one, that share the free memory."""


def readable(size: int) -> str:
    """Formats bytes: "2.4 GB", "350 MB", "0.1 MB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.{0 if size >= 1e7 else 1}f} MB"


def free_memory() -> int:
    """Bytes available to this process: its share of the free memory of the machine or container, whichever is less."""
    import psutil  # here, because the check of the settings does not need it

    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free // sharing


def available_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
