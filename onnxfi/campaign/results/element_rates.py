"""Rates by element of one target: each neuron, synapse or weight of a layer by itself, laid out as a plane."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.results.store import Store, declared_task
from onnxfi.errors import SelectorError, closest
from onnxfi.tasks.task import Metric

#: Elements of the largest target of which a map is made, and of the longest row of a target with one axis.
_MOST_ELEMENTS, _LONGEST_ROW = 1 << 20, 64


@dataclass(frozen=True)
class ElementRates:
    """The trials of single faults in one target, by element.

    Attributes
    ----------
    target : str
        The id of the target.
    shape : tuple of int
        Its shape; of an activation that of one sample.
    metric : Metric
        The metric whose means these are.
    trials : ndarray
        The number of trials in each element, int64, flat and row-major.
    means : ndarray
        The mean of the metric over them, float64; NaN if an element has no trial.
    """

    target: str
    shape: tuple[int, ...]
    metric: Metric
    trials: NDArray[np.int64]
    means: NDArray[np.float64]


def element_rates(store: str | Path, target: str) -> ElementRates:
    """Return the means over the trials of each element of a target, of a store of single faults.

    Parameters
    ----------
    store : str or Path
        The store of a campaign whose trials are single faults, not an adaptive one.
    target : str
        The id of the target.

    Returns
    -------
    ElementRates
        The first metric of the task's panels that every trial has.

    Raises
    ------
    SelectorError
        If no mean by element can be had: a target without trials, or a campaign with other trials.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> model, data = "models/fashion_cnn.onnx", "models/fashion_test.npz"
    >>> campaign = Campaign(model, data, samples=20, exhaustive=True, fault="zero", include=("fc2.bias",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/s.db"))
    ...     found = element_rates(folder + "/s.db", "fc2.bias")
    >>> found.shape, found.trials.tolist()
    ((10,), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    """
    with Store.open(store) as opened:
        _refuse_others(opened, str(store))
        shape = _shape_of(opened, target)
        task, size = declared_task(opened), math.prod(shape)
        trials, rows = np.zeros(size, np.int64), list[tuple[int, list[float | None]]]()
        shown = task.view(task.panels)
        for lines, row in opened.planned_rows():
            fault = json.loads(lines)
            if row.faults == 1 and fault.get("target") == target and 0 <= fault["index"] < size:
                rows.append((fault["index"], [m.value(row.outcome, row.metrics) for m in shown]))
    if not rows:
        raise SelectorError(f"{str(store)!r} has no trial with a fault in {target!r} alone; its report has no such map")
    of_all = [k for k in range(len(shown)) if all(values[k] is not None for _, values in rows)]
    sums = np.zeros(size)
    for index, values in rows:
        trials[index] += 1
        sums[index] += values[of_all[0]] or 0.0
    means = np.where(trials > 0, sums / np.maximum(trials, 1), np.nan)
    return ElementRates(target, shape, shown[of_all[0]], trials, means)


def _refuse_others(opened: Store, store: str) -> None:
    """Refuse trials whose mean over an element would have no meaning."""
    identity = opened.get("identity")
    if not opened.get("cells"):
        raise SelectorError(f"{store!r} has trials of many faults, which lie in no one element; run --single faults")
    if identity.get("adaptive") or identity.get("per") == "data-aware":
        raise SelectorError(
            f"{store!r} drew some bits more often than others, so that elements cannot be compared; "
            f"run --single faults per network or layer, or --exhaustive"
        )


def _shape_of(opened: Store, target: str) -> tuple[int, ...]:
    shapes = opened.get("shapes") or {}
    if target not in shapes:
        known = "" if shapes else "; the store was written by an onnxfi that did not keep shapes"
        raise SelectorError(f"{target!r} is no target of this campaign{closest(target, shapes) or known}")
    shape = tuple(int(n) for n in shapes[target])
    if math.prod(shape) > _MOST_ELEMENTS:
        raise SelectorError(f"{target!r} has {math.prod(shape):,} elements; a map shows up to {_MOST_ELEMENTS:,}")
    return shape


def plane(values: NDArray[np.float64], shape: Sequence[int]) -> tuple[NDArray[np.float64], str, str]:
    """Return values as a plane with the names of its two axes; places that are no element are infinite.

    Two axes are rows and columns, a vector is wrapped, three axes are maps side by side, whose places have no numbers
    (the name of the rows is empty), and of more the first is the rows and all others the columns.

    >>> plane(np.arange(3.0), (3,))
    (array([[0., 1., 2.]]), '', 'Element')
    >>> plane(np.arange(8.0), (2, 2, 2))[0].tolist()
    [[0.0, 1.0, inf, 4.0, 5.0], [2.0, 3.0, inf, 6.0, 7.0]]
    """
    if len(shape) < 2:
        if values.size <= _LONGEST_ROW:
            return values.reshape(1, -1), "", "Element"
        across = math.isqrt(values.size - 1) + 1
        padded = np.full(-(-values.size // across) * across, np.inf)
        padded[: values.size] = values.ravel()
        return padded.reshape(-1, across), f"Element, rows of {across}", "Element in the row"
    if len(shape) == 3:
        maps, high, wide = shape
        across = math.isqrt(max(0, maps - 1)) + 1
        down = -(-maps // across)
        sheet = np.full((down * (high + 1) - 1, across * (wide + 1) - 1), np.inf)
        for k, one in enumerate(values.reshape(shape)):
            top, left = k // across * (high + 1), k % across * (wide + 1)
            sheet[top : top + high, left : left + wide] = one
        return sheet, "", f"{maps} maps of {high} × {wide}, {across} in a row"
    rest = " × ".join(f"axis {k}" for k in range(1, len(shape)))
    return values.reshape(shape[0], -1), "Axis 0", rest[0].upper() + rest[1:]
