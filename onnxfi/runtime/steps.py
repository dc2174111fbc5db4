"""Running a spiking network step by step: a fault at a step runs again from there, and stops where values come back.

The unrolled network is cut behind every membrane potential and every spike. Golden keeps what goes from one part to the
next. A fault then runs only the parts that something changed reaches: none before its step (late start), and none after
the last value that differs from golden (early stop). What it answers is what all parts together answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.errors import ModelError, SelectorError, closest
from onnxfi.faults.models import FaultModel
from onnxfi.faults.words import WORDS
from onnxfi.graph.exposed import table
from onnxfi.graph.model import Model, parse
from onnxfi.graph.stages import Stage
from onnxfi.runtime.engines import Engine, Session
from onnxfi.runtime.ports import Array, same_bytes
from onnxfi.runtime.staged import prepare_stages

if TYPE_CHECKING:
    pass

#: Given a value in flight, the value that goes on.
Patch = Callable[[Array], Array]


@dataclass(frozen=True)
class Answer:
    """What a run put out, and how many of the network's parts it ran."""

    outputs: Mapping[str, Array] = field(repr=False)
    parts: int


@dataclass(frozen=True)
class Steps:
    """An exposed, unrolled network in parts; `neurons` says the layer, variable and step of each value that is cut."""

    parts: tuple[tuple[Session | None, Stage], ...] = field(repr=False)
    outputs: tuple[str, ...]
    neurons: Mapping[str, tuple[str, str, int]] = field(repr=False)

    @classmethod
    def open(cls, model: Model, engine: Engine) -> Steps:
        """Cut a model behind its neurons; ModelError where they are not exposed, or lie in a loop.

        >>> from onnxfi.graph.model import load
        >>> from onnxfi.runtime.engines import OrtEngine
        >>> from onnxfi.runtime.spiking import expose_neurons
        >>> exposed = load(expose_neurons(load("models/fashion_snn.onnx")).data)
        >>> steps = Steps.open(exposed, OrtEngine(provider="cpu"))
        >>> len(steps.neurons), steps.neurons["lif2/spike/3"]
        (48, ('lif2', 'spike', 3))
        """
        proto = parse(model)
        rows = table(proto)
        if not rows:
            raise ModelError(
                f"the neurons of {model.name} are not exposed; onnxfi instrument --target neurons does that"
            )
        if loops := [row["layer"] for row in rows if row["loop"]]:
            raise ModelError(f"{loops[0]!r} lies in a loop, which runs as a whole; give the unrolled form")
        neurons = {
            str(name): (str(row["layer"]), variable, step)
            for row in rows
            for variable in ("membrane", "spike")
            for step, name in enumerate(row[variable])
        }
        cut = prepare_stages(proto, list(neurons), engine)
        return cls(cut.parts, cut.outputs, neurons)

    def name(self, layer: str, variable: str, step: int) -> str:
        """The value of a layer (`membrane` or `spike`) at a step; SelectorError where there is none."""
        known = {place: name for name, place in self.neurons.items()}
        if (layer, variable, step) in known:
            return known[layer, variable, step]
        layers = list(dict.fromkeys(at for at, _, _ in self.neurons.values()))
        if layer not in layers:
            raise SelectorError(f"no spiking layer {layer!r} in this model{closest(layer, layers)}")
        many = sum(at[:2] == (layer, variable) for at in self.neurons.values())
        if not many:
            raise SelectorError(f"{layer!r} has no {variable!r} in flight; give membrane or spike")
        raise SelectorError(f"{layer!r} has {many} steps, 0 to {many - 1}; there is no step {step}")

    def golden(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run without a fault: everything that goes from one part to the next, and the outputs."""
        live = dict(feeds)
        for session, stage in self.parts:
            if session is not None:
                live |= session.run({name: live[name] for name in stage.inputs})
        return live

    def run(
        self, golden: Mapping[str, Array], patches: Mapping[str, Patch], *, late: bool = True, early: bool = True
    ) -> Answer:
        """A run with values in flight changed, on the samples of `golden`.

        `late` leaves out the parts before the first change, `early` those after which nothing differs from golden any
        more. The answer is the same with both, with either and with none; only the time differs.
        """
        live, ran = dict(golden), 0
        differs: set[str] = set()
        todo, begun = set(patches), False
        for session, stage in self.parts:
            wanted = (not early or not differs.isdisjoint(stage.inputs)) if begun else not late
            if session is not None and wanted:
                made = session.run({name: live[name] for name in stage.inputs})
                ran += 1
                live |= made
                differs |= {name for name, array in made.items() if not same_bytes(array, golden[name])}
            for name in todo.intersection(stage.cuts):
                live[name] = patches[name](live[name])
                differs = differs - {name} if same_bytes(live[name], golden[name]) else differs | {name}
                todo, begun = todo - {name}, True
        return Answer({name: live[name] for name in self.outputs}, ran)

    def faults(
        self, layer: str, variable: str, neuron: int, fault: FaultModel, *, bit: int = -1, first: int = 0,
        last: int | None = None, sample: int | None = None,
    ) -> dict[str, Patch]:  # fmt: skip
        """The patches of one fault of a neuron, from its first step to its last (None: the end).

        `bit` is that of a model which strikes bits; `sample` one row of the batch, else all. Raises SelectorError for a
        layer, a step or, when it is run, a neuron that is not there.
        """
        end = sum(at[:2] == (layer, variable) for at in self.neurons.values()) - 1 if last is None else last
        names = [self.name(layer, variable, step) for step in range(first, max(first, end) + 1)]

        def patch(array: Array) -> Array:
            return struck(array, neuron, fault, bit=bit, sample=sample)

        return dict.fromkeys(names, patch)


def struck(array: Array, neuron: int, fault: FaultModel, *, bit: int = -1, sample: int | None = None) -> Array:
    """A value in flight ([N, …]) with one neuron struck, in every sample or in one.

    >>> from onnxfi.faults.models import parse_fault
    >>> struck(np.ones((2, 3), np.float32), 1, parse_fault("zero"), sample=0).tolist()
    [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    """
    flat = np.array(array, order="C").reshape(len(array), -1)
    if not 0 <= neuron < flat.shape[1]:
        raise SelectorError(f"there is no neuron {neuron}; the layer has 0 to {flat.shape[1] - 1}")
    rows = slice(None) if sample is None else slice(sample, sample + 1)
    word = WORDS[array.dtype.name]
    before = word.words(flat[rows, neuron])
    flat[rows, neuron] = word.values(fault.strike(word, before, np.full(len(before), bit, np.int16)))
    return flat.reshape(array.shape)
