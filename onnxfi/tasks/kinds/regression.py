"""Regression and signals: numbers with a unit, right within a tolerance.

Outputs are numbers of any shape, all of a sample together; labels are as many numbers. A sample is wrong where one of
them deviates from the golden number by more than the declared tolerance, |f - g| > tolerance + relative · |g|, without
a new NaN or infinity. With neither ``tolerance`` nor ``relative`` it is the campaign's ``--tolerance``, else every bit.

With labels y, over all numbers of all samples: the mean absolute error, the root of the mean squared error, R² (the
mean over the numbers of a sample, as in scikit-learn) and the largest error. A signal (sound, an image, a series of
measurements) has also the peak signal-to-noise ratio 10 log₁₀(peak² / mean squared error), and the scale-invariant
signal-to-distortion ratio [1]_ 10 log₁₀(‖αy‖² / ‖αy - f‖²) with α = f·y / y·y, as the mean over samples.

References
----------
.. [1] J. Le Roux et al., "SDR – half-baked or well done?", ICASSP 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxfi.errors import DataError
from onnxfi.numbers import named_number
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.labels import Labels, as_kind
from onnxfi.runtime.data.sample_outputs import Outputs, stacked
from onnxfi.runtime.engine.ports import shape_text
from onnxfi.tasks.answers import AnswerPair, Answers, Flags, Floats, difference, float64
from onnxfi.tasks.class_scores import named_output
from onnxfi.tasks.kinds.deviation import DEVIATIONS
from onnxfi.tasks.task import Metric, ModelOutputs, Task

_ABOVE_ZERO = (0.0, math.inf)


@dataclass(frozen=True)
class Tolerance:
    """A rule of tolerance: how far a number may lie from the golden one, as such and as a share of it."""

    absolute: float | None = None
    relative: float | None = None

    def masked(self, pair: AnswerPair) -> Flags:
        """Return the samples within the tolerance ([N])."""
        if self.absolute is None and self.relative is None:
            return pair.within_tolerance
        found = np.ones(len(pair.differ), np.bool_)
        which = pair.changed
        golden, faulty = (float64(answers.rows[which]) for answers in (pair.golden, pair.faulty))
        with np.errstate(all="ignore"):
            away = np.abs(difference(golden, faulty))
            allowed = (self.absolute or 0.0) + (self.relative or 0.0) * np.abs(golden)
            found[which] = (away <= np.where(np.isfinite(allowed), allowed, 0.0)).all(axis=1)
        return found


def targets(labels: Labels | None) -> Floats:
    """Return labels as a row of numbers per sample ([N, elements])."""
    if labels is None:
        raise DataError("this metric needs labels; the data has none")
    return as_kind("numbers", labels).reshape(len(labels), -1)


def _golden_errors(golden: Answers) -> Floats:
    with np.errstate(all="ignore"):
        return float64(golden.rows) - targets(golden.labels)


def errors(pair: AnswerPair) -> Floats:
    """Return the distances of the faulty numbers from the labels ([N, elements])."""
    found = pair.golden.once(_golden_errors)
    if pair.changed.size:
        found = found.copy()
        found[pair.changed] = float64(pair.faulty.rows[pair.changed]) - targets(pair.labels)[pair.changed]
    return found


def _infinite(value: float) -> float:
    return math.inf if math.isnan(value) else float(value)


def mae(pair: AnswerPair) -> float:
    """Mean absolute error: Σ |f - y| / n; infinite if a number is not finite."""
    return _infinite(float(np.abs(pair.once(errors)).mean()))


def squared(pair: AnswerPair) -> float:
    """Return the mean squared error."""
    return _infinite(float(np.square(pair.once(errors)).mean()))


def rmse(pair: AnswerPair) -> float:
    """Root of the mean squared error: √(Σ (f - y)² / n)."""
    return math.sqrt(pair.once(squared))


def max_error(pair: AnswerPair) -> float:
    """Largest error: max |f - y|."""
    return _infinite(float(np.abs(pair.once(errors)).max()))


def r2(pair: AnswerPair) -> float:
    """Share of the variance of the labels that is explained: 1 - Σ (f - y)² / Σ (y - ȳ)², the mean over numbers."""
    truth = targets(pair.labels)
    whole = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    left = np.square(pair.once(errors)).sum(axis=0)
    varied = whole > 0
    found = 1 - left[varied] / whole[varied]
    return float(-math.inf if not np.isfinite(found).all() else found.mean())


def _varies(labels: Labels) -> bool:
    truth = targets(labels)
    return bool((truth != truth[:1]).any())


def _sounds(labels: Labels) -> bool:
    return bool(targets(labels).any())


def si_sdr(pair: AnswerPair) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, the mean over the samples whose label is not silent."""
    truth = targets(pair.labels)
    heard = truth.any(axis=1)
    y, f = truth[heard], float64(pair.faulty.rows)[heard]
    y /= np.abs(y).max(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        f = f / np.maximum(np.abs(f).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        kept = ((f * y).sum(axis=1) / (y * y).sum(axis=1))[:, None] * y
        found = 10 * np.log10((kept * kept).sum(axis=1) / np.square(kept - f).sum(axis=1))
    return -math.inf if np.isnan(found).any() else float(found.mean())


@dataclass(frozen=True)
class Peak:
    """The peak signal-to-noise ratio, with the largest magnitude of the labels as peak, or a given one."""

    peak: float | None = None

    def psnr(self, pair: AnswerPair) -> float:
        """Peak signal-to-noise ratio in dB: 10 log₁₀(peak² / mean squared error); infinite without an error."""
        peak, noise = self.peak or float(np.abs(targets(pair.labels)).max()), pair.once(squared)
        if noise == 0:
            return math.inf
        return -math.inf if math.isinf(noise) else 20 * math.log10(peak) - 10 * math.log10(noise)


def _error(name: str, function: Callable[[AnswerPair], float], label: str, unit: str) -> Metric:
    limits: dict[str, Any] = {"bounds": _ABOVE_ZERO, "better": "lower", "failed": math.inf}
    return Metric.of_labels(name, function, label, per="set", unit=unit, **limits)


def _quality(name: str, function: Callable[[AnswerPair], float], label: str, unit: str, **more: Any) -> Metric:
    return Metric.of_labels(name, function, label, per="set", unit=unit, failed=-math.inf, **more)


def _task(name: str, tolerance: object, relative: object, unit: object, own: Sequence[Metric]) -> Task:
    rule = Tolerance(_number("tolerance", tolerance), _number("relative", relative))
    unit = str(unit)
    metrics = (
        _error("mae", mae, "MAE", unit),
        _error("rmse", rmse, "RMSE", unit),
        _error("max_error", max_error, "largest error", unit),
        _quality("r2", r2, "R²", "", bounds=(-math.inf, 1.0), needs_all=True, defined=_varies),
        *own,
    )
    headline = own[0].name if own else "mae"
    return Task(
        name,
        (*metrics, *DEVIATIONS),
        columns=((headline, "rel_l2"), ("max_error", "max_abs"), ("sdc_samples",), ("sdc",), ("due",)),
        page_columns=(headline, "max_error", "rel_l2", "sdc_samples", "sdc", "due", "masked"),
        curves=("sdc_samples",),
        compared=(headline, "rel_l2", "sdc_samples", "sdc"),
        orders=(("sdc_samples", "changed_samples"), ("changed", "changed_samples")),
        absent=f"the output is not read as numbers with labels; name the task with --task {name}",
        labels="numbers",
        takes_tolerance=rule == Tolerance(),
        masked=rule.masked,
        reads=_outputs,
        misfit=_misfit,
    )  # fmt: skip


def _outputs(declared: ModelOutputs) -> tuple[str, ...]:
    """Return the output that is asked for, else the only one; none: all."""
    if declared.asked is not None:
        return (named_output(declared.ports, declared.asked, declared.non_tensors),)
    return (declared.ports[0].name,) if len(declared.ports) == 1 else ()


def _misfit(run: Sequence[Outputs], data: Data, kind: str) -> str:
    """Return why golden outputs or labels are no numbers of samples; empty if they are."""
    found = stacked(run)
    if found.dtype.kind in "OUSTc":
        return f"the output holds {found.dtype.name}, and errors are taken of real numbers"
    if found.ndim == 0 or len(found) != data.samples:
        return f"the output has shape {shape_text(found.shape)} for {data.samples} samples; the first axis counts them"
    if data.labels is None:
        return ""
    wanted = as_kind("numbers", data.labels)
    if math.prod(found.shape[1:]) != math.prod(wanted.shape[1:]):
        return f"the output has shape {shape_text(found.shape)}, and the labels {shape_text(wanted.shape)}"
    return ""


def _number(name: str, given: object) -> float | None:
    """Return an option as a number of 0 or more; None if it is not given."""
    return None if given is None else named_number(name, given, 0)


def regression(tolerance: object = None, relative: object = None, unit: object = "") -> Task:
    """Return the task of numbers with labels: a measurement, a forecast, a position.

    Parameters
    ----------
    tolerance : float, optional
        The distance from the golden number within which a number is right, in its unit.
    relative : float, optional
        The same as a share of the golden number; with both it is their sum.
    unit : str
        The unit of the numbers, which reports show.

    Raises
    ------
    InputError
        If a tolerance is not a number of 0 or more.

    Examples
    --------
    >>> regression(tolerance=0.5, unit="K").metric("mae").unit
    'K'
    """
    return _task("regression", tolerance, relative, unit, ())


def signal(tolerance: object = None, relative: object = None, unit: object = "", peak: object = None) -> Task:
    """Return the task of signals: sound, images, series of measurements.

    Parameters
    ----------
    tolerance, relative, unit
        As those of `regression`.
    peak : float, optional
        The peak of the peak signal-to-noise ratio, as 255; by default the largest magnitude of the labels.

    Raises
    ------
    InputError
        If a tolerance or the peak is not a number of 0 or more.

    Examples
    --------
    >>> signal(relative=0.01).metric("si_sdr").unit
    'dB'
    """
    own = (
        _quality("psnr", Peak(_number("peak", peak)).psnr, "PSNR", "dB", bounds=(-math.inf, math.inf), defined=_sounds),
        _quality("si_sdr", si_sdr, "SI-SDR", "dB", bounds=(-math.inf, math.inf), defined=_sounds),
    )
    return _task("signal", tolerance, relative, unit, own)
