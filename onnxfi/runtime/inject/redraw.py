"""What an armed model is fed when faults are drawn anew for every run: the draw is the host's, the file stays one."""

from __future__ import annotations

from dataclasses import replace

from onnxfi.errors import InputError, SelectorError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.space import FaultSpace, Selector
from onnxfi.faults.trials import Sampler, draw_faults, fault_model
from onnxfi.graph.passes.fault_inputs import Columns, columns
from onnxfi.graph.passes.instrument import Armed
from onnxfi.runtime.inject.activations import activation_faults

__all__ = ["redrawn"]


def redrawn(
    armed: Armed,
    trial: int,
    *,
    ber: float | None = None,
    count: int | None = None,
    per_sample: float | None = None,
    fault: str | FaultModel = "flip",
    selector: Selector | None = None,
    seed: int = 0,
    batch: int = 1,
) -> Columns:
    """The columns of one run of an armed model, its faults drawn: a pure function of what is given.

    Exactly one of `ber` (per site of each of the `batch` samples), `count` (sites in all of them) and `per_sample`
    (one site, with this probability in each) says how many; `trial`, from 1, tells one run from another. A value in a
    loop is struck in every turn. Raises SelectorError for a site whose shape the file does not say, InputError and
    FaultError as `inject_activations` does.

    >>> from onnxfi import OrtEngine, instrument, load
    >>> import numpy as np
    >>> done = instrument(load("models/fashion_cnn.onnx"))
    >>> session = OrtEngine(provider="cpu").prepare(done.data)
    >>> images = {session.inputs[0].name: np.zeros((8, 1, 28, 28), np.float32)}
    >>> for trial in (1, 2):
    ...     fed = redrawn(done.armed, trial, per_sample=0.3, batch=8)
    ...     struck = np.flatnonzero(fed["onnxfi.flip"].any(axis=1))
    ...     print(struck.tolist(), session.run(images | fed)["logits"].shape)
    [0, 1, 4, 5] (8, 10)
    [2, 7] (8, 10)
    """
    ways = {"ber": ber, "count": count, "per-sample": per_sample}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"exactly one of ber, count and per_sample says how many; given: {given or 'none'}")
    event, selector = fault_model(fault), selector or Selector()
    open_ones = [a.target.id for a in armed.sites if not a.shape_known]
    if open_ones:
        raise SelectorError(f"the shape of {open_ones[0]!r} is not known, so its elements cannot be drawn")
    kept = [a for a in armed.sites if selector.selects(replace(a.target, structural=False))]
    targets = [replace(a.target, structural=False, samples=0 if a.axis is None else batch) for a in kept]
    space = FaultSpace.over(targets, event, bits=selector.bits, elements=selector.elements)
    how = Sampler(given[0], rate=ber or per_sample or 0.0, n=count or 0, seed=seed)
    found = activation_faults(draw_faults(space, how, event, trial), {a.target.id: a for a in armed.sites})
    return columns(armed, found, batch=batch)
