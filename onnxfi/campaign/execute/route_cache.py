"""The open routes of a campaign: sessions and golden activations, within a number of bytes.

The routes of a campaign depend on the model, the data and the possible faults, never on time, memory or workers: a
closed route is opened again, with the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.errors import DataError, EngineError, ModelError, RouteError, SegmentMismatchError
from onnxfi.faults.space import Target
from onnxfi.graph.partition.cut_points import decision_cut, narrow_cut_points, spike_cut_points, whole_subgraph
from onnxfi.graph.partition.segments import Segmentation
from onnxfi.graph.partition.subgraph import PartitionGraph, partition_graph
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.data.sample_outputs import Outputs, same_outputs, stacked
from onnxfi.runtime.engine.cuda import CPU
from onnxfi.runtime.engine.ports import largest_difference, same_bytes
from onnxfi.runtime.engine.worker_thread_lock import claim
from onnxfi.runtime.partial.conv_delta import FirstSegments
from onnxfi.runtime.partial.golden_cache import GoldenCache, SegmentSessions
from onnxfi.runtime.partial.reexecution import SplitAtActivations, golden_outputs
from onnxfi.runtime.partial.segmented_model import SegmentedModel
from onnxfi.tasks.outcomes import GoldenRun

#: Bytes of golden activations and sessions that a process keeps by default.
KEPT_BYTES = 1 << 30
#: The difference of golden runs of one model on the same data is never more than this share of their range.
_MOST_DIFFERENCE = 0.1
#: Errors that a route raises which cannot be opened.
CANNOT_OPEN = (EngineError, DataError, KeyError)


class OpenRoute(Protocol):
    """A route that is open, and about the bytes that it takes."""

    @property
    def cost_bytes(self) -> int:
        """Return about the bytes that it takes."""
        ...


T = TypeVar("T", bound=OpenRoute)


class RouteCache:
    """Open routes by key, within `limit_bytes`; the least recently used are closed first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._open: OrderedDict[Hashable, OpenRoute | None] = OrderedDict()

    def get(self, key: Hashable, opener: Callable[[], T]) -> T | None:
        """Return the route of that key, opened where it is not; None if it cannot be."""
        with claim((id(self), key)):
            if key not in self._open:
                try:
                    self._open[key] = opener()
                except CANNOT_OPEN:
                    self._open[key] = None
                self._close_least_used()
            self._open.move_to_end(key)
            return self._open[key]  # type: ignore[return-value]

    def close(self) -> None:
        """Close all routes."""
        self._open.clear()

    def _close_least_used(self) -> None:
        opened = [(key, route.cost_bytes) for key, route in self._open.items() if route is not None]
        total = sum(size for _, size in opened)
        for key, size in opened[:-1]:
            if total <= self.limit_bytes:
                return
            total -= size
            del self._open[key]


def segment(opened: OpenCampaign) -> Segmentation:
    """Return the segmentation of a campaign's model.

    Raises ModelError if there is none, MemoryError if the model is too large for one message.
    """
    campaign, fault_targets = opened.campaign, opened.fault_targets
    on_cpu = opened.provider == CPU  # computes 16-bit floats in float32, and lays images in blocks of channels
    net = partition_graph(opened.model, halves=not on_cpu, blocks=on_cpu and campaign.engine.optimization == "all")
    outputs = opened.names
    spikes = spike_cut_points(opened.model)
    whole = whole_subgraph(net, outputs)
    decided = () if spikes else decision_cut(net, whole)
    if decided and net.uncut:
        raise ModelError("a model that rounds to 16 bits cannot be cut at the numbers on which it decides")
    # Without early stop there is one segment, but for the operators that decide.
    ends = () if campaign.engine.route == "late-start" else spikes or narrow_cut_points(net, whole)
    ends = (*ends, decided) if decided else ends
    together: set[tuple[str, ...]] = {(a.name,) for a in fault_targets.activations.values() if not a.path}
    together |= {steps[k:] for steps in fault_targets.steps_of.values() for k in range(len(steps))}
    chosen = frozenset(t.id for t in opened.model.targets if any(draw.selector.selects(t) for draw in campaign.draws))
    ready = chosen if campaign.draws else None  # a list may name any
    late = campaign.engine.route != "early-stop"
    # Other providers choose kernels by the number of channels: few of them may be computed differently from all.
    return Segmentation(
        opened.model, net, outputs, ends, bool(spikes), tuple(sorted(together)), late, ready, by_channel=on_cpu
    )


def open_segments(opened: OpenCampaign, segmentation: Segmentation, kept_bytes: int) -> SegmentedModel:
    """Return the segmented model of a campaign; raises EngineError if the runtime does not take the segments."""
    why, net = "", segmentation.net
    decided = () if segmentation.steps else decision_cut(net, whole_subgraph(net, segmentation.outputs))
    fewest = (decided,) if decided else ()
    for cut_points in dict.fromkeys((segmentation.cut_points, fewest)):
        cut = replace(segmentation, cut_points=cut_points)
        try:
            segmented = _open(opened, cut, kept_bytes // 2)
            segmented.first = FirstSegments(segmented) if cut.late else None
            golden_outputs(segmented, 0)
            _check_decided(segmented, decided)
        except CANNOT_OPEN as error:  # what goes on at a cut point is not a tensor, or not of the declared shape
            why = str(error)  # the error itself would hold what was opened before it
        else:
            return segmented
    raise EngineError(f"the model cannot be run in segments: {why}")


def _check_decided(segmented: SegmentedModel, decided: Sequence[str]) -> None:
    """Raise SegmentMismatchError if the numbers on which answers are decided have other bits in the whole model.

    Its outputs, with which the golden run of the segments is compared, would hide that.
    """
    if not decided:
        return
    net, sessions, golden = segmented.segmentation.net, segmented.segment_sessions, segmented.golden
    part = whole_subgraph(net, decided)
    found = sessions.prepare(extract_model(net, part.nodes, sessions.feeds(part.inputs), part.outputs)).run(
        golden.values(0, part.inputs)
    )
    for name, array in golden.values(0, decided).items():
        if not same_bytes(found[name], array):
            raise SegmentMismatchError(f"{name!r} has other bits in segments than in the whole model")


def _open(opened: OpenCampaign, segmentation: Segmentation, kept_bytes: int) -> SegmentedModel:
    sessions = SegmentSessions(opened.campaign.engine.open(), segmentation, opened.inputs, kept_bytes)
    golden = GoldenCache(sessions, opened.data, opened.size, kept_bytes, opened.axes, opened.reduce)
    # Terms of a convolution are summed by numpy, in the order of the CPU's kernels: no other provider has that order.
    exact = opened.campaign.engine.optimization == "off" or opened.provider != CPU
    return SegmentedModel(golden, late=segmentation.late, exact=exact)


class GoldenCheck:
    """A check that a segmented model gives the golden run of the whole model."""

    def __init__(self, segmented: SegmentedModel) -> None:
        self.segmented = segmented
        self._checked: dict[int, tuple[Outputs, Outputs]] = {}

    def check(self, k: int, own: Outputs, golden: GoldenRun) -> None:
        """Compare the golden outputs of batch k, bit for bit.

        Raises
        ------
        SegmentMismatchError
            If the segments round differently from the whole model.
        RouteError
            If they are of another model or other data.
        """
        whole = golden.run[k]
        if k in self._checked and all(map(_same_arrays, self._checked[k], (own, whole))):
            return
        if not same_outputs(own, whole):
            if self._checked and largest_difference(stacked([own]), stacked([whole])) > _MOST_DIFFERENCE:
                raise RouteError(
                    "the segmented model has another golden run than the whole model; run the campaign with "
                    "--route full"
                )
            raise SegmentMismatchError("the segmented model rounds otherwise than the whole model")
        self._checked[k] = own, whole


def _same_arrays(one: Outputs, other: Outputs) -> bool:
    """Return true for outputs that share their arrays."""
    return all(array is other.arrays.get(name) for name, array in one.arrays.items())


class SplitModel:
    """A model whose segments end at some activations, and the golden scores that it gives."""

    def __init__(
        self, opened: OpenCampaign, net: PartitionGraph, names: Sequence[str], kept_bytes: int, *, late: bool
    ) -> None:
        self.names = names
        order = sorted(dict.fromkeys(names), key=lambda name: net.makers.get(name, -1))
        ends = tuple((name,) for name in order if name in net.makers)
        graph = replace(net, split_at=frozenset(names))
        segmentation = Segmentation(opened.model, graph, opened.names, ends, late=late, chosen=frozenset())
        if not net.in_order:
            raise EngineError("the nodes of the model are not in order, so it is not split")
        try:
            self.segmented = _open(opened, segmentation, kept_bytes)
            self.reexecution = SplitAtActivations(self.segmented, names)
        except ModelError as error:
            raise EngineError(str(error)) from error
        every = self.segmented.golden.batches()
        self.golden = tuple(golden_outputs(self.segmented, k) for k, _ in every)
        self._model_bytes = sum(source.size for source in opened.model.sources)

    @property
    def cost_bytes(self) -> int:
        """Return about the bytes that its sessions and golden activations take."""
        return self._model_bytes + self.segmented.golden.kept_bytes

    def with_weights(self, weights: Sequence[Target]) -> SplitAtActivations:
        """Return the route of trials that have faults in these weights as well."""
        path = self.segmented.segmentation.rebuilt(weights)
        if path is None:
            raise SegmentMismatchError("a faulty weight is in no segment")
        return SplitAtActivations(self.segmented, self.names, path)
