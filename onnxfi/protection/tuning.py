"""Tuned ranges: bounds that give the largest accuracy under faults, averaged over bit error rates (FT-ClipAct).

The model is restricted with bounds that can be fed, and faults are drawn in its weights: the same for every bound, so
that two bounds are compared on the same faults. Tensor after tensor, the upper bound is searched between 0 and the
largest number of the calibration data, in rounds that close in on the best; a bound that costs accuracy without faults
is not taken.

References
----------
.. [1] L.-H. Hoang, M. A. Hanif, M. Shafique, FT-ClipAct, DATE 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import InputError
from onnxfi.faults.registry import parse_fault
from onnxfi.faults.space import Selector
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.protection.range_restriction import Bounds, Restricted, RestrictRanges
from onnxfi.graph.write.faulty_copy import faulty_bytes, find_edits, look_up_words
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.protocols import Engine, Session
from onnxfi.tasks.evaluation import scored_names

if TYPE_CHECKING:
    import onnx

#: Bounds that are tried in each round, between the neighbours of the best one so far.
_POINTS = 4
_ROUNDS = 2
_MOST_SAMPLES = 500


@dataclass(frozen=True)
class Tuning:
    """The faults by which bounds are judged, and what a bound may cost.

    `rates` are bit error rates, each with `trials` draws of faults; the accuracy without faults may fall by `drop`.
    """

    rates: tuple[float, ...]
    trials: int
    drop: float
    action: Literal["clip", "zero"]
    seed: int = 0


def tuned(
    model: Model, tensors: tuple[Restricted, ...], data: Data, engine: Engine, how: Tuning
) -> tuple[Restricted, ...]:
    """Return the tensors with upper bounds that give the largest mean accuracy over the rates.

    Parameters
    ----------
    model : Model
        The unprotected model, a classifier.
    tensors : tuple of Restricted
        The activations with the bounds of the calibration data, one for each tensor.
    data : Data
        Calibration data; without labels the fault-free answers of the model are taken for right.
    engine : Engine
        The engine that runs the model.
    how : Tuning
        Faults and limits.

    Returns
    -------
    tuple of Restricted
        The same activations with tuned bounds.

    Raises
    ------
    InputError
        For an external model, or one that does not put out several scores for each sample.
    """
    if model.external:
        raise InputError(f"{model.name} has external data, which range:tuned does not take; write it as one file first")
    scorer = _Scorer.of(model, tensors, data, engine, how)
    bounds = {one.name: one.bounds.high[0] for one in tensors}
    clean = scorer.clean(bounds)
    best = scorer.faulty(bounds)
    for one in tensors:
        low, high = max(0.0, one.bounds.low[0]), bounds[one.name]
        for _ in range(_ROUNDS):
            step = (high - low) / _POINTS
            for value in [low + k * step for k in range(1, _POINTS)]:
                tried = bounds | {one.name: value}
                found = scorer.faulty(tried)
                if found > best and scorer.clean(tried) >= clean - how.drop:
                    bounds, best = tried, found
            low, high = max(low, bounds[one.name] - step), min(high, bounds[one.name] + step)
    return tuple(replace(one, bounds=_with_high(one.bounds, bounds[one.name])) for one in tensors)


def _with_high(bounds: Bounds, high: float) -> Bounds:
    return replace(bounds, high=(high,), low=(max(bounds.low[0], -high) if bounds.low[0] < 0 else bounds.low[0],))


@dataclass(frozen=True)
class _Scorer:
    """Sessions of the restricted model, fault-free and with each draw of faults, whose upper bounds are fed."""

    fault_free: Session
    sessions: tuple[Session, ...]
    batches: tuple[tuple[Mapping[str, Array], NDArray[Any]], ...]
    output: str
    inputs: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, model: Model, tensors: tuple[Restricted, ...], data: Data, engine: Engine, how: Tuning) -> _Scorer:
        restricted, _ = RestrictRanges(tensors, how.action).run(parse(model))
        inputs = _fed_bounds(restricted, tensors)
        made = load(restricted)
        weights = [t for t in model.targets if t.role in ("weight", "bias")]
        space = Selector(include=tuple(f"={t.id}" for t in weights)).space(made.targets, parse_fault("flip"))
        sessions = []
        for number, rate in enumerate(how.rates):
            sampler = Sampler("ber", rate=rate, seed=how.seed)
            for trial in range(1 + number * how.trials, 1 + (number + 1) * how.trials):
                drawn = draw_faults(space, sampler, parse_fault("flip"), trial)
                placed, final = look_up_words(made, drawn)
                sessions.append(engine.prepare(faulty_bytes(made, find_edits(made, placed, final))))
        fault_free = engine.prepare(restricted.SerializeToString())
        (output,) = scored_names(fault_free, None, data, task="classification")[:1] or ("",)
        if not output:
            raise InputError(
                "range:tuned judges bounds by the accuracy of a classifier; the model has no scores of classes"
            )
        bounds = {inputs[one.name][0]: np.array(one.bounds.high[0], one.dtype) for one in tensors}
        batches = []
        for feeds, labels in _batches(data):
            scores = fault_free.run({**feeds, **bounds}, [output])[output]
            if scores.ndim < 2 or scores[0].size < 2 or (labels is not None and len(labels) != len(scores)):
                raise InputError(
                    f"range:tuned judges bounds by the largest score of each sample; {output!r} "
                    f"{list(scores.shape)} has not several for each, take range:clip or range:zero"
                )
            own = scores.reshape(len(scores), -1).argmax(axis=1)
            batches.append((feeds, own if labels is None else labels))
        return cls(fault_free, tuple(sessions), tuple(batches), output, inputs)

    def clean(self, bounds: Mapping[str, float]) -> float:
        """Return the accuracy without faults."""
        return self._accuracy(self.fault_free, bounds)

    def faulty(self, bounds: Mapping[str, float]) -> float:
        """Return the mean accuracy over all draws: the area under accuracy over the logarithm of the rate."""
        return float(np.mean([self._accuracy(session, bounds) for session in self.sessions]))

    def _accuracy(self, session: Session, bounds: Mapping[str, float]) -> float:
        fed = {self.inputs[name][0]: np.array(value, self.inputs[name][1]) for name, value in bounds.items()}
        right = samples = 0
        for feeds, labels in self.batches:
            scores = session.run({**feeds, **fed}, [self.output])[self.output].reshape(len(labels), -1)
            found = np.where(np.isfinite(scores).all(axis=1), np.nan_to_num(scores).argmax(axis=1), -1)
            right, samples = right + int((found == labels).sum()), samples + len(labels)
        return right / samples


def _batches(data: Data) -> Sequence[tuple[Mapping[str, Array], NDArray[Any] | None]]:
    """Return batches without padding, with their labels where there are any."""
    found: list[tuple[Mapping[str, Array], NDArray[Any] | None]] = []
    samples = 0
    for part in data.batches(data.layout.fixed or 100):
        if part.valid == part.size:
            found.append((part.feeds, None if part.labels is None else np.asarray(part.labels)))
            samples += part.size
        if samples >= _MOST_SAMPLES:
            break
    return found


def _fed_bounds(proto: onnx.ModelProto, tensors: tuple[Restricted, ...]) -> dict[str, tuple[str, str]]:
    """Let the upper bounds of a restricted model be fed; returns the input of each tensor, with its format."""
    from onnx import helper

    made = {name: node for node in proto.graph.node for name in node.output}
    marked = {node.name: node for node in proto.graph.node}
    found: dict[str, tuple[str, str]] = {}
    for one in tensors:
        last = marked[f"onnxfi/range/{one.name}"]
        holding = last if last.op_type != "Where" else made[made[last.input[0]].input[0]]
        name = holding.input[-1]
        node = made[name]
        value = node.attribute[0].t
        proto.graph.node.remove(node)
        stored = proto.graph.initializer.add()
        stored.CopyFrom(value)
        stored.name = name
        proto.graph.input.append(helper.make_tensor_value_info(name, value.data_type, list(value.dims)))
        found[one.name] = name, one.dtype
    proto.ir_version = max(proto.ir_version, 4)
    return found
