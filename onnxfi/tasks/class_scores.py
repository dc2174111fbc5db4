"""The meaning of the scored output: scores of classes, one row per sample, or numbers that are only compared.

Class metrics (top-1, SDC-1 and all that rests on them) are taken of scores [N, C] with C of 2 or more, and of nothing
else; [N, C, 1, 1] is [N, C]. What has another shape, holds class indices or is named as boxes are gets the metrics of
any output. Where labels ask for top-1 of such an output, that is an error which says what would fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxfi.errors import DataError, closest
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import as_kind, one_hot_columns
from onnxfi.runtime.data.sample_outputs import Dim, Outputs, class_axes, stacked
from onnxfi.runtime.engine.ports import Array, Port, element_type, shape_text
from onnxfi.tasks.task import ModelOutputs

#: Parts of the names of outputs whose columns are no classes, however many.
_OTHER_NAMES = re.compile(
    r"(?<![a-z])(b?box(es)?|coord(inate)?s?|landmarks?|keypoints?|offsets?|anchors?|embeddings?)(?![a-z])", re.I
)
_REMEDY = "name another output with --output, or leave the labels out to see how far outputs deviate"


def scored_output(
    outputs: Sequence[Port],
    name: str | None = None,
    *,
    labelled: bool = False,
    non_tensors: Mapping[str, str] | None = None,
    whole: bool = False,
) -> str | None:
    """Return the output that holds the scores: `name`, else the only float output of two dimensions.

    Dimensions of 1 behind the second of four or more do not count. Where a model has no such output, and no labels ask
    for one, it is None: only metrics of any shape apply then. With labels, a single float output of undeclared rank
    will do. `non_tensors` gives the type of each output that is not a tensor; with `whole`, or labels, one that holds
    maps is refused. DataError lists the outputs where there is a choice.

    >>> scored_output([Port("boxes", "float32", ("N", 4, 4)), Port("scores", "float32", ("N", 10))])
    'scores'
    """
    non_tensors = non_tensors or {}
    if name is not None:
        return named_output(outputs, name, non_tensors)
    floats = [port for port in outputs if "float" in port.dtype]
    fitting = [port for port in floats if _may_score(port)]
    if labelled and not fitting:
        fitting = [port for port in floats if port.shape is None]
    if len(fitting) == 1:
        return fitting[0].name
    for other, dtype in non_tensors.items():
        if not fitting and (labelled or whole) and "map(" in dtype:
            raise DataError(_maps(other, dtype))
    if not fitting and not labelled:
        return None
    what = "several outputs could" if fitting else "no output is sure to"
    listed = "; ".join(map(str, fitting or outputs)) or "none"
    raise DataError(f"{what} hold the scores; name one with --output: {listed}")


def named_output(outputs: Sequence[Port], name: str, non_tensors: Mapping[str, str]) -> str:
    """Return the name of an output; DataError if there is none of that name, or it is not a tensor."""
    if name in non_tensors:
        raise DataError(_maps(name, non_tensors[name]))
    known = [port.name for port in outputs]
    if name not in known:
        raise DataError(f"the model has no output {name!r}{closest(name, known)}")
    return name


def only_output(declared: ModelOutputs, fits: Callable[[Port], bool], what: str) -> tuple[str, ...]:
    """Return the output that ``--output`` names, else the only one that fits; DataError lists them where none is sure.

    >>> ports = Port("box", "float32", ("N", 4)), Port("y", "float32", ("N", 1))
    >>> outputs = ModelOutputs(ports, None, Data((), 2, None, False, "", None, None))
    >>> only_output(outputs, lambda port: port.shape[1] == 1, "a score")
    ('y',)
    """
    if declared.asked is not None:
        return (named_output(declared.ports, declared.asked, declared.non_tensors),)
    fitting = [port for port in declared.ports if fits(port)]
    if len(fitting) == 1:
        return (fitting[0].name,)
    listed = "; ".join(map(str, fitting or declared.ports)) or "none"
    if fitting:
        raise DataError(f"several outputs could hold {what}; name one with --output: {listed}")
    raise DataError(f"no output is sure to hold {what}, of {listed}; name one with --output")


def class_output(declared: ModelOutputs) -> tuple[str, ...]:
    """Return the output that holds the scores of classes; none where no output is sure to."""
    data, labelled = declared.data, declared.data.labels is not None
    if data.labels is not None:
        as_kind("classes", data.labels)
    if labelled and declared.asked is None and (numbers := _number_output(declared)):
        return (numbers,)
    found = scored_output(
        declared.ports, declared.asked, labelled=labelled, non_tensors=declared.non_tensors, whole=declared.whole
    )
    for port in declared.ports:
        if port.name == found:
            check_port(port, data, declared.kind)
    return () if found is None else (found,)


def _number_output(declared: ModelOutputs) -> str:
    """Return the only output of a model, where it may hold class indices; empty where it does not."""
    only = declared.ports[0] if len(declared.ports) == 1 else None
    return only.name if only is not None and _may_be_numbers(only) and not declared.non_tensors else ""


def _may_be_numbers(port: Port) -> bool:
    """Return true for an output as it is declared that may hold class indices."""
    shape = port.shape
    return port.dtype in ("int64", "int32") and shape is not None and (len(shape) == 1 or shape[1:] == (1,))


def by_place(data: Data, classes: Sequence[int] | Sequence[str], ports: Sequence[Port], name: str | None) -> Data:
    """Return data whose labels count the scores, where they are of the `classes` that a model lists in that order.

    An output of labels, as `name` or alone, holds the classes themselves. Class indices beside listed names count the
    scores already.

    Raises
    ------
    DataError
        For a label that is none of the classes.

    Examples
    --------
    >>> ports = [Port("label", "string", ("N",)), Port("probabilities", "float32", ("N", 2))]
    >>> data = Data((), 2, np.array(["dog", "cat"], object), False, "", None, None)
    >>> by_place(data, ("cat", "dog"), ports, None).labels
    array([1, 0])
    """
    labels, floats = data.labels, [port.name for port in ports if "float" in port.dtype]
    if labels is None or not classes or (name not in floats if name else not floats):
        return data
    kinds = "OUT" if isinstance(classes[0], str) else "iu"
    if labels.dtype.kind not in kinds or labels.shape not in ((len(labels),), (len(labels), 1)):
        return data
    places = {one: place for place, one in enumerate(classes)}
    given = labels.reshape(-1).tolist()
    if (other := next((one for one in given if one not in places), None)) is not None:
        listed = ", ".join(map(repr, classes[:10])) + (", …" if len(classes) > 10 else "")
        raise DataError(f"label {other!r} is none of the classes that the model lists: {listed}; labels are of these")
    return replace(data, labels=np.array([places[one] for one in given], np.int64))


def class_misfit(run: Sequence[Outputs], data: Data, kind: str) -> str:
    """Return why a golden run holds no scores of classes; nothing if it does."""
    names, scores = [*run[0].arrays], stacked(run)
    name = names[0] if len(names) == 1 else None
    return no_class_scores(scores.shape, scores.dtype, name, data.samples, kind)


def _may_score(port: Port) -> bool:
    """Return true for a shape of scores under a name that does not contradict it."""
    return len(class_axes(port.shape or ())) == 2 and _OTHER_NAMES.search(port.name) is None


def _maps(name: str, dtype: str) -> str:
    return (
        f"output {name!r} is a {dtype}, as ZipMap makes it, and no tensor, so scores in it are not read; export the "
        f"scores as a tensor (skl2onnx: options={{'zipmap': False}}), or name a tensor with --output"
    )


def no_class_scores(
    shape: Sequence[Dim], element: np.dtype[Any], name: str | None, samples: int | None, kind: str = "auto"
) -> str:
    """Return why an output of this shape ([N, …]) and element type holds no scores of classes; nothing if it does.

    A `kind` other than auto says that they are: then neither name nor element type matter.

    >>> no_class_scores((4, 1), np.dtype("float32"), "y", 4)
    "output 'y' has one column: the score of one class, of which no top-1 is taken; one column a class would do"
    >>> no_class_scores((4, 3), np.dtype("float32"), "y", 4)
    ''
    """
    if name is None:
        return "no output is sure to hold scores"
    what = f"output {name!r}"
    if len(shape) != 2:
        return f"{what} has shape {shape_text(shape)}, and scores of classes have [N,classes]"
    rows, columns = shape
    if samples is not None and rows != samples:
        return f"{what} has {rows} rows for {samples} samples, and scores of classes have one per sample"
    if isinstance(columns, int) and columns < 2:
        return f"{what} has one column: the score of one class, of which no top-1 is taken; one column a class would do"
    if kind != "auto":
        return ""
    if element.kind in "bcOUST" or (element.kind in "iu" and element.itemsize > 2):
        return f"{what} is {element.name}, which holds class indices or text, no scores"
    if _OTHER_NAMES.search(name):
        return f"{what} holds no scores of classes by its name"
    return ""


def classifies(scores: Array, name: str | None, data: Data, kind: str = "auto") -> bool:
    """Return whether golden values ([N, …]) are scores of classes.

    DataError if the data has labels and they are not, or labels and classes do not fit.

    >>> data = Data((), 4, None, False, "", None, None)
    >>> classifies(np.zeros((4, 3), np.float32), "y", data), classifies(np.zeros((4, 1), np.float32), "y", data)
    (True, False)
    """
    why = no_class_scores(scores.shape, scores.dtype, name, data.samples, kind)
    if data.labels is None:
        return not why
    if why:
        raise DataError(f"the labels ask for accuracy, and {why}; {_REMEDY}")
    _fit(scores.shape[1], name, data)
    return True


def check_port(port: Port, data: Data, kind: str = "auto") -> None:
    """Raise DataError if labels cannot fit an output as it is declared, as `classifies` does by its values."""
    if data.labels is None or port.shape is None or _may_be_numbers(port):
        return
    shape = class_axes(port.shape)
    if why := no_class_scores(shape, element_type(port.dtype), port.name, None, kind):
        raise DataError(f"the labels ask for accuracy, and {why}; {_REMEDY}")
    if isinstance(shape[1], int):
        _fit(shape[1], port.name, data)


def _fit(columns: int, name: str | None, data: Data) -> None:
    """Raise DataError if labels do not fit as many classes."""
    assert data.labels is not None
    labels = as_kind("classes", data.labels)
    if (hot := one_hot_columns(data.labels)) is not None and hot != columns:
        raise DataError(f"the labels are one-hot rows of {hot:,} classes, and output {name!r} scores {columns:,}")
    if data.classes is not None and data.classes != columns:
        raise DataError(
            f"the data has {data.classes:,} class folders, and output {name!r} scores {columns:,} classes, so their "
            "order is not known; list a folder for each class in `classes:` of the preprocessing, in the "
            "model's order, or name the folders by the numbers of their classes"
        )
    if labels.size and labels.max() >= columns:
        found = f"{labels.min()} to {labels.max()}"
        raise DataError(f"labels go from {found}, but the model scores {columns} classes, counted from 0")


def reading(scores: Array, name: str | None, samples: int, kind: str = "auto", *, labelled: bool = True) -> str:
    """Return a remark on how the scored output is read; nothing if there is no doubt.

    Without labels it is doubtful whether rows that are no probabilities (sum 1) nor their logarithms are scores at all.

    >>> reading(np.array([[0.9, 0.8], [0.1, 0.3]]), "y", 2)
    'top-1 is the highest score: rows in [0, 1] that do not sum to 1 are not read by a threshold'
    """
    if why := no_class_scores(scores.shape, scores.dtype, name, samples, kind):
        return "" if name is None else f"no top-1 or SDC-1, since {why}"
    with np.errstate(all="ignore"):
        wide = scores.astype(np.float64)
        shares = bool(((wide >= 0) & (wide <= 1)).all())
        if kind == "auto" and shares and not bool((np.abs(wide.sum(axis=1) - 1) <= 0.01).all()):
            return "top-1 is the highest score: rows in [0, 1] that do not sum to 1 are not read by a threshold"
        if labelled or kind != "auto" or shares or bool((np.abs(np.exp(wide).sum(axis=1) - 1) <= 0.01).all()):
            return ""
    return (
        f"no labels say what output {name!r} holds: its rows of {scores.shape[1]:,} numbers are read as scores of as "
        f"many classes; if they are something else, top-1 and SDC-1 mean nothing, and the deviations alone hold"
    )
