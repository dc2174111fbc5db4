"""Inputs of an armed model for faults that are drawn again for every run, while the file stays the same."""

from __future__ import annotations

from dataclasses import replace

from onnxfi.errors import SelectorError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.space import FaultSpace, Selector
from onnxfi.faults.trials import Sampler, draw_faults, fault_model
from onnxfi.graph.passes.fault_inputs import Columns, columns
from onnxfi.graph.passes.instrument import Armed
from onnxfi.runtime.inject.activations import activation_faults

__all__ = ["draw_fault_inputs"]


def draw_fault_inputs(
    armed: Armed,
    trial: int,
    *,
    ber: float | None = None,
    count: int | None = None,
    per_sample: float | None = None,
    fault: str | FaultModel | type[FaultModel] = "flip",
    selector: Selector | None = None,
    seed: int = 0,
    batch: int = 1,
) -> Columns:
    """Return the columns of one run of an armed model, with faults drawn for it: a pure function of its arguments.

    Exactly one of `ber`, `count` and `per_sample` determines the number of faults. A fault in a loop is present in
    every iteration.

    Parameters
    ----------
    armed : Armed
        The armed model, from `instrument`.
    trial : int
        Number of the run, from 1; each has faults of its own.
    ber : float, optional
        Probability of a fault at each site of each sample.
    count : int, optional
        Number of sites in all samples together.
    per_sample : float, optional
        Probability of one fault in each sample.
    fault : str or FaultModel
        The fault model.
    selector : Selector, optional
        The selected activations, bits and elements; by default all that are armed.
    seed : int
        Seed of the draw.
    batch : int
        Number of samples in the run.

    Returns
    -------
    dict of str to ndarray
        The inputs to feed beside the data.

    Raises
    ------
    SelectorError
        If the shape of a site is not known.
    InputError
        If not exactly one of the three is given.
    FaultError
        For a fault that cannot be fed.

    Examples
    --------
    >>> from onnxfi import OrtEngine, instrument, load
    >>> import numpy as np
    >>> done = instrument(load("models/fashion_cnn.onnx"))
    >>> session = OrtEngine(provider="cpu").prepare(done.data)
    >>> images = {session.inputs[0].name: np.zeros((8, 1, 28, 28), np.float32)}
    >>> for trial in (1, 2):
    ...     fed = draw_fault_inputs(done.armed, trial, per_sample=0.3, batch=8)
    ...     faulty = np.flatnonzero(fed["onnxfi.flip"].any(axis=1))
    ...     print(faulty.tolist(), session.run(images | fed)["logits"].shape)
    [0, 1, 4, 5] (8, 10)
    [2, 7] (8, 10)
    """
    how = Sampler.given(seed, ber=ber, count=count, per_sample=per_sample)
    event, selector = fault_model(fault), selector or Selector()
    open_ones = [a.target.id for a in armed.sites if not a.shape_known]
    if open_ones:
        raise SelectorError(f"the shape of {open_ones[0]!r} is not known, so its elements cannot be drawn")
    kept = [a for a in armed.sites if selector.selects(replace(a.target, structural=False))]
    targets = [replace(a.target, structural=False, samples=0 if a.axis is None else batch) for a in kept]
    space = FaultSpace.over(targets, event, bits=selector.bits, elements=selector.elements)
    found = activation_faults(draw_faults(space, how, event, trial), {a.target.id: a for a in armed.sites})
    return columns(armed, found, batch=batch)
