"""Entry subgraphs, opened: the part of a segment that runs in its place for a fault in it.

A runtime may fuse an entry subgraph differently from its segment, and round differently. So it runs once without a
fault. If it gives the golden activations bit for bit, its kernels are those of the whole model, and so are its outputs
with a fault; otherwise it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnxfi.errors import SegmentMismatchError
from onnxfi.graph.partition.segments import EntrySubgraph
from onnxfi.graph.partition.subgraph import Subgraph, TensorLocation
from onnxfi.graph.partition.subgraph_model import SubgraphModel, extract_model
from onnxfi.runtime.engine.ports import Array, same_bytes
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.partial.golden_cache import array_feed, feed_of
from onnxfi.runtime.partial.segmented_model import ActivationChange, SampleRows, SegmentedModel, padded


def _unchanged(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class FaultyEntry:
    """An entry subgraph with the faults of one trial.

    Attributes
    ----------
    entry : EntrySession
        The entry subgraph.
    values : mapping of str to array
        The faulty activations that are fed. Faulty weights that are fed change in place.
    changes : mapping of str to callable
        The changes of activations within it.
    sessions : callable
        Returns the sessions of subgraphs that are rebuilt with faulty weights, by their number.
    exact : bool
        Whether it is known to give the golden outputs with the golden values of what it is fed.
    """

    entry: EntrySession
    values: Mapping[str, Array] = field(default_factory=dict)
    changes: Mapping[str, ActivationChange] = field(default_factory=dict)
    sessions: Callable[[], Mapping[int, Session]] = dict
    exact: bool = False

    @property
    def changed_inside(self) -> frozenset[str]:
        """Return the activations that it changes itself."""
        return self.entry.faulty_activations

    def run(self, rows: SampleRows, differing: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the segment, where `differing` differs from the golden activations."""
        if not self.exact:
            self.entry.check_golden(rows)
        return self.entry.outputs(rows, differing, self)


class EntrySession:
    """An entry subgraph with its sessions.

    `stored` are the weights that are fed; `prepare` makes a session of a subgraph. Opening raises EngineError if the
    runtime does not take one.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        entry: EntrySubgraph,
        prepare: Callable[[SubgraphModel], Session],
        stored: Mapping[str, Array],
        location: TensorLocation | None = None,
    ) -> None:
        self.segmented, self.entry, self.stored = segmented, entry, stored
        self.net = segmented.segmentation.net
        self._home = location if location is not None and location.node >= 0 else None
        self.values = tuple(name for name in entry.fed if name not in stored)
        self.faulty_activations = frozenset((*self.values, *(name for one in entry.subgraphs for name in one.outputs)))
        self.reads = [tuple(name for name in entry.fed if self._reads(one, name)) for one in entry.subgraphs]
        segment = segmented.segmentation.segments[entry.segment]
        self.output_names = tuple(name for name in segment.outputs if name in self.faulty_activations)
        self.whole = entry.subgraphs == (segment,) and not entry.fed
        self._between = {name: array_feed(array) for name, array in stored.items()}
        self._between |= segmented.segment_sessions.feeds([*entry.inputs, *self.values])
        self._sessions: list[Session] = []
        self._keeps_bits: dict[int, bool] = {}
        self._exact: dict[tuple[int, int], bool] = {}
        for number in range(len(entry.subgraphs)):
            session = segmented.segment_sessions.sessions[entry.segment] if self.whole else prepare(self.part(number))
            self._between |= {port.name: feed_of(port) for port in session.outputs}
            self._sessions.append(session)

    def part(self, number: int, faulty: Mapping[TensorLocation, Array] | None = None) -> SubgraphModel:
        """Return the model of a subgraph, with faulty weights in the place of its own."""
        one = self.entry.subgraphs[number]
        feeds = {name: self._between[name] for name in (*one.inputs, *self.reads[number])}
        lifted = self._home if self._home is not None and self._home.node in one.nodes else None
        return extract_model(self.net, one.nodes, feeds, one.outputs, lifted, faulty)

    def holds(self, number: int, location: TensorLocation) -> bool:
        """Return whether a subgraph reads the tensor at a location."""
        one = self.entry.subgraphs[number]
        return location.node in one.nodes if location.node >= 0 else self._reads(one, location.fed)

    def _reads(self, one: Subgraph, name: str) -> bool:
        if self._home is not None:
            return self._home.node in one.nodes
        return any(name in self.net.reads[k] for k in one.nodes)

    def outputs(
        self, rows: SampleRows, differing: Mapping[str, Array], faults: FaultyEntry | None = None
    ) -> dict[str, Array]:
        """Return the outputs with faults (None: without), where `differing` differs from the golden activations."""
        faults = faults or FaultyEntry(self)
        at = {**differing, **self.stored, **faults.values}
        for name in self.values:
            if name not in at:
                at |= rows.values([name])
            at[name] = faults.changes.get(name, _unchanged)(at[name])
        return self._through(at, faults, rows)

    def _through(self, at: dict[str, Array], faults: FaultyEntry, rows: SampleRows | None = None) -> dict[str, Array]:
        """Run the subgraphs one after the other; other inputs are the golden activations of these rows."""
        few, rebuilt = None if rows is None or rows.some is None else len(rows.some), faults.sessions()
        for number, (one, session) in enumerate(zip(self.entry.subgraphs, self._sessions, strict=True)):
            names = (*one.inputs, *self.reads[number])
            at |= rows.values([name for name in names if name not in at]) if rows is not None else {}
            feeds, run = {name: at[name] for name in names}, rebuilt.get(number, session).run
            found = run(feeds) if few is None else padded(run, feeds, few)
            at |= {n: faults.changes.get(n, _unchanged)(array) for n, array in found.items()}
        return {name: at[name] for name in self.output_names}

    def check_golden(self, rows: SampleRows) -> None:
        """Raise SegmentMismatchError if it gives other bits than the golden ones of these rows, without a fault."""
        if self.whole:
            return
        keys = [(rows.k, -1)] if not rows.alone or rows.some is None else [(k, row) for k, row, _ in rows.some]
        for k, row in keys:
            if (k, row) not in self._exact:
                one = SampleRows(rows.golden, k, None if row < 0 else ((k, row, row),), rows.alone)
                found, known = self.outputs(one, {}), one.values(self.output_names)
                self._exact[k, row] = all(same_bytes(found[name], known[name]) for name in self.output_names)
            if not self._exact[k, row]:
                raise SegmentMismatchError(
                    f"what is executed behind {self.entry.fed} rounds otherwise than the whole model"
                )

    def keeps_bits(self, few: int) -> bool:
        """Return whether it gives so many samples the bits that they have in their batch."""
        if few not in self._keeps_bits:
            taken = dict.fromkeys((*self.entry.inputs, *self.values))
            self._keeps_bits[few] = self.segmented.keeps_apart(self.entry.segment, few) and self.segmented.keeps_bits(
                lambda feeds: self._through({**self.stored, **feeds}, FaultyEntry(self)),
                [*taken],
                self.output_names,
                few,
            )
        return self._keeps_bits[few]
