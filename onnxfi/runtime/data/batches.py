"""Samples for a model, and their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.batch_layout import BatchLayout, find_batch_layout
from onnxfi.runtime.data.images import ImageFolder
from onnxfi.runtime.data.labels import Labels
from onnxfi.runtime.engine.ports import Array, Port, native, type_name

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Batch:
    """Samples that are run together.

    `start` is the number of the first one, `size` how many `feeds` holds, `valid` how many of these are
    samples. The rest repeats the last sample, if the model has a fixed batch size and
    too few samples are left; `trim` removes it from the outputs. `labels` has shape [valid].
    """

    start: int
    feeds: Feeds
    labels: Labels | None
    size: int
    valid: int

    def trim(self, outputs: Feeds, *, axis: int = 0) -> dict[str, Array]:
        """Return the outputs without the rows of the repeated sample.

        >>> batch = Batch(8, {}, None, size=4, valid=1)
        >>> batch.trim({"scores": np.ones((4, 10)), "loss": np.ones(())})["scores"].shape
        (1, 10)
        """
        padded = self.valid < self.size
        return {
            name: array.take(range(self.valid), axis)
            if padded and array.ndim > axis and array.shape[axis] == self.size
            else array
            for name, array in outputs.items()
        }


def layout(inputs: Sequence[Port], batch_axis: int, given: Mapping[str, Sequence[int]] | None = None) -> BatchLayout:
    """Find the inputs that hold samples along `batch_axis`; `given` are the shapes of arrays (see `find_batch_layout`).

    >>> layout([Port("x", "float32", ("N", 3)), Port("rate", "int64", ())], 0)
    BatchLayout(axis=0, axes=(('x', 0),), fixed=None)
    >>> layout([Port("x", "float32", (4, 3))], 0).fixed
    4
    """
    return find_batch_layout({port.name: port.shape for port in inputs}, batch_axis, given)


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for a model, checked against its inputs.

    `inputs` are the names fed, `samples` their number, `labels` what is right for each (None: unknown; see labels.py),
    `synthetic` whether they are made up, `description` a line for people. `layout.fixed` is the model's
    fixed batch size, if it has one.
    """

    inputs: tuple[str, ...]
    samples: int
    labels: Labels | None
    synthetic: bool
    description: str
    layout: BatchLayout
    _cut: Callable[[int], Iterator[Feeds]] = field(repr=False)
    #: Classes that the labels count, where they are numbered by what the data holds; None if the labels say.
    classes: int | None = None
    #: The files that samples are read from, where they are images.
    images: ImageFolder | None = field(default=None, repr=False)

    @classmethod
    def of_arrays(
        cls, arrays: Feeds, labels: Labels | None, place: BatchLayout, description: str, *, synthetic: bool = False
    ) -> Data:
        """Hold arrays in memory as data that is cut to any size."""
        samples = place.rows(arrays)

        def cut(size: int) -> Iterator[Feeds]:
            return (place.part(arrays, start, start + size) for start in range(0, samples, size))

        return cls(tuple(arrays), samples, labels, synthetic, description, place, cut)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the samples in order, `size` at a time; the last batch may be smaller.

        Where the model takes one batch size only, that must be asked for, and a last part is filled up
        (`Batch.valid`). Batches that a function made stay as it made them.

        >>> arrays = {"x": np.zeros((5, 3), np.float32)}
        >>> data = Data.of_arrays(arrays, None, layout([Port("x", "float32", ("N", 3))], 0), "zeros")
        >>> [(batch.start, batch.size) for batch in data.batches(2)]
        [(0, 2), (2, 2), (4, 1)]
        """
        fixed = self.layout.fixed
        if size < 1:
            raise DataError(f"batch size is {size}; it takes 1 or more")
        if fixed is not None and size != fixed:
            raise DataError(f"the model takes batches of {fixed}, not of {size}")
        start = 0
        for feeds in self._cut(size):
            valid = self.layout.rows(feeds)
            labels = None if self.labels is None else self.labels[start : start + valid]
            full = valid if fixed is None else fixed
            padded = feeds if full == valid else self.layout.pad(feeds, full)
            yield Batch(start, padded, labels, full, valid)
            start += valid

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content: by input, the type, shape and bytes of every sample; then the labels.

        Its origin and batch size are not included.
        """
        hashes = {name: hashlib.sha256() for name in sorted(self.inputs)}
        whole: dict[str, bytes] = {}
        for feeds in self._cut(self.layout.fixed or 64):
            for name, hashed in hashes.items():
                if name in self.layout.batched:
                    for sample in np.moveaxis(feeds[name], self.layout.batched[name], 0):
                        hashed.update(_content(np.asarray(sample)))
                elif whole.get(name) != (content := _content(feeds[name])):
                    whole[name] = content
                    hashed.update(content)
        text = "".join(f"{name!r} {hashed.hexdigest()}\n" for name, hashed in hashes.items())
        labels = b"" if self.labels is None else _content(self.labels)
        return hashlib.sha256(text.encode() + labels).hexdigest()


def _content(array: Array) -> bytes:
    """Type, shape and little-endian bytes of an array."""
    array = native(array)
    if array.dtype.kind == "O":
        words = [str(one).encode() for one in array.flat]
        data = b"".join(b"%d:%s" % (len(word), word) for word in words)
    else:
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return f"{type_name(array)}{array.shape}".encode() + data
