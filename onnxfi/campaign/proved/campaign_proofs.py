"""The proofs of a campaign: for faults in each weight tensor the classes that are certain, held against runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.proved.sample_subset_runs import SampleRuns
from onnxfi.campaign.proved.unproved_runs import BatchOutcome, TensorRuns
from onnxfi.errors import CampaignError, EngineError, UnprovableError
from onnxfi.faults.faultlist import Header
from onnxfi.faults.models import Flip
from onnxfi.faults.sites import Sites
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.partition.subgraph import partition_graph
from onnxfi.runtime.engine.cuda import CPU
from onnxfi.runtime.proofs.golden_values import Golden, golden_activations, needed_activations
from onnxfi.runtime.proofs.integer_faults import IntegerProofs, needed_integers, open_integer_proofs
from onnxfi.runtime.proofs.integer_kernels import adds_exactly
from onnxfi.runtime.proofs.propagation import UNKNOWN, Classes
from onnxfi.runtime.proofs.quantised_layers import QuantisedLayer
from onnxfi.runtime.proofs.weight_faults import WeightProofs, open_proofs
from onnxfi.tasks.outcomes import GoldenRun, Judgement

Proofs = WeightProofs | IntegerProofs
_Rule = tuple[Callable[..., tuple[str, ...]], Callable[..., Proofs]]
#: Faults of each tensor that run on all samples, whatever is proved of them.
_CHECKED = 8
_MOST_CLASSES = np.iinfo(np.int16).max


class CampaignProofs:
    """The proofs of a campaign of a classifier.

    Parameters
    ----------
    executor : TrialExecutor
        Executes its trials.
    golden : GoldenRun
        Its golden run.
    most_bytes : int, optional
        Golden activations that take more are not kept, and then nothing is proved.
    """

    def __init__(self, executor: TrialExecutor, golden: GoldenRun, most_bytes: int | None = None) -> None:
        self.executor, self.golden, self.opened = executor, golden, executor.opened
        self.top = golden.answers.top.astype(np.int16)
        self.net = partition_graph(self.opened.model)
        self.whole = SampleRuns.open(self.opened, golden)
        self._most_bytes = most_bytes
        self._activations: dict[tuple[str, ...], Golden] = {}
        self._exact: dict[tuple[Any, ...], bool] = {}
        self._rules: tuple[_Rule, ...] = (
            (needed_activations, open_proofs),
            (needed_integers, partial(open_integer_proofs, exact=self._adds_exactly)),
        )

    def of(self, target: Target) -> Proofs | None:
        """Return the proofs for a weight; None if there are none."""
        opened = self.opened
        if len(opened.names) != 1 or opened.front is not None or not on_cpu(self.executor):
            return None
        if self.golden.scores.shape[-1] > _MOST_CLASSES:
            return None
        [scored] = opened.names
        top = np.where(self.golden.answers.nonfinite, UNKNOWN, self.top).astype(np.int16)
        for needs, opens in self._rules:
            try:
                needed = needs(self.net, target.id, scored)
                if needed not in self._activations:
                    self._activations = {needed: self._golden(needed)}
                return opens(self.net, target.id, self._activations[needed], scored, top)
            except UnprovableError:
                continue
        return None

    def _adds_exactly(self, layer: QuantisedLayer) -> bool:
        """Return whether the campaign's engine adds up the products of a layer exactly, tried once for each kind.

        Of a layer that it does not run alone that is not known.
        """
        kind = layer.operator, layer.dtype, layer.taken.lowest, layer.product.weights.shape
        if kind not in self._exact:
            try:
                self._exact[kind] = adds_exactly(self.opened.campaign.engine.open(), layer)
            except EngineError:
                self._exact[kind] = False
        return self._exact[kind]

    def _golden(self, needed: tuple[str, ...]) -> Golden:
        opened = self.opened
        batches, engine = opened.data.batches(opened.size), opened.campaign.engine.open()
        return golden_activations(
            engine, self.net, opened.inputs, batches, self.golden.scores, needed, most_bytes=self._most_bytes
        )

    def runs(self, header: Header, target: Target) -> TensorRuns:
        """Return runs of faults in a weight."""
        return TensorRuns(self.executor, header, self.golden, target, self.whole)

    def check(self, target: Target, bits: tuple[int, ...], proofs: Proofs, runs: TensorRuns) -> None:
        """Hold the proofs of some flips, spread over a tensor from its highest bit down, against runs.

        Raises
        ------
        CampaignError
            If a run contradicts a proof.
        """
        elements = np.linspace(0, target.size - 1, min(_CHECKED, target.size)).astype(np.int64)
        bit = np.array([bits[-1 - n % len(bits)] for n in range(len(elements))], np.int64)
        before = self.opened.model.words(target, elements)
        after = before ^ (np.uint64(1) << bit.astype(np.uint64))
        every = [np.arange(len(self.top))] * len(elements)
        flips = [flip(target, *site) for site in zip(elements.tolist(), bit.tolist(), strict=True)]
        for n, found in enumerate(runs.run(flips, every)):
            one = slice(n, n + 1)
            [classes] = proofs.classes(elements[one], *as_numbers(target, before[one], after[one]))
            for outcome in [] if isinstance(found, Judgement) else found:
                agree(outcome, classes, f"{target.id}[{elements[n]}]:{bit[n]}")


def on_cpu(executor: TrialExecutor) -> bool:
    """Return whether a campaign runs on kernels whose rounding the proofs know."""
    return executor.opened.campaign.engine.engine != "onnxruntime" or executor.opened.provider == CPU


def as_numbers(target: Target, *words: NDArray[np.uint64]) -> tuple[NDArray[Any], ...]:
    """Return words as numbers of the type of a target."""
    size = np.dtype(f"u{(target.word.bits + 7) // 8}")
    return tuple(some.astype(size).view(target.dtype) for some in words)


def flip(target: Target, element: int, bit: int) -> Faults:
    """Return the flip of one bit."""
    sites = Sites(np.zeros(1, np.int64), np.array([element]), np.array([bit], np.int16))
    return Faults((target,), sites, (Flip(),))


def agree(one: BatchOutcome, classes: Classes, site: str) -> None:
    """Raise CampaignError if a run contradicts a proved class."""
    mine = classes[one.samples]
    if (((one.top != mine) | one.due) & (mine != UNKNOWN)).any():
        raise CampaignError(
            f"{site}: a run gives another class than was proved; the runtime does not compute as the proofs assume; "
            f"run without --outcomes class"
        )
