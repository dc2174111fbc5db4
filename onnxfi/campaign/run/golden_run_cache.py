"""The cache of golden runs: outputs by the digest of all that fixes them. Described in docs/how-to/ci.md.

A file holds the bytes of all outputs, with their names, types and shapes, and a SHA-256. A damaged or
unreadable file counts as missing: the cache affects the time of a campaign, never its results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.flat_fields import flat
from onnxfi.errors import InputError
from onnxfi.graph.protection.alarms import ALARM
from onnxfi.graph.write.output_file import atomic_files
from onnxfi.runtime.data.npz import read_npz
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Array, element_type, type_name
from onnxfi.tasks.outcomes import GoldenRun
from onnxfi.tasks.registry import task_identity

LARGEST_FILE_BYTES = 64 << 20
LARGEST_CACHE_BYTES = 256 << 20
_LOG = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Return the folder of golden runs: `ONNXFI_CACHE`, else the user's cache folder; None for `off`."""
    named = os.environ.get("ONNXFI_CACHE", "")
    if named == "off":
        return None
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "onnxfi" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/onnxfi").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "onnxfi"


def cached_golden(executor: TrialExecutor) -> tuple[GoldenRun, float]:
    """Golden as `GoldenRuns.run` finds it, where the kept outputs stand for its first run if the second agrees."""
    folder = cache_folder()
    if folder is None:
        return executor.golden_runs.run()
    file = folder / f"golden-{_key(executor)[:32]}.npz"
    kept = read_outputs(file)
    golden, golden_s = executor.golden_runs.run(kept)
    if kept is None or golden.run is not kept:
        keep_outputs(file, golden.run)
    return golden, golden_s


def _key(executor: TrialExecutor) -> str:
    """Return the digest of everything known to determine the outputs bit for bit."""
    opened = executor.opened
    c = opened.campaign
    libraries = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in c.engine.custom_ops]
    values = {
        **flat(replace(c.engine, route="auto")), "provider": opened.provider, "custom_ops": libraries,
        "model": opened.model.digest, "data": opened.data.digest, "output": ", ".join(opened.names),
        "batch": opened.size, "time_axis": c.scoring.time_axis, "batch_axis": c.data.batch_axis,
        "versions": [version("onnxfi"), c.engine.open().version, np.__version__],
        "machine": [platform.system(), platform.machine(), _processor()],
    }  # fmt: skip
    if opened.reduce is not None:
        values["task"] = task_identity(c.scoring.task)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _processor() -> str:
    """Return the name and instruction sets of the processor, by which a runtime chooses its kernels."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
        fields = dict(line.partition(":")[::2] for line in lines)
        found = {name.strip(): value.strip() for name, value in fields.items()}
        return " ".join(found.get(name, "") for name in ("model name", "flags", "Features"))
    return platform.processor()


def read_outputs(file: Path) -> tuple[Outputs, ...] | None:
    """Return the outputs of a file, bit for bit; None if it is damaged or not there."""
    try:
        if file.stat().st_size > 2 * LARGEST_FILE_BYTES:
            return None
        held = read_npz(file)
        data, rows = held["data"], str(held["layout"])
        if str(held["sha256"]) != _checksum(data, rows):
            return None
        found, at = [], 0
        for samples, arrays in json.loads(rows):
            kept = {}
            for name, kind, shape in arrays:
                dtype = element_type(kind)
                end = at + math.prod(shape) * dtype.itemsize
                kept[name], at = data[at:end].view(dtype).reshape(shape), end
            found.append(Outputs(np.arange(*samples), kept))
        with suppress(OSError):
            os.utime(file)  # the oldest go first
        return tuple(found)
    except FileNotFoundError:
        return None
    except (OSError, InputError, KeyError, TypeError, ValueError) as error:
        _LOG.debug("the cached golden run %s is not used: %s", file, error)
        return None


def _with_alarms(outputs: Outputs) -> dict[str, Array]:
    """Return the arrays of outputs with that of alarms, which reading takes out again."""
    alarms = {} if outputs.alarms is None else {ALARM: outputs.alarms.astype(np.float32)}
    return {**outputs.arrays, **alarms}


def keep_outputs(file: Path, run: tuple[Outputs, ...]) -> None:
    """Write outputs that are not too large to a file, and remove the oldest files of its folder beyond the bound."""
    named = [_with_alarms(outputs) for outputs in run]
    every = [array for arrays in named for array in arrays.values()]
    if sum(array.nbytes for array in every) > LARGEST_FILE_BYTES or any(array.dtype.hasobject for array in every):
        return
    data = np.frombuffer(b"".join(array.tobytes() for array in every), np.uint8)
    rows = json.dumps([
        ([int(o.samples[0]), int(o.samples[-1]) + 1], [(n, type_name(a), a.shape) for n, a in arrays.items()])
        for o, arrays in zip(run, named, strict=True)
    ])  # fmt: skip
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files([file]) as (stream,):
            np.savez(stream, data=data, layout=rows, sha256=_checksum(data, rows))
        _trim(file.parent)
    except (OSError, InputError) as error:
        _LOG.debug("the golden run is not cached: %s", error)


def _checksum(data: Array, layout: str) -> str:
    return hashlib.sha256(data.tobytes() + layout.encode()).hexdigest()


def _trim(folder: Path) -> None:
    """Remove the oldest files until the rest is within bounds."""
    found = []
    for file in folder.glob("golden-*.npz"):
        with suppress(OSError):
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= LARGEST_CACHE_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= size
