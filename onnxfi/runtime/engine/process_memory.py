"""Memory of this process: its use, its limit, and its release to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

#: glibc's number of the size from which on a block is mapped by itself.
_MMAP_THRESHOLD = -3


def can_limit_memory() -> bool:
    """Return True if the system enforces a memory limit of a process: Linux does."""
    return sys.platform == "linux"


def limit_memory(memory_bytes: int | None) -> None:
    """Limit the memory of this process from now on (None: no limit)."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    # Written memory, not reserved memory: a GPU's driver reserves more than any machine has.
    resource.setrlimit(resource.RLIMIT_DATA, (most if memory_bytes is None else memory_bytes, most))


def give_back() -> None:
    """Have blocks of 1 MB or more go back to the system as soon as they are free, where the C library can do that.

    Otherwise glibc keeps freed blocks of up to 32 MB, which doubles the memory of sessions opened one after another.
    That is faster, so it stays the default for small models.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def memory_held() -> int:
    """Bytes that count against the limit by now."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
