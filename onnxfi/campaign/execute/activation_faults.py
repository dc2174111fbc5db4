"""The trials that strike values in flight: the model cut where they strike, patched there, and resumed.

A value inside a body (`If`, `Loop`, `Scan`) cannot be cut out: there the fault operator injects, which is fed. So it
does at every value where a model must not be cut (`whole`): where 16-bit floats are computed in float32, which a cut
would round. It then rounds as the model does that a trial exports. Each route has a golden run of its own, since a
runtime fuses across no cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxfi.campaign.plan.fault_targets import Reach
from onnxfi.errors import FaultError, SelectorError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.trials import Faults
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.sample_axis import graph_batch_layout
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, Armed, arm, check_value_formats
from onnxfi.graph.passes.loop_counters import add_iteration_counts
from onnxfi.graph.write.faulty_copy import find_edits, look_up_words, write_copy
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.runtime.data.batches import Batch, Data
from onnxfi.runtime.data.sample_outputs import scored, stacked
from onnxfi.runtime.engine.engines import Engine
from onnxfi.runtime.engine.model_io import Array
from onnxfi.runtime.inject.activations import activation_faults, bake_into
from onnxfi.runtime.partial.split_execution import Staged, prepare_stages, strike

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Flown:
    """A model cut at some of its values in flight, ready to run on a campaign's data, `size` samples together.

    `armed` are the operators that inject into values in bodies, and where `whole` into all: their words, and where
    `values` their numbers; `turns` says by target which output counts the turns of the loop around it; `golden` are the
    scores of its own disarmed run.
    """

    reach: Reach
    cuts: tuple[str, ...]
    engine: Engine
    data: Data = field(repr=False)
    size: int
    output: str | None
    axes: Mapping[str, tuple[int, ...]] = field(repr=False)
    staged: Staged = field(repr=False)
    armed: tuple[Armed, ...] = field(repr=False)
    turns: Mapping[str, str] = field(repr=False)
    golden: Array = field(repr=False)
    values: bool = False
    loose: bool = False
    whole: bool = False

    @classmethod
    def open(
        cls, reach: Reach, cuts: tuple[str, ...], engine: Engine, data: Data, size: int, output: str | None,
        axes: Mapping[str, tuple[int, ...]], *, values: bool = False, loose: bool = False, whole: bool = False,
    ) -> Flown:  # fmt: skip
        """Cut the model at these targets, and run golden; `axes` say where outputs hold samples.

        `whole` cuts it nowhere: operators inject into the targets. `values` lets operators inject faults that are no
        masks; `loose` lets any shape go from part to part.
        """
        staged, armed, turns = _staged(reach, cuts, engine, parse(reach.model), values, loose, whole)
        none = np.zeros((0, 0))
        flown = cls(reach, cuts, engine, data, size, output, axes, staged, armed, turns, none, values, loose, whole)
        return replace(flown, golden=flown.scores(None))

    def scores(self, faults: Faults | None, stored: Faults | None = None, *, batches: int | None = None) -> Array:
        """The scored output over all samples, or the first batches, with these faults in flight.

        `stored` are faults in stored words that are there as well. Batches that no fault strikes are golden's.
        """
        flown = self if stored is None else self._with(stored)
        parts = []
        for batch in islice(self.data.batches(self.size), batches):
            held = slice(batch.start, batch.start + batch.valid)
            if faults is not None and stored is None and len(self.golden) == self.data.samples:
                sample = faults.sites.times_or_all()[:, 0]
                if not ((sample < 0) | ((sample >= held.start) & (sample < held.stop))).any():
                    parts.append(self.golden[held])
                    continue
            parts.append(scored(batch, flown.outputs(faults, batch), self.axes, self.output))
        return stacked(parts)

    def outputs(self, faults: Faults | None, batch: Batch) -> dict[str, Array]:
        """What the model puts out for a batch with these faults in flight (None: none)."""
        struck = {} if faults is None else by_id(faults)
        flying, sizes = self.reach.flying, {"start": batch.start, "size": batch.size}

        def patch(name: str, array: Array) -> Array:
            if name not in struck:
                return array
            a = flying[name]
            return strike(array, a.target, a.place, struck[name], **sizes)

        feeds = dict(batch.feeds)
        inside = {name: mine for name, mine in struck.items() if flying[name].path or self.whole}
        fed = self._strikes(inside, batch)
        for armed in self.armed:
            feeds |= columns(armed, [s for s in fed if (s.mask is None) == armed.values], batch=batch.size)
        names = [name for name in self.staged.outputs if name not in self.turns.values()]
        wanted = names if self.output is None else [self.output]
        found = self.staged.run(feeds, [*wanted, *sorted(set(self.turns.values()))], patch)
        self._check_steps(inside, found, batch)
        return {name: found[name] for name in wanted}

    def _strikes(self, inside: Mapping[str, Faults], batch: Batch) -> list[ActivationFault]:
        """The faults in bodies, their samples counted within the batch."""
        out = []
        for mine in inside.values():
            for one in activation_faults(mine, self.reach.flying):
                if one.sample is None:
                    out.append(one)
                elif batch.start <= one.sample < batch.start + batch.size:
                    out.append(replace(one, sample=one.sample - batch.start))
        return out

    def _check_steps(self, inside: Mapping[str, Faults], found: Mapping[str, Array], batch: Batch) -> None:
        """Refuse a step that the loop did not come to: the graph cannot tell."""
        for name, mine in inside.items():
            times = mine.sites.times_or_all()
            here = (times[:, 0] < 0) | ((times[:, 0] >= batch.start) & (times[:, 0] < batch.start + batch.valid))
            if name not in self.turns or not here.any():
                continue
            turned, first = int(found[self.turns[name]]), int(times[here, 1].max())
            if first >= max(1, turned):
                raise SelectorError(
                    f"{name}@step={first}: the loop has {turned} iterations for samples {batch.start} to "
                    f"{batch.start + batch.valid - 1}, steps are 0 to {turned - 1}"
                )

    def _with(self, stored: Faults) -> Flown:
        """The same through a model whose stored words are struck."""
        model = self.reach.model
        change = find_edits(model, stored, look_up_words(model, stored)[1])
        with scratch_folder() as folder:
            faulty = write_copy(model, change, folder / "faulty.onnx" if model.external else None)
            proto = parse(load(faulty.path or faulty.data or b""))
            where = folder if model.external else None
            how = self.values, self.loose, self.whole
            staged, armed, turns = _staged(self.reach, self.cuts, self.engine, proto, *how, where)
        return replace(self, staged=staged, armed=armed, turns=turns)


def _staged(
    reach: Reach, cuts: tuple[str, ...], engine: Engine, proto: onnx.ModelProto, values: bool, loose: bool,
    whole: bool, folder: Path | None = None,
) -> tuple[Staged, tuple[Armed, ...], dict[str, str]]:  # fmt: skip
    """The stages of a model cut at these targets (`whole`: at none), operators at the others, and counters of loops."""
    rows = [reach.flying[name] for name in cuts]
    inside, turns = [a for a in rows if a.path or whole], dict[str, str]()
    armed: list[Armed] = []
    if inside:
        proto, counters = add_iteration_counts(proto)
        turns = {a.target.id: counters[a.path] for a in inside if a.path in counters}
        armed.append(arm(proto, inside))
        if values:
            armed.append(
                arm(armed[0].proto, [a for a in check_value_formats(inside) if not a.unsupported_reason], values=True)
            )
        proto = _fed(armed)
    if folder is None and reach.model.path is not None:
        folder = reach.model.path.parent
    staged = prepare_stages(proto, [a.name for a in rows if not (a.path or whole)], engine, folder, loose=loose)
    return staged, tuple(armed), turns


def _fed(armed: Sequence[Armed]) -> onnx.ModelProto:
    """An armed model whose columns must be fed: without defaults, which would make them weights of its stages."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(armed[-1].proto)
    columns = {name for one in armed for name in one.inputs}
    for k in reversed(range(len(made.graph.initializer))):
        if made.graph.initializer[k].name in columns:
            del made.graph.initializer[k]
    return made


def valued(reach: Reach, faults: Faults, *, whole: bool = False) -> bool:
    """Return whether some fault that an operator injects is no mask, so that it must change numbers."""
    sites = faults.sites
    bodies = {name for name, a in reach.flying.items() if a.path or whole}
    inside = [k for k, target in enumerate(faults.targets) if target.id in bodies]
    rows = np.flatnonzero(np.isin(sites.target, inside))
    if len(faults.models) == 1:  # what it does hangs on the word and the bit alone
        kinds = np.stack([sites.target[rows], sites.bit[rows].astype(np.int64)])
        rows = rows[np.unique(kinds, axis=1, return_index=True)[1]]
    return any(
        faults.model(row).mask(faults.targets[int(sites.target[row])].word, int(sites.bit[row])) is None
        for row in rows.tolist()
    )


def by_id(faults: Faults) -> dict[str, Faults]:
    """Faults by the target that they strike."""
    return {
        faults.targets[k].id: faults.pick(np.flatnonzero(faults.sites.target == k))
        for k in np.unique(faults.sites.target).tolist()
    }


def one_sample(header: Header, faults: Faults) -> int | None:
    """The one sample that a trial of a single fault strikes, which alone it is judged on; None where it is none."""
    if not header.of_single_faults or faults.sites.times is None:
        return None
    samples = np.unique(faults.sites.times[:, 0])
    return int(samples[0]) if len(samples) == 1 and samples[0] >= 0 else None


def bake_trial(reach: Reach, faults: Faults, stored: Faults, out: Path) -> None:
    """Write the model of one trial: its stored words struck, and its faults in flight as operators in the graph.

    A sample is then that row of the batch which is fed; where the model takes one size, of the batch in which it comes.
    Raises FaultError for a fault that no graph can do.
    """
    model = reach.model
    rows: Mapping[str, Activation] = reach.flying
    faults, fixed = reach.by_step(faults), _batch(reach)
    if len(stored):
        if model.external:
            raise FaultError("faults in stored words and in flight cannot be exported together with external data")
        faulty = write_copy(model, find_edits(model, stored, look_up_words(model, stored)[1]), None).data
        model = load(faulty or b"")
    struck = activation_faults(faults, rows)
    bake_into(model, [s if s.sample is None or not fixed else replace(s, sample=s.sample % fixed) for s in struck], out)


def _batch(reach: Reach) -> int | None:
    """The one batch size that the model takes, as far as its file tells."""
    told = reach.flight is not None and bool(reach.flight.sample_axes)  # another axis than the file tells
    return None if told else graph_batch_layout(reach.model.proto.graph).fixed
