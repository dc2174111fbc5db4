"""Limits of a trial, in time and memory: those given, those of the store, or the usual ones."""

from __future__ import annotations

from dataclasses import dataclass

from onnxfi.campaign.results.store import Store
from onnxfi.errors import InputError
from onnxfi.runtime.data.npz import memory_bytes
from onnxfi.runtime.engine.process_memory import can_limit_memory

#: A trial hangs when it takes longer than this, and than so many golden runs.
TIMEOUT_S = 10.0
TIMEOUT_GOLDEN_RUNS = 20
_LONGEST_TIMEOUT_S = 1e6
#: The share of the machine's memory that one worker may take.
_MEMORY_SHARE = 0.75


@dataclass(frozen=True)
class TrialLimits:
    """Limits of a trial in a worker process, as they were given; None: those of the store, else the usual ones."""

    timeout_s: float | None
    memory_bytes: int | None

    def check(self, *, watched: bool, owned: bool) -> None:
        """Refuse limits that cannot be enforced, or that no trial could keep."""
        seconds, size = self.timeout_s, self.memory_bytes
        if not watched and (seconds is not None or size is not None):
            raise InputError("--timeout and --worker-memory require local worker processes; leave them out")
        if seconds is not None and not 0 < seconds <= _LONGEST_TIMEOUT_S:
            raise InputError(
                f"timeout {seconds:g} is out of range; give seconds above 0, up to {_LONGEST_TIMEOUT_S:,.0f}"
            )
        if size is not None and not owned:
            raise InputError(
                "workers of a scheduler have limits of their own (dask worker --memory-limit); leave it out"
            )
        if size is not None and not can_limit_memory():
            raise InputError("a limit of memory can be held on Linux alone; leave --worker-memory out")
        if size is not None and not 0 < size < 1 << 62:
            raise InputError(f"a worker's memory of {size:,} bytes is out of range; give 1 MB or more")

    def keep(self, store: Store, golden_s: float) -> None:
        """Store the limits: those given, else those of the store, else from the golden run and the machine."""
        seconds = self.timeout_s
        if seconds is not None and seconds < golden_s:
            raise InputError(
                f"timeout {seconds:g} s is less than the golden run takes, {golden_s:.2g} s; give a longer one"
            )
        usual = max(TIMEOUT_S, TIMEOUT_GOLDEN_RUNS * golden_s)
        store.put(
            golden_s=store.get("golden_s") or golden_s,
            timeout_s=seconds or store.get("timeout_s") or usual,
            memory_bytes=self.memory_bytes or store.get("memory_bytes") or _usual_memory(),
        )


def memory_limit(store: Store) -> int | None:
    """Return the memory limit with which the campaign began, if that is not the usual one."""
    kept: int | None = store.get("memory_bytes")
    return None if kept == _usual_memory() else kept


def _usual_memory() -> int | None:
    return int(_MEMORY_SHARE * memory_bytes()) if can_limit_memory() else None
