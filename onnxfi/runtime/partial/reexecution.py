"""Re-execution of what a fault can reach: one route, ready to run on any batch, fault-free or with faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import EngineError, SegmentMismatchError
from onnxfi.faults.words import Words
from onnxfi.graph.partition.output_channels import OutputChannels
from onnxfi.graph.partition.route import Route
from onnxfi.graph.partition.segments import EntrySubgraph, FaultPath
from onnxfi.graph.partition.subgraph import TensorLocation, array_at
from onnxfi.graph.partition.subgraph_model import SubgraphModel, extract_model
from onnxfi.runtime.data.batches import Batch
from onnxfi.runtime.data.sample_outputs import Outputs, outputs_of
from onnxfi.runtime.engine.ports import Array, same_by, same_bytes, words_of
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.engine.worker_thread_lock import claim
from onnxfi.runtime.partial.conv_delta import open_conv_delta
from onnxfi.runtime.partial.entry_subgraph import EntrySession, FaultyEntry
from onnxfi.runtime.partial.golden_cache import of_golden_shapes
from onnxfi.runtime.partial.segmented_model import SampleRows, SegmentedModel, among
from onnxfi.runtime.partial.tied_embeddings import RowLookups

#: The samples for which outputs differ from the golden run, and these outputs.
FaultyOutputs = tuple[SampleRows, dict[str, Array]]


@dataclass
class TrialFaults:
    """The faults of one trial, and the sessions made for them.

    Attributes
    ----------
    words : mapping of TensorLocation to (index, words)
        The faulty elements of each weight tensor (flat, row-major, each once) and their words.
    activations : mapping of str to callable
        The change of each faulty activation, for the batch that it is given.
    sessions : dict
        The sessions with rebuilt weights, by segment and subgraph.
    sessions_bytes : int
        About the bytes that they take.
    computed : dict
        Channels that were computed together with those of other trials, by batch.
    """

    words: Mapping[TensorLocation, tuple[NDArray[np.int64], Words]]
    activations: Mapping[str, Callable[[Batch, Array], Array]] = field(default_factory=dict, repr=False)
    sessions: dict[int, dict[int, Session]] = field(default_factory=dict, repr=False)
    sessions_bytes: int = 0
    computed: dict[int, Array] = field(default_factory=dict, repr=False)

    def of(self, location: TensorLocation) -> tuple[NDArray[np.int64], Words]:
        """Return the faulty elements and words of one tensor."""
        return self.words[location]


class Reexecution:
    """An open route: the sessions of what is executed again.

    `cost_bytes` is about what its sessions and tensors take. Opening raises EngineError if the runtime does not take
    the parts.
    """

    #: Trials whose faults are computed together.
    at_once = 1

    def __init__(self, segmented: SegmentedModel, route: Route) -> None:
        self.segmented, self.golden, self.route = segmented, segmented.golden, route
        self.entries: list[EntrySession] = []
        self.cost_bytes = 0

    def outputs(self, k: int, faults: TrialFaults | None = None) -> Outputs:
        """Return the outputs of batch k, the golden ones without faults."""
        if faults is None:
            self._check_golden(k)
            return golden_outputs(self.segmented, k)
        with of_golden_shapes():
            rows, found = self._run(k, faults)
        if not found:
            return golden_outputs(self.segmented, k)
        whole = self.segmented.whole(rows, found) if rows.some is not None else found
        return faulty_outputs(self.segmented, k, whole)

    def ready(self, k: int, trials: Sequence[TrialFaults]) -> None:
        """Compute for batch k what these trials, `at_once` of them at most, can share."""

    def _check_golden(self, k: int) -> None:
        """Raise SegmentMismatchError if an entry subgraph gives other bits without a fault."""
        for entry in self.entries:
            entry.check_golden(SampleRows(self.golden, k))

    def _run(self, k: int, faults: TrialFaults) -> FaultyOutputs:
        raise NotImplementedError

    def _prepared(self, part: SubgraphModel) -> Session:
        self.cost_bytes += part.size_bytes
        return self.segmented.segment_sessions.prepare(part)

    def _opened(
        self, entry: EntrySubgraph, stored: Mapping[str, Array] | None = None, location: TensorLocation | None = None
    ) -> EntrySession:
        return EntrySession(self.segmented, entry, self._prepared, stored or {}, location)

    def _rebuilt(self, entry: EntrySession, faults: TrialFaults) -> dict[int, Session]:
        """Return sessions of the subgraphs of an entry that hold faulty weights, built with them.

        They stay open for further batches as far as the memory for sessions allows, those of the first segment always.
        """
        segment, sessions, net = entry.entry.segment, self.segmented.segment_sessions, self.segmented.segmentation.net
        if segment in faults.sessions:
            return faults.sessions[segment]
        made, size = dict[int, Session](), 0
        for number in range(len(entry.entry.subgraphs)):
            here = [where for where in faults.words if entry.holds(number, where)]
            if here:
                arrays = {where: FaultyWords(array_at(net, where), faults, where).__enter__() for where in here}
                part = entry.part(number, arrays)
                made[number], size = sessions.prepare(part), size + part.size_bytes
        if not faults.sessions or faults.sessions_bytes + size <= sessions.inner_bytes:
            faults.sessions[segment] = made
            faults.sessions_bytes += size
        return made

    def _changes(self, k: int, faults: TrialFaults) -> dict[str, Callable[[Array], Array]]:
        """Return the changes of the faulty activations of batch k."""
        batch = self.golden.batch(k)
        assert batch is not None
        return {name: partial(change, batch) for name, change in faults.activations.items()}


def golden_outputs(segmented: SegmentedModel, k: int) -> Outputs:
    """Return the outputs of batch k that count, without a fault: what is kept of them is found once."""
    if segmented.golden.reduce is None:
        return faulty_outputs(segmented, k, {})
    if k not in segmented.reduced:
        segmented.reduced[k] = faulty_outputs(segmented, k, {})
    return segmented.reduced[k]


def faulty_outputs(segmented: SegmentedModel, k: int, found: Mapping[str, Array]) -> Outputs:
    """Return the outputs of batch k that count, of which `found` differ from the golden run."""
    batch, names = segmented.golden.batch(k), segmented.segmentation.outputs
    assert batch is not None
    wanted = names or segmented.outputs
    rest = segmented.golden.values(k, [name for name in wanted if name not in found])
    every = {name: found[name] if name in found else rest[name] for name in wanted}
    return outputs_of(batch, every, segmented.golden.axes, names, segmented.golden.reduce)


class RebuiltSegments(Reexecution):
    """The segments that hold faulty weights, rebuilt with them."""

    def __init__(self, segmented: SegmentedModel, path: FaultPath) -> None:
        super().__init__(segmented, Route.REBUILT)
        self.entries = [self._opened(entry) for entry in path.entries]

    def _run(self, k: int, faults: TrialFaults) -> FaultyOutputs:
        self._check_golden(k)
        faulty = {e.entry.segment: FaultyEntry(e, sessions=partial(self._rebuilt, e, faults)) for e in self.entries}
        return self.segmented.run_from(SampleRows(self.golden, k), {}, min(faulty), faulty)


class FedWeights(Reexecution):
    """The part of a model that one weight tensor reaches, the tensor being fed."""

    def __init__(self, segmented: SegmentedModel, path: FaultPath) -> None:
        super().__init__(segmented, Route.PARTIAL)
        self.location = path.location
        self.tensor = array_at(segmented.segmentation.net, path.location)
        self.cost_bytes += self.tensor.nbytes
        stored = {path.location.fed: self.tensor}
        self.entries = [self._opened(entry, stored, path.location) for entry in path.entries]
        self.indices = segmented.segmentation.row_indices(path.location)

    def _check_golden(self, k: int) -> None:
        with claim(self):
            super()._check_golden(k)

    def _run(self, k: int, faults: TrialFaults) -> FaultyOutputs:
        rows = SampleRows(self.golden, k)
        if not self._read(k, faults):
            return rows, {}
        self._check_golden(k)
        faulty = {entry.entry.segment: _FedEntry(entry, self, faults) for entry in self.entries}
        return self.segmented.run_from(rows, {}, min(faulty), faulty)

    def _read(self, k: int, faults: TrialFaults) -> bool:
        """Return whether batch k reads a faulty element; of rows that are looked up it reads few."""
        if self.indices is None:
            return True
        faulty = faults.of(self.location)[0] // (self.tensor.size // len(self.tensor))
        read = self.golden.values(k, self.indices)
        return any(np.isin(index % len(self.tensor), faulty).any() for index in read.values())


@dataclass(frozen=True)
class _FedEntry:
    """An entry subgraph that is fed a tensor, which holds the faults of one trial meanwhile and no longer."""

    entry: EntrySession
    weights: FedWeights
    faults: TrialFaults

    @property
    def changed_inside(self) -> frozenset[str]:
        """Return the activations that it changes itself."""
        return self.entry.faulty_activations

    def run(self, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the segment, where `differing` differs from the golden activations."""
        with claim(self.weights):
            self.entry.check_golden(rows)
            with FaultyWords(self.weights.tensor, self.faults, self.weights.location):
                return self.entry.outputs(rows, differing)


class FaultyActivations(Reexecution):
    """The part of a model that activations reach: all of them are faulty, or `any_of` them."""

    def __init__(self, segmented: SegmentedModel, names: Sequence[str], *, any_of: bool = False) -> None:
        super().__init__(segmented, Route.PARTIAL)
        found = segmented.segmentation.activation_entries(names, any_of=any_of)
        if found is None:
            raise EngineError(f"the model cannot be cut at {names[0]!r}")
        self.entries = [self._opened(entry) for entry in found]
        if not self.entries and not any(map(segmented.segmentation.is_boundary, names)):
            raise EngineError(f"no output changes with {names[0]!r}")

    def _run(self, k: int, faults: TrialFaults) -> FaultyOutputs:
        self._check_golden(k)
        changes, routes = self._changes(k, faults), self.segmented.segmentation
        entries = [entry for entry in self.entries if not entry.faulty_activations.isdisjoint(changes)]
        faulty = {entry.entry.segment: FaultyEntry(entry, changes=changes) for entry in entries}
        made_in = [max(0, routes.makers[name]) for name in changes if routes.is_boundary(name)]
        return self.segmented.run_from(SampleRows(self.golden, k), {}, min([*made_in, *faulty]), faulty, changes)


class SplitAtActivations(Reexecution):
    """The part that activations reach in a model whose segments end at each of them; weights may be faulty too.

    Its golden run is one of its own: a runtime fuses no operators across an end.
    """

    def __init__(self, segmented: SegmentedModel, names: Sequence[str], weights: FaultPath | None = None) -> None:
        super().__init__(segmented, Route.SPLIT)
        if inside := [name for name in names if not segmented.segmentation.is_boundary(name)]:
            raise EngineError(f"the model cannot be split at {inside[0]!r}")
        self.entries = [self._opened(entry) for entry in weights.entries] if weights is not None else []

    def _run(self, k: int, faults: TrialFaults) -> FaultyOutputs:
        changes = self._changes(k, faults)
        faulty = {
            e.entry.segment: FaultyEntry(e, changes=changes, sessions=partial(self._rebuilt, e, faults))
            for e in self.entries
        }
        start = min([*(max(0, self.segmented.segmentation.makers[name]) for name in changes), *faulty])
        return self.segmented.run_from(SampleRows(self.golden, k), {}, start, faulty, changes)


class ChannelDelta(Reexecution):
    """The output channels of one operator that hold faults, and then what its output reaches.

    They are computed by a small operator that stores slices of the tensors, as the whole one stores all of them, so
    that the runtime takes the same kernel. Samples whose channels come out as in the golden run are masked and stop
    there. Running raises SegmentMismatchError if channels without a fault have other bits than in the whole model.
    """

    def __init__(self, segmented: SegmentedModel, path: FaultPath) -> None:
        super().__init__(segmented, Route.CHANNEL_DELTA)
        routes = segmented.segmentation
        assert path.channels is not None and path.channel_subgraph is not None
        self.location, self.channels, self.channel_subgraph = path.location, path.channels, path.channel_subgraph
        self.tensors = {name: array_at(routes.net, TensorLocation(name)) for name in self.channels.sliced}
        self.tensor = self.tensors[self.location.fed]
        self.cost_bytes += sum(tensor.nbytes for tensor in self.tensors.values())
        self._into = segmented.segment_sessions.feeds([*self.channel_subgraph.inputs, self.channels.output])
        self.segment = routes.within[self.channels.output]
        entries = (
            () if routes.is_boundary(self.channels.output) else routes.activation_entries([self.channels.output]) or ()
        )
        self.entries = [self._opened(entry) for entry in entries]
        self.conv_delta = open_conv_delta(segmented, entries[0], self._prepared) if entries else None
        self.lookups = RowLookups(segmented, self.channels, self._opened) if self.channels.lookups else None
        self._checked = False

    @property
    def at_once(self) -> int:  # type: ignore[override]
        """Return how many trials together compute no more channels than the operator has."""
        return max(1, self.channels.count // self.channels.least)

    def ready(self, k: int, trials: Sequence[TrialFaults]) -> None:
        """Compute the channels of all these trials in one run, which shares what a runtime makes of the input."""
        made = trials[0].sessions.setdefault(self.segment, {})
        every = [self._computed_channels(faults)[1] for faults in trials]
        if len(trials) not in made:
            parts = [self._slices(channels, faults) for channels, faults in zip(every, trials, strict=True)]
            made[len(trials)] = self._channel_session(parts)
        ends = np.cumsum([len(channels) for channels in every])[:-1]
        found = made[len(trials)].run(self._feeds(k, every))[self.channels.output]
        for faults, array in zip(trials, np.split(found, ends, self.channels.axis), strict=True):
            faults.computed[k] = array

    def _check_golden(self, k: int) -> None:
        super()._check_golden(k)
        if not self._checked:
            first = _blocks(np.zeros(1, np.int64), self.channels)
            found = self._channel_session([self._slices(first)]).run(self._feeds(k, [first]))
            if not same_bytes(found[self.channels.output], self._golden_of(k, first)):
                raise SegmentMismatchError(
                    f"channels of {self.channels.output!r} apart have other bits than in the whole"
                )
            self._checked = True

    def _mismatch(self) -> SegmentMismatchError:
        return SegmentMismatchError(f"some channels of {self.channels.output!r} have other bits than all together")

    def _slices(self, computed: NDArray[np.int64], faults: TrialFaults | None = None) -> dict[str, Array]:
        """Return these channels of the weight tensors, with the faults of a trial."""
        with FaultyWords(self.tensor, faults, self.location):
            return {name: np.take(self.tensors[name], computed, axis) for name, axis in self.channels.sliced.items()}

    def _channel_session(self, parts: Sequence[Mapping[str, Array]]) -> Session:
        """Return a session of the operator that stores these slices, concatenated."""
        sliced = self.channels.sliced
        stored = {
            TensorLocation(name): np.concatenate([part[name] for part in parts], axis) for name, axis in sliced.items()
        }
        feeds = {name: self._into[name] for name in self.channel_subgraph.inputs}
        if (addend := self.channels.addend) in feeds:
            kind, shape = feeds[addend]
            count = sum(len(next(iter(part.values()))) for part in parts)
            feeds[addend] = kind, [count if axis == self.channels.axis else d for axis, d in enumerate(shape or ())]
        net = self.segmented.segmentation.net
        return self.segmented.segment_sessions.prepare(
            extract_model(net, self.channel_subgraph.nodes, feeds, [self.channels.output], faulty=stored)
        )

    def _feeds(self, k: int, computed: Sequence[NDArray[np.int64]]) -> dict[str, Array]:
        """Return the inputs of the operator for these channels of a batch."""
        feeds = dict(self.golden.values(k, self.channel_subgraph.inputs))
        if (addend := self.channels.addend) in feeds:
            if feeds[addend].shape != self.golden.values(k, [self.channels.output])[self.channels.output].shape:
                raise SegmentMismatchError(f"{addend!r} is added to all channels alike")
            feeds[addend] = np.take(feeds[addend], np.concatenate(computed), self.channels.axis)
        return feeds

    def _computed_channels(self, faults: TrialFaults) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the channels that hold faults of a trial, and those that are computed for it."""
        axis = self.channels.sliced[self.location.fed]
        faulty = np.unique(np.unravel_index(faults.of(self.location)[0], self.tensor.shape)[axis])
        return faulty, _blocks(faulty, self.channels)

    def _golden_of(self, k: int, computed: NDArray[np.int64]) -> Array:
        """Return the golden values of these channels."""
        name = self.channels.output
        return np.take(self.golden.values(k, [name])[name], computed, self.channels.axis)

    def _run(self, k: int, faults: TrialFaults) -> FaultyOutputs:
        self._check_golden(k)
        if self.lookups is not None:
            golden = self.lookups.golden_indices(k)
            with FaultyWords(self.tensor, faults, self.location) as tensor:
                rows_read = self.lookups.changed(golden, tensor, faults.of(self.location)[0])
            if rows_read:
                faults.computed.pop(k, None)
                return self.lookups.run(k, rows_read, partial(self._replace_channels, faults))
        if k not in faults.computed:
            self.ready(k, [faults])
        faulty, computed = self._computed_channels(faults)
        own, found = self._golden_of(k, computed), faults.computed.pop(k)
        if not same_by(own, found, self.channels.axis)[~np.isin(computed, faulty)].all():
            raise self._mismatch()
        return self._run_from(SampleRows(self.golden, k), computed, words_of(found) != words_of(own), found)

    def _replace_channels(self, faults: TrialFaults, inputs: Mapping[str, Array], whole: Array) -> Array:
        """Return an output of the operator on other inputs than the golden ones, with the channels that hold faults."""
        made, axis = faults.sessions.setdefault(self.segment, {}), self.channels.axis
        faulty, computed = self._computed_channels(faults)
        if 1 not in made:
            made[1] = self._channel_session([self._slices(computed, faults)])
        found = made[1].run({name: inputs[name] for name in self.channel_subgraph.inputs})[self.channels.output]
        if not same_by(np.take(whole, computed, axis), found, axis)[~np.isin(computed, faulty)].all():
            raise self._mismatch()
        value = np.array(whole)
        where: list[Any] = [slice(None)] * value.ndim
        where[axis] = computed
        value[tuple(where)] = found
        return value

    def _run_from(
        self, rows: SampleRows, computed: NDArray[np.int64], differs: NDArray[np.bool_], faulty: Array
    ) -> FaultyOutputs:
        """Run what these channels reach, for the samples in which they differ."""
        size, name, segment = self.segmented.size(rows), self.channels.output, self.segment
        if not differs.any():
            return rows, {}
        if faulty.ndim and len(faulty) == size and self.channels.axis % faulty.ndim:
            keep = np.flatnonzero(differs.reshape(size, -1).any(1))
            few = among(len(keep))
            exact = self.entries[0].keeps_bits if self.entries else partial(self.segmented.keeps_apart, segment)
            if 2 * few <= size and exact(few):
                rows = rows.pick(keep)
                faulty, differs = faulty[keep], differs[keep]
        value = np.array(rows.values([name])[name])
        where: list[Any] = [slice(None)] * value.ndim
        where[self.channels.axis] = computed
        value[tuple(where)] = np.where(differs, faulty, value[tuple(where)])
        if not self.entries:
            return self.segmented.run_from(rows, {name: value}, segment + 1)
        delta = self.conv_delta.faulty_entry(rows, {name: value}) if self.conv_delta is not None else None
        entries = {entry.entry.segment: FaultyEntry(entry, {name: value}) for entry in self.entries}
        return self.segmented.run_from(rows, {}, segment, entries if delta is None else {segment: delta})


class FaultyWords:
    """A tensor that holds faulty words while it is in use, and its own words afterwards."""

    def __init__(self, tensor: Array, faults: TrialFaults | None, location: TensorLocation) -> None:
        none = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        self.index, words = none if faults is None else faults.of(location)
        self.tensor, self.held = tensor, tensor.reshape(-1).view(f"u{tensor.itemsize}")
        self.words, self.kept = words.astype(self.held.dtype), self.held[self.index]

    def __enter__(self) -> Array:
        self.held[self.index] = self.words
        return self.tensor

    def __exit__(self, *_: object) -> None:
        self.held[self.index] = self.kept


def open_reexecution(segmented: SegmentedModel, path: FaultPath) -> Reexecution:
    """Return a route ready to run; EngineError if the runtime does not take its parts."""
    kind = ChannelDelta if path.channels is not None else RebuiltSegments if path.rebuilt else FedWeights
    return kind(segmented, path)


def _blocks(faulty: NDArray[np.int64], channels: OutputChannels) -> NDArray[np.int64]:
    """Return the channels that are computed for the faulty ones: whole blocks, and all where those are most."""
    count, least = channels.count, channels.least
    if count <= 2 * least:
        return np.arange(count)
    starts = np.unique(np.minimum(faulty // least * least, count - least))
    found = np.unique((starts[:, None] + np.arange(least)).ravel())
    return np.arange(count) if 2 * len(found) > count else found
