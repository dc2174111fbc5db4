"""The outcome table: the class outcomes of every single-bit fault of some tensors, in columns.

The format, version 1, is in docs/reference/outcome-table.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.runtime.data.npz import read_npz

Counts = NDArray[np.uint32]
VERSION = 1
#: The columns, each a number of samples for each element and bit.
COLUMNS = ("changed", "due", "right", "critical", "ran")


@dataclass(frozen=True)
class TensorTable:
    """The outcomes of all faults in one tensor: columns of shape [elements, bits], each a number of samples.

    Attributes
    ----------
    id, layer, dtype : str
        The target.
    bits : tuple of int
        The bit positions.
    changed, due, right, critical : uint32 array [elements, bits]
        Samples of SDC-1, of DUE, of a right answer, and of SDC-1 with a right golden answer.
    ran : uint32 array [elements, bits]
        Samples that ran; the classes of all others were proved.
    """

    id: str
    layer: str
    dtype: str
    bits: tuple[int, ...]
    changed: Counts = field(repr=False)
    due: Counts = field(repr=False)
    right: Counts = field(repr=False)
    critical: Counts = field(repr=False)
    ran: Counts = field(repr=False)

    @classmethod
    def empty(cls, target: str, layer: str, dtype: str, elements: int, bits: tuple[int, ...]) -> TensorTable:
        """Return a table in which no fault has an outcome yet."""
        return cls(target, layer, dtype, bits, *(np.zeros((elements, len(bits)), np.uint32) for _ in COLUMNS))

    @property
    def faults(self) -> int:
        """Return the number of faults."""
        return self.changed.size


@dataclass(frozen=True)
class OutcomeTable:
    """The outcomes of all faults of a campaign, and what fixes them.

    Attributes
    ----------
    header : dict
        The version, the identity of the campaign, the number of samples, the golden run and the cost.
    tensors : tuple of TensorTable
        The tables of the tensors, in file order.

    Examples
    --------
    >>> table = OutcomeTable({"samples": 10}, (TensorTable.empty("w", "conv", "float32", 4, (30, 31)),))
    >>> table.faults, table.samples, table.ran
    (8, 10, 0)
    """

    header: Mapping[str, Any]
    tensors: tuple[TensorTable, ...] = field(repr=False)

    @property
    def samples(self) -> int:
        """Return the number of samples on which each fault was judged."""
        return int(self.header["samples"])

    @property
    def faults(self) -> int:
        """Return the number of faults."""
        return sum(table.faults for table in self.tensors)

    @property
    def ran(self) -> int:
        """Return the number of pairs of a fault and a sample that ran; all others were proved."""
        return sum(int(table.ran.sum()) for table in self.tensors)

    def column(self, name: str) -> NDArray[np.uint32]:
        """Return one column of all faults ([faults]), tensor by tensor, element by element, bit by bit.

        >>> weight = TensorTable.empty("w", "conv", "float32", 2, (0, 1))
        >>> len(OutcomeTable({}, (weight, weight)).column("changed"))
        8
        """
        return np.concatenate([getattr(table, name).ravel() for table in self.tensors])

    def rows(self, by: str) -> list[dict[str, Any]]:
        """Return the rates of each layer, tensor (id) or bit: means over the faults, as shares of the samples."""
        groups: dict[Any, list[NDArray[np.float64]]] = {}
        for table in self.tensors:
            stacked = np.stack([getattr(table, column) for column in COLUMNS]).astype(np.float64)  # [columns, n, bits]
            if by == "bit":
                for at, bit in enumerate(table.bits):
                    groups.setdefault(bit, []).append(stacked[:, :, at])
            else:
                groups.setdefault(getattr(table, by), []).append(stacked.reshape(len(COLUMNS), -1))
        return [self._row(by, key, np.concatenate(parts, axis=1)) for key, parts in groups.items()]

    def _row(self, by: str, key: Any, columns: NDArray[np.float64]) -> dict[str, Any]:
        changed, due, right, critical, ran = columns / self.samples
        golden = self.header["golden"].get("top1")
        return {
            by: key, "faults": columns.shape[1], "sdc1": float(changed.mean()),
            "any_sdc1": float((changed > 0).mean()), "due_samples": float(due.mean()),
            "critical": None if golden is None else float(critical.mean()),
            "top1": None if golden is None else float(right.mean()), "ran": float(ran.mean()),
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return the counts with the rates by layer and by bit, as plain values."""
        found = {name: self.header[name] for name in ("samples", "golden", "cost")}
        found |= {"faults": self.faults, "pairs": self.faults * self.samples, "ran": self.ran}
        return found | {f"by_{by}": self.rows(by) for by in ("layer", "bit")}


def write_outcome_table(path: str | Path, table: OutcomeTable, *, compressed: bool = True) -> Path:
    """Write an outcome table; the file appears whole or not at all."""
    file = Path(path)
    tensors = [{"id": t.id, "layer": t.layer, "dtype": t.dtype, "bits": t.bits} for t in table.tensors]
    head = json.dumps({**table.header, "tensors": tensors}, sort_keys=True)
    arrays = {"header": np.frombuffer(head.encode(), np.uint8)}
    for number, one in enumerate(table.tensors):
        for column in COLUMNS:  # by bit: equal numbers lie beside each other, and bytes of one kind
            counts = getattr(one, column).T
            narrow = counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
            planes = np.ascontiguousarray(narrow).view(np.uint8).reshape(*narrow.shape, -1)
            arrays[f"{number}.{column}"] = np.ascontiguousarray(planes.transpose(2, 0, 1))
    check_output_files(None, [file], copy=False)
    with atomic_files([file]) as (stream,):
        (np.savez_compressed if compressed else np.savez)(stream, allow_pickle=False, **arrays)
    return file


def read_outcome_table(path: str | Path) -> OutcomeTable:
    """Read an outcome table.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    OutcomeTable
        The outcomes of all its faults.

    Raises
    ------
    DataError
        For a file that is no outcome table, or of another version.

    Examples
    --------
    >>> table = read_outcome_table("models/fashion_cnn_faults.npz")
    >>> table.faults, table.samples, table.ran
    (3387712, 1000, 3571432)
    """
    arrays = read_npz(Path(path))
    try:
        header = json.loads(arrays["header"].tobytes())
        version = header["version"]
        if version != VERSION:
            raise DataError(f"{str(path)!r} has version {version} of outcome tables, this onnxfi reads {VERSION}")
        tensors = []
        for number, head in enumerate(header.pop("tensors")):
            columns = (_whole(arrays[f"{number}.{column}"]) for column in COLUMNS)
            tensors.append(TensorTable(head["id"], head["layer"], head["dtype"], tuple(head["bits"]), *columns))
        return OutcomeTable(header, tuple(tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{str(path)!r} is no outcome table ({error}); write one with run --outcomes class") from error


def _whole(planes: NDArray[np.uint8]) -> Counts:
    """Return the counts [elements, bits] of their bytes [width, bits, elements]."""
    width = len(planes)
    joined = np.ascontiguousarray(planes.transpose(1, 2, 0)).view(f"<u{width}")[..., 0]
    return np.ascontiguousarray(joined.T.astype(np.uint32))


def save_part(path: Path, table: TensorTable, done: int = 0) -> None:
    """Keep the table of one tensor, of which so many faults are done; uncompressed, since that takes less time."""
    write_outcome_table(path, OutcomeTable({"version": VERSION, "done": done}, (table,)), compressed=False)


def load_part(path: Path) -> tuple[TensorTable, int]:
    """Return a kept table, and how many of its faults are done."""
    kept = read_outcome_table(path)
    return kept.tensors[0], int(kept.header["done"])
