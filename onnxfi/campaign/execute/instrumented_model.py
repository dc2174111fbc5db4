"""The whole model with faults in activations: by fault operators in its graph, executed or exported.

The model cannot be split at an activation in the body of an `If`, `Loop` or `Scan`, nor in a network of 16-bit floats
that are computed in float32, which a split would round. There a fault operator, whose inputs are the faults of a trial,
injects. The instrumented model has a golden run of its own, since a runtime fuses no operators across fault operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.execute.weight_routes import by_id
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.errors import EngineError, FaultError, ProviderError, SelectorError
from onnxfi.faults.trials import Faults
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.batch_layout import graph_batch_layout
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.graph_edit import names_in, show_fault_free
from onnxfi.graph.passes.instrument import (
    ActivationFault,
    Armed,
    arm,
    check_value_formats,
    check_word_formats,
    opset_of,
)
from onnxfi.graph.passes.probes import CountIterations
from onnxfi.graph.write.faulty_copy import find_edits, look_up_words, write_copy
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import Outputs, outputs_of
from onnxfi.runtime.engine.ports import Array
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.inject.activations import activation_faults, bake_into
from onnxfi.runtime.partial.activation_words import InjectedWords, inject_words

if TYPE_CHECKING:
    import onnx

_LARGEST = (1 << 31) - 1
#: Activations of one session whose words are kept; to show many would cost more than a trial.
_MOST_SHOWN = 8


@dataclass(frozen=True)
class _Instrumented:
    """A session of a model with fault operators, and the outputs that count iterations of loops, by target."""

    session: Session
    armed: tuple[Armed, ...]
    counters: Mapping[str, str]
    #: Outputs with the values in front of the fault operators, by the ids of activations.
    fault_free: Mapping[str, str]


class InstrumentedModel:
    """The whole model with fault operators at some activations, ready to run on a campaign's data.

    Parameters
    ----------
    opened : OpenCampaign
        The campaign.
    targets : sequence of str
        The ids of the activations.
    numbers : bool
        Whether operators change numbers as well, for faults that are no masks of a word.
    """

    def __init__(self, opened: OpenCampaign, targets: Sequence[str], *, numbers: bool = False) -> None:
        self.opened, self.targets, self.numbers = opened, tuple(targets), numbers
        folder = None if opened.model.path is None else opened.model.path.parent
        self._model = self._open(parse(opened.model), folder)
        self.golden: tuple[Outputs, ...] = self.run(None)

    @property
    def cost_bytes(self) -> int:
        """Return about the bytes that its session takes."""
        return sum(source.size for source in self.opened.model.sources)

    def run(
        self, faults: Faults | None, weights: Faults | None = None, *, batches: int | None = None,
        words: InjectedWords | None = None,
    ) -> tuple[Outputs, ...]:  # fmt: skip
        """Return the outputs over all samples, or the first batches, with these faults in activations.

        `weights` are faults in weights that are there as well; `words` keeps the words of activations. Batches without
        a fault have the golden outputs.
        """
        model = self._model if weights is None else self._with(weights)
        opened, parts = self.opened, list[Outputs]()
        for k, batch in enumerate(islice(opened.data.batches(opened.size), batches)):
            if faults is not None and weights is None:
                sample = faults.sites.times_or_all()[:, 0]
                if not ((sample < 0) | ((sample >= batch.start) & (sample < batch.start + batch.valid))).any():
                    parts.append(self.golden[k])
                    continue
            parts.append(
                outputs_of(batch, self._outputs(model, faults, batch, words), opened.axes, opened.names, opened.reduce)
            )
        return tuple(parts)

    def _open(self, proto: onnx.ModelProto, folder: Path | None) -> _Instrumented:
        """Open a model with fault operators."""
        rows = [self.opened.fault_targets.activations[name] for name in self.targets]
        for a in check_word_formats(rows, opset_of(proto)):
            if a.unsupported_reason:
                raise FaultError(f"no fault operator injects into {a.target.id!r}: {a.unsupported_reason}")
        proto, counters = CountIterations().run(proto)
        counted = {a.target.id: counters[a.path] for a in rows if a.path in counters}
        made, armed = armed_model(proto, rows, folder, numbers=self.numbers)
        engine = self.opened.campaign.engine.open()
        if not engine.fed_faults:
            raise ProviderError(
                f"the engine {engine.name!r} takes no fault operators whose faults are fed, which faults in "
                f"{rows[0].target.id!r} need; select other targets, or use --engine onnxruntime"
            )
        few = rows if len(rows) <= _MOST_SHOWN else ()
        taken = set(names_in(proto.graph))
        shown = show_fault_free(made, [(a.path, a.name) for a in few if f"{a.name}.fault_free" not in taken])
        session = engine.prepare(made.SerializeToString())
        return _Instrumented(session, armed, counted, shown)

    def _outputs(
        self, model: _Instrumented, faults: Faults | None, batch: Batch, words: InjectedWords | None
    ) -> dict[str, Array]:
        """Return the outputs for a batch with these faults in activations (None: none)."""
        of_target = {} if faults is None else by_id(faults)
        fed, feeds = self._within(of_target, batch), dict(batch.feeds)
        for armed in model.armed:
            feeds |= columns(armed, [f for f in fed if (f.mask is None) == armed.values], batch=batch.size)
        counters = sorted(set(model.counters.values()))
        beside = {*counters, *model.fault_free.values()}
        names = [port.name for port in model.session.outputs if port.is_tensor and port.name not in beside]
        wanted = self.opened.names or names
        shown = {} if words is None else {k: out for k, out in model.fault_free.items() if k in of_target}
        found = model.session.run(feeds, [*wanted, *counters, *shown.values()])
        _check_steps(of_target, model.counters, found, batch)
        if words is not None:
            values = {name: found[out] for name, out in shown.items()}
            self._keep_words(of_target, values, batch, words)
        return {name: found[name] for name in wanted}

    def _keep_words(
        self, of_target: Mapping[str, Faults], values: Mapping[str, Array], batch: Batch, words: InjectedWords
    ) -> None:
        """Keep the words that the faults of a batch changed, from the values in front of the fault operators."""
        for name, mine in of_target.items():
            a = self.opened.fault_targets.activations[name]
            array = values.get(name, batch.feeds.get(a.name) if not a.path else None)
            if array is None:
                continue
            first = mine.sites.times_or_all()[:, 1]
            for step in np.unique(first).tolist() if a.path else [-1]:  # of a fault in several steps the first
                if step < len(array):
                    some, value = (mine, array) if step < 0 else (mine.pick(first == step), array[step])
                    inject_words(
                        value, a.target, a.place, some, start=batch.start, size=batch.size, kept=words, step=step
                    )

    def _within(self, of_target: Mapping[str, Faults], batch: Batch) -> list[ActivationFault]:
        """Return the faults of a batch, their samples counted within it."""
        out = []
        for mine in of_target.values():
            for fault in activation_faults(mine, self.opened.fault_targets.activations):
                if fault.sample is None:
                    out.append(fault)
                elif batch.start <= fault.sample < batch.start + batch.size:
                    out.append(replace(fault, sample=fault.sample - batch.start))
        return out

    def _with(self, weights: Faults) -> _Instrumented:
        """Open the same of a faulty copy of the model, with these faults in its weights."""
        with faulty_proto(self.opened.model, weights) as faulty:
            return self._open(*faulty)


def _check_steps(
    of_target: Mapping[str, Faults], counters: Mapping[str, str], found: Mapping[str, Array], batch: Batch
) -> None:
    """Refuse a step beyond the iterations of the loop, which the graph cannot see."""
    for name, mine in of_target.items():
        times = mine.sites.times_or_all()
        here = (times[:, 0] < 0) | ((times[:, 0] >= batch.start) & (times[:, 0] < batch.start + batch.valid))
        if name not in counters or not here.any():
            continue
        iterations, first = int(found[counters[name]]), int(times[here, 1].max())
        if first >= max(1, iterations):
            raise SelectorError(
                f"{name}@step={first}: the loop has {iterations} iterations for samples {batch.start} to "
                f"{batch.start + batch.valid - 1}, steps are 0 to {iterations - 1}"
            )


def armed_model(
    proto: onnx.ModelProto, rows: Sequence[Activation], folder: Path | None, *, numbers: bool
) -> tuple[onnx.ModelProto, tuple[Armed, ...]]:
    """Return a model with fault operators at some activations, whose inputs must be fed, and these operators.

    With `numbers` there are operators that change numbers as well. External data in `folder` is inside the model then.
    """
    armed = [arm(proto, rows)] if rows else []
    if rows and numbers:
        numbered = [a for a in check_value_formats(rows) if not a.unsupported_reason]
        armed.append(arm(armed[0].proto, numbered, values=True))
    return _with_own_weights(_without_defaults(armed) if armed else proto, folder), tuple(armed)


@contextmanager
def faulty_proto(model: Model, weights: Faults) -> Iterator[tuple[onnx.ModelProto, Path | None]]:
    """Yield a copy of a model with these faults in its weights, and the folder of its external data, if it has any."""
    change = find_edits(model, weights, look_up_words(model, weights)[1])
    with scratch_folder() as folder:
        copy = write_copy(model, change, folder / "faulty.onnx" if model.external else None)
        yield parse(load(copy.path or copy.data or b"")), folder if model.external else None


def _with_own_weights(proto: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """Return the model with its external data inside."""
    import onnx
    from onnx import external_data_helper

    if folder is None or not any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer):
        return proto
    external_data_helper.load_external_data_for_model(proto, str(folder))
    if proto.ByteSize() > _LARGEST:
        raise EngineError(
            f"the model takes {proto.ByteSize():,} bytes, too many for fault operators; inject into its weights"
        )
    return proto


def _without_defaults(armed: Sequence[Armed]) -> onnx.ModelProto:
    """Return an instrumented model whose fault inputs must be fed."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(armed[-1].proto)
    names = {name for one in armed for name in one.inputs}
    for k in reversed(range(len(made.graph.initializer))):
        if made.graph.initializer[k].name in names:
            del made.graph.initializer[k]
    return made


def needs_numbers(fault_targets: FaultTargets, faults: Faults) -> bool:
    """Return whether some fault in an activation is no mask of a word, so that an operator must change numbers."""
    sites = faults.sites
    rows = np.flatnonzero(fault_targets.in_activations(faults))
    if len(faults.models) == 1:  # the change depends on the word and the bit alone
        kinds = np.stack([sites.target[rows], sites.bit[rows].astype(np.int64)])
        rows = rows[np.unique(kinds, axis=1, return_index=True)[1]]
    return any(
        faults.model(row).mask(faults.targets[int(sites.target[row])].word, int(sites.bit[row])) is None
        for row in rows.tolist()
    )


def bake_trial(fault_targets: FaultTargets, faults: Faults, stored: Faults, out: Path) -> None:
    """Write the model of one trial: its faults in weights as words, those in activations as operators in the graph.

    A sample is then that row of the batch which is fed; where the model takes one size, of the batch in which it comes.
    Raises FaultError for a fault that no graph can do.
    """
    model = fault_targets.model
    rows: Mapping[str, Activation] = fault_targets.activations
    if fault_targets.activation_space is not None and fault_targets.activation_space.positions:
        raise FaultError(
            "a fault at a step of a generation loop lies between its runs and in no file; replay it with onnxfi run "
            "--faults"
        )
    faults, fixed = fault_targets.by_step(faults), _batch(fault_targets)
    if len(stored):
        if model.external:
            raise FaultError("faults in weights and activations cannot be exported together with external data")
        faulty = write_copy(model, find_edits(model, stored, look_up_words(model, stored)[1]), None).data
        model = load(faulty or b"")
    injected = activation_faults(faults, rows)
    bake_into(
        model, [s if s.sample is None or not fixed else replace(s, sample=s.sample % fixed) for s in injected], out
    )


def _batch(fault_targets: FaultTargets) -> int | None:
    """Return the one batch size that the model takes, as far as its file says; None if it takes any."""
    elsewhere = fault_targets.activation_space is not None and bool(
        fault_targets.activation_space.sample_axes
    )  # another axis than the file says
    return None if elsewhere else graph_batch_layout(fault_targets.model.proto.graph).fixed
