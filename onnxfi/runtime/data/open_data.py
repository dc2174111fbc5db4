"""Opening of data: samples from an archive, a folder of images or events, a function, or synthetic ones.

`open_data` reads any of them into one `Data`, checked against the model's inputs. What a `Data` is stands in
batches.py; npz.py, images.py and events.py read three of the kinds, label_files.py labels of their own;
docs/how-to/data.md describes all for users.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.errors import DataError, closest
from onnxfi.extensions import importable, names_function
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.runtime.data.batches import Batch, Data, layout
from onnxfi.runtime.data.decoder_inputs import completed
from onnxfi.runtime.data.events import holds_events, open_events
from onnxfi.runtime.data.images import open_folder
from onnxfi.runtime.data.in_memory import named_arrays, synthetic
from onnxfi.runtime.data.label_files import LABEL_FILES, Samples, read_labels
from onnxfi.runtime.data.labels import Labels, join_labels
from onnxfi.runtime.data.labels import checked as checked_labels
from onnxfi.runtime.data.npz import read_headers, read_npz
from onnxfi.runtime.data.texts import holds_texts, read_texts
from onnxfi.runtime.engine.ports import ONNX_NUMBER, Array, Port, element_type, fits, one_line, shape_text, type_name

__all__ = ["Batch", "Data", "data_of", "data_of_batches", "open_data", "synthetic"]

_SYNTHETIC_SAMPLES = 8


def open_data(
    spec: Any,
    inputs: Sequence[Port],
    *,
    preprocess: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_axis: int = 0,
    labels: str | Path | None = None,
    dim: Sequence[str] = (),
) -> Data:
    """Open labelled data for a model with these inputs.

    Parameters
    ----------
    spec : str, Path, mapping of str to array, array, tuple, iterable, or None
        An `.npz` archive; a folder of images by class, or of event recordings; a file of texts; ``module:function``;
        arrays by name, an
        array or tensor, a pair of these and their labels, a dataset of PyTorch or TensorFlow, or another iterable of
        samples or batches (see `named_arrays`); or None for synthetic inputs.
    inputs : sequence of Port
        The inputs of the model, as `Session.inputs`.
    preprocess : str or Path, optional
        YAML file that describes the preprocessing of a folder or of texts, or the name of a preset of images; by
        default `preprocess.yaml` or `events.yaml` in it, or `text.yaml` beside them.
    limit : int, optional
        Number of samples: the first of the data, or that many synthetic ones.
    seed : int
        Seed of synthetic inputs.
    batch_axis : int
        The axis that counts samples.
    labels : str or Path, optional
        A file or folder of labels, as `read_labels` takes it, or the name of the array that holds them; by default the
        array "labels".
    dim : sequence of str
        Sizes of open dimensions of synthetic inputs, each as ``NAME=SIZE``, or ``INPUT[AXIS]=SIZE`` of one without a
        name; 32 by default.

    Returns
    -------
    Data
        The samples and their labels, read as they are needed.

    Raises
    ------
    DataError
        If the data is missing or damaged, or its names, types, shapes or numbers do not fit.

    Examples
    --------
    >>> port = Port("x", "float32", ("N", 3))
    >>> data = open_data({"x": np.ones((5, 3), np.float32), "labels": np.arange(5)}, [port], limit=4)
    >>> data.samples, data.labels, data.description
    (4, array([0, 1, 2, 3]), '4 labelled samples of the arrays given')
    >>> open_data({"x": np.ones((5, 4), np.float32)}, [port])
    Traceback (most recent call last):
    onnxfi.errors.DataError: the arrays given: 'x' has shape [5,4], the input is 'x' (float32 [N,3])
    """
    ports = tuple(port for port in inputs if not port.dtype.startswith("optional"))
    for port in ports:
        if not port.is_tensor:
            raise DataError(f"input {port.name!r} is a {port.dtype}; only models fed with tensors can be run")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it takes 1 or more")
    if dim and spec is not None:
        raise DataError(f"dim {dim[0]!r} gives the size of a made-up input; data has its own, so leave one of them out")
    file, name = (None, "labels") if labels is None else _place_of_labels(labels)
    how = _Reading(ports, batch_axis, limit, "labels" if file else name, tuple(dim))
    found = _open(spec, how, Path(preprocess) if preprocess else None, seed)
    if labels is None:
        return found
    if found.synthetic:
        raise DataError(f"labels {str(labels)!r} say nothing of synthetic inputs; name the data that they are of")
    if file is None:
        if isinstance(spec, str | Path) and Path(spec).is_dir():
            raise DataError(f"no labels at {name!r}; of files in a folder give {LABEL_FILES}")
        return found
    read = read_labels(file, Samples(found.samples, limit is not None, found.images), name)
    described = found.description.replace(" unlabelled", " labelled", 1)
    return replace(found, labels=read, classes=None, description=f"{described}, labels of {str(file)!r}")


def data_of(given: Any, inputs: Sequence[Port]) -> Data | None:
    """Return data as it is, or opened for a model with these inputs; None stays None.

    >>> data_of(np.ones((2, 3), np.float32), [Port("x", "float32", ("N", 3))]).samples
    2
    """
    return given if given is None or isinstance(given, Data) else open_data(given, inputs)


def _place_of_labels(labels: str | Path) -> tuple[Path | None, str]:
    """Return the file of labels, None if they are an array of the data, and the name of the array."""
    text = str(labels)
    head, _, name = text.rpartition(":")
    if Path(labels).exists():
        return Path(labels), "labels"
    if head.endswith(".npz"):
        return Path(head), name
    return (Path(labels), "labels") if isinstance(labels, Path) or re.search(r"[./\\]", text) else (None, text)


@dataclass(frozen=True)
class _Reading:
    """Settings of reading: the inputs, the axis of the samples, how many samples, and the array that holds labels."""

    ports: tuple[Port, ...]
    batch_axis: int
    limit: int | None
    labels: str
    dim: tuple[str, ...] = ()


def _open(spec: Any, how: _Reading, preprocess: Path | None, seed: int) -> Data:
    path = Path(spec) if isinstance(spec, str | Path) else None
    if path is not None and path.is_dir():
        if holds_events(path):
            return open_events(path, how.ports, preprocess, how.limit, how.batch_axis)
        return _from_folder(path, how, preprocess)
    if path is not None and path.is_file() and holds_texts(path):
        return _from_arrays(read_texts(path, how.ports, preprocess, how.limit), how, repr(str(path)))
    if preprocess is not None:
        raise DataError("preprocessing is for a folder of images, or texts; this data takes none")
    if spec is None:
        return synthetic(how.ports, how.limit or _SYNTHETIC_SAMPLES, seed, how.batch_axis, how.dim)
    if isinstance(spec, Mapping):
        return _from_arrays(spec, how, "the arrays given")
    if path is not None and path.is_file():
        return _from_archive(path, how)
    if isinstance(spec, str) and names_function(spec):
        return _from_function(spec, how)
    if path is None:
        return _from_arrays(named_arrays(spec, how.ports, how.limit), how, f"the {type(spec).__name__} given")
    kinds = "an .npz archive, a folder of images by class or of event recordings, a .txt or .jsonl, or module:function"
    raise DataError(f"no data at {str(spec)!r}; give {kinds}")


def _describe(samples: int, labels: Labels | None, what: str) -> str:
    return f"{samples} {'un' if labels is None else ''}labelled {_noun(samples)} of {what}"


def _noun(samples: int) -> str:
    return "sample" if samples == 1 else "samples"


def _from_folder(path: Path, how: _Reading, preprocess: Path | None) -> Data:
    found = open_folder(path, how.ports, preprocess, how.limit, how.batch_axis)
    name, samples = found.port.name, len(found.files)
    many = "unlabelled images" if found.labels is None else f"images of {len(found.folders)} classes"
    of = f"{samples} {many} in {str(path)!r}"
    place = layout(how.ports, how.batch_axis, {name: (1,) * 4})
    return Data((name,), samples, found.labels, False, of, place, found.cut, found.classes, found)


def _from_arrays(given: Mapping[str, Any], how: _Reading, what: str) -> Data:
    arrays, labels, place = _checked(given, how, what)
    if how.limit is not None:
        arrays = place.part(arrays, 0, how.limit)
        labels = labels if labels is None else labels[: how.limit]
    return Data.of_arrays(arrays, labels, place, _describe(place.rows(arrays), labels, what))


def _from_archive(path: Path, how: _Reading) -> Data:
    """Read an archive once its headers have been found to fit: what does not is refused before it is unpacked."""
    claims, what = read_headers(path), repr(str(path))
    labels = claims.get(how.labels)
    if labels is not None and how.labels not in [port.name for port in how.ports]:
        claims[how.labels] = np.broadcast_to(np.int64(0), labels.shape[:1])  # their values are not known yet
    _checked(claims, how, what)
    return _from_arrays(read_npz(path), how, what)


def _from_function(spec: str, how: _Reading) -> Data:
    """Call a user's function; any exception in it becomes a `DataError`."""
    module, _, function = spec.partition(":")
    try:
        with importable():
            made = getattr(importlib.import_module(module), function)()
            if isinstance(made, Mapping):
                return _from_arrays(made, how, repr(spec))
            # An onnxruntime CalibrationDataReader has get_next(), which ends with None.
            batches = iter(made.get_next, None) if hasattr(made, "get_next") else iter(made)
            return _from_batches(batches, how, repr(spec))
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{spec!r} failed: {type(error).__name__}: {one_line(error)}") from error


def data_of_batches(made: Iterable[Mapping[str, Array]], ports: Sequence[Port], what: str) -> Data:
    """Return unlabelled data of batches that stay as they are made; `what` names them in messages.

    >>> port = Port("x", "float32", ("N", 3))
    >>> data = data_of_batches([{"x": np.ones((n, 3), np.float32)} for n in (2, 1)], [port], "the crops")
    >>> [batch.size for batch in data.batches(8)]
    [2, 1]
    """
    return _from_batches(made, _Reading(tuple(ports), 0, None, "labels"), what)


def _from_batches(made: Iterable[Any], how: _Reading, what: str) -> Data:
    """Batches as a function made them, read to the end, or to `limit`, and kept: every run sees the same."""
    batches: list[dict[str, Array]] = []
    marks: list[Labels | None] = []
    places: list[BatchLayout] = []
    samples, limit = 0, how.limit
    for feeds in made:
        name = f"batch {len(batches)} of {what}"
        if not isinstance(feeds, Mapping):
            raise DataError(f"{name} is a {type(feeds).__name__}; a batch is a dict of arrays")
        arrays, labels, place = _checked(feeds, how, name)
        rows = place.rows(arrays)
        if place.fixed is not None and rows > place.fixed:
            raise DataError(f"{name} has {rows} samples; the model takes {place.fixed} at a time")
        stop = rows if limit is None else min(rows, limit - samples)
        batches.append({key: array.copy() for key, array in place.part(arrays, 0, stop).items()})
        marks.append(None if labels is None else labels[:stop])
        places.append(place)
        samples += stop
        if samples == limit:
            break
    if not batches:
        raise DataError(f"{what} gave no batches")
    known = [one for one in marks if one is not None]
    if len(known) not in (0, len(marks)) or len(set(places)) > 1:
        raise DataError(f"{what}: either all batches have labels or none, and inputs keep their rank")
    try:
        all_labels = join_labels(known) if known else None
    except ValueError as error:
        raise DataError(f"{what}: batches have labels of other shapes: {one_line(error)}") from None
    of = _describe(samples, all_labels, what)
    return Data(tuple(batches[0]), samples, all_labels, False, of, places[0], lambda _: iter(batches))


def _checked(given: Mapping[str, Any], how: _Reading, what: str) -> tuple[dict[str, Array], Labels | None, BatchLayout]:
    """Return the arrays in the order of the inputs, the labels and the sample axis; raise where they do not fit."""
    try:
        arrays = {name: np.asarray(array) for name, array in given.items()}
    except ValueError as error:
        raise DataError(f"{what}: not an array: {one_line(error)}") from error
    ports, names = how.ports, [port.name for port in how.ports]
    labels = None if how.labels in names else arrays.pop(how.labels, None)
    if how.labels != "labels":
        if labels is None:
            near = closest(how.labels, arrays)
            raise DataError(f"{what}: no array {how.labels[:60]!r} of labels, and no such file{near}")
        arrays = {name: array for name, array in arrays.items() if name in names}  # the others are other labels
    arrays = completed(arrays, ports)
    extra = [name for name in arrays if name not in names]
    missing = [port for port in ports if port.name not in arrays]
    if extra and missing:
        raise DataError(f"{what}: {extra[0]!r} is not an input, and input {missing[0]} has no array; name it so")
    if extra:
        meant = arrays[extra[0]]
        if labels is None and meant.ndim == 1 and meant.dtype.kind in "iu" and how.labels not in names:
            raise DataError(
                f"{what}: {extra[0]!r} is not an input; call it 'labels' if it holds them, else leave it out"
            )
        raise DataError(f"{what}: {extra[0]!r} is not an input{closest(extra[0], names)}; leave it out")
    if missing:
        raise DataError(f"{what}: input {missing[0]} has no array")
    place = layout(ports, how.batch_axis, {name: array.shape for name, array in arrays.items()})
    fitted = {port.name: _fitted(arrays[port.name], port, place, what) for port in ports}
    sizes = [(name, fitted[name].shape[axis]) for name, axis in place.axes]
    for (one, many), (other, more) in pairwise(sizes):
        if many != more:
            raise DataError(f"{what}: {many} samples in {one!r} but {more} in {other!r}")
    rows = place.rows(fitted)
    if not rows:
        raise DataError(f"{what}: no samples")
    _settled(ports, place, fitted, what)
    return fitted, None if labels is None else checked_labels(labels, rows, what), place


def _settled(ports: Sequence[Port], place: BatchLayout, arrays: Mapping[str, Array], what: str) -> None:
    """Refuse a row of numbers that may be one per sample, or one for each place along another axis of as many."""
    rows, shapes = place.rows(arrays), {port.name: port.shape or () for port in ports}
    symbols = [shapes[name][axis] for name, axis in place.axes if shapes[name]]
    for name in (n for n in place.batched if len(shapes[n]) == 1 and rows > 1):
        if shapes[name][0] is not None and symbols.count(shapes[name][0]) > 1:
            continue
        for other, axis in place.axes:
            sizes = zip(shapes[other], arrays[other].shape, strict=False)
            if any(k != axis and size == rows and not isinstance(dim, int) for k, (dim, size) in enumerate(sizes)):
                raise DataError(
                    f"{what}: {name!r} may hold a number for each of the {rows} samples, or for each place along an "
                    f"axis of {other!r}, which has as many; name the dimensions alike in the model, or take another "
                    f"number of samples"
                )


def _fitted(array: Array, port: Port, place: BatchLayout, what: str) -> Array:
    element = element_type(port.dtype)
    if array.dtype == f"V{element.itemsize}":  # what numpy's files make of the types of ml_dtypes
        array = array.view(element)
    if type_name(array) != port.dtype:
        line = f"data[{port.name!r}].astype({'str' if port.dtype == 'string' else repr(port.dtype)})"
        if port.dtype in ONNX_NUMBER:
            line = f"data[{port.name!r}].astype(ml_dtypes.{port.dtype}).view('V{element.itemsize}')"
        raise DataError(f"{what}: {port.name!r} is {type_name(array)}, input {port} takes {line}")
    free = place.batched.get(port.name)
    if not fits(array.shape, port, free=free):
        raise DataError(f"{what}: {port.name!r} has shape {shape_text(array.shape)}, the input is {port}")
    return array
