"""Trials whose outcomes are classes: proved where they can be, so that no more runs than the samples that are left.

Faults in one weight tensor are proved, one fault or several; trials with faults in activations or in several tensors
run by the routes of every campaign, and so does what has no proof. Either way a trial has the classes of a full run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute.route_cache import KEPT_BYTES
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.proved.campaign_proofs import CampaignProofs, Proofs, agree, as_numbers
from onnxfi.campaign.proved.unproved_runs import BatchOutcome, TensorRuns
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.faultlist import Header
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import Model
from onnxfi.graph.partition.route import Route
from onnxfi.graph.write.faulty_copy import look_up_words
from onnxfi.runtime.proofs.propagation import UNKNOWN, Classes
from onnxfi.tasks.answers import ClassPair
from onnxfi.tasks.outcomes import GoldenRun, Judgement, judge_pair

#: Golden activations of proofs may take this part of the kept bytes; what is made of them is some six times so large.
_KEPT_SHARE = 16
#: Faults of a trial that are proved together at most: with more of them a run takes less.
_MOST_FAULTS = 64
#: Class indices, a row for each trial, that are held at once.
_MOST_NUMBERS = 1 << 23


def open_executor(
    campaign: Campaign, kept_bytes: int = KEPT_BYTES, *, model: Model | None = None, runs: bool = True
) -> TrialExecutor:
    """Open a campaign with what executes its trials, by the kind of their outcomes; see `open_campaign`."""
    kind = ProofExecutor if campaign.scoring.outcomes == "class" else TrialExecutor
    return kind.open(campaign, kept_bytes, model=model, runs=runs)


@dataclass(frozen=True)
class _TensorProofs:
    """Proofs and runs that are open for the faults of one tensor."""

    golden: GoldenRun
    target: Target
    proofs: Proofs | None
    runs: TensorRuns

    @property
    def cost_bytes(self) -> int:
        """Return about the bytes that it takes."""
        return 0 if self.proofs is None else self.proofs.cost_bytes


class ProofExecutor(TrialExecutor):
    """Executes the trials of a campaign whose outcomes are classes; see `TrialExecutor`."""

    most_at_once: ClassVar[int] = 2048
    _proofs: CampaignProofs | None = None

    def shares(self, header: Header) -> bool:
        """Return whether trials of a plan may be proved together."""
        return self.opened.campaign.memory.memory_code is None

    def together(self, header: Header, golden: GoldenRun, trials: Sequence[Sequence[str]]) -> dict[int, Judgement]:
        """Prove trials together, then run those that share runs; return their judgements by their place."""
        if not self.shares(header):
            return {}
        faults = dict(enumerate(self.faults_of_all(header, trials)))
        found = self._judgements(header, golden, faults)
        left = [number for number in faults if number not in found]
        if len(left) > 1 and TrialExecutor.shares(self, header):
            rest = super().together(header, golden, [trials[number] for number in left])
            found |= {left[place]: judgement for place, judgement in rest.items()}
        return found

    def judged(self, header: Header, golden: GoldenRun, faults: Faults) -> Judgement:
        """Prove a trial, or run it by the shortest route that is exact."""
        found = self._judgements(header, golden, {0: faults})
        return found[0] if found else super().judged(header, golden, faults)

    def _judgements(self, header: Header, golden: GoldenRun, trials: Mapping[int, Faults]) -> dict[int, Judgement]:
        """Return the judgements of those trials of which something is proved."""
        found: dict[int, Judgement] = {}
        groups: dict[int, list[int]] = {}
        for number, faults in trials.items():
            ordinals = set(faults.sites.target.tolist())
            if len(ordinals) == 1 and not faults.targets[ordinal := ordinals.pop()].is_activation:
                groups.setdefault(ordinal, []).append(number)
        for ordinal, group in groups.items():
            tensor = self._open(header, golden, trials[group[0]].targets[ordinal])
            if tensor.proofs is None:
                continue
            step = max(1, _MOST_NUMBERS // golden.size)
            for first in range(0, len(group), step):
                mine = group[first : first + step]
                judged = self._judge(tensor, tensor.proofs, [trials[number] for number in mine])
                found |= {number: one for number, one in zip(mine, judged, strict=True) if one is not None}
        return found

    def _open(self, header: Header, golden: GoldenRun, target: Target) -> _TensorProofs:
        """Return what is open for the faults of a tensor."""

        def opener() -> _TensorProofs:
            if self._proofs is None or self._proofs.golden is not golden:
                self._proofs = CampaignProofs(self, golden, self.kept_bytes // _KEPT_SHARE)
            proofs, runs = self._proofs.of(target), self._proofs.runs(header, target)
            if proofs is not None and not proofs.cheap:  # its bounds cost more than a run
                proofs = None
            if proofs is not None:
                self._proofs.check(target, tuple(range(target.word.bits)), proofs, runs)
            return _TensorProofs(golden, target, proofs, runs)

        return self.cache.get((Route.PROVED, target.id, id(golden)), opener) or opener()

    def _judge(self, tensor: _TensorProofs, proofs: Proofs, trials: list[Faults]) -> Iterator[Judgement | None]:
        """Yield the judgement of each trial with faults in one tensor; None where nothing is proved."""
        classes = self._classes(tensor.target, proofs, trials)
        golden, top = tensor.golden, tensor.golden.answers.top
        unknown = classes == UNKNOWN
        some = unknown.any(axis=1)
        none = unknown.all(axis=1) & (tensor.runs.whole is None)  # left to routes that trials share
        unchanged = ~some & (classes == top).all(axis=1)
        run = np.flatnonzero(some & ~none)
        outcomes = tensor.runs.run([trials[row] for row in run], [np.flatnonzero(unknown[row]) for row in run])
        masked: Judgement | None = None
        for row in range(len(trials)):
            if unchanged[row]:
                masked = masked or _judged(golden, classes[row], [])
                yield masked
            elif none[row]:
                yield None
            else:
                found = next(outcomes) if some[row] else []
                if isinstance(found, Judgement):
                    yield found
                    continue
                for one in found:
                    agree(one, classes[row], f"a trial in {tensor.target.id}")
                yield replace(_judged(golden, classes[row], found), route=tensor.runs.kind if found else Route.PROVED)

    def _classes(self, target: Target, proofs: Proofs, trials: list[Faults]) -> Classes:
        """Return the proved class of each trial and sample ([trials, samples]), UNKNOWN where there is none."""
        assert self._proofs is not None
        found = np.full((len(trials), len(self._proofs.top)), UNKNOWN, np.int16)
        words = [self._words(faults) for faults in trials]
        alone = np.array([len(elements) == 1 for elements, _, _ in words], np.bool_)
        for row in np.flatnonzero(~alone).tolist():
            elements, before, after = words[row]
            if len(elements) <= _MOST_FAULTS:
                found[row] = proofs.several(elements, *as_numbers(target, before, after))
        rows = np.flatnonzero(alone)
        if not len(rows):
            return found
        elements, before, after = (np.concatenate(column) for column in zip(*[words[row] for row in rows], strict=True))
        for mine in rows_apart(proofs.channel_of(elements), elements):
            found[rows[mine]] = proofs.classes(elements[mine], *as_numbers(target, before[mine], after[mine]))
        return found

    def _words(self, faults: Faults) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the faulty elements of one tensor, with their stored and their faulty words."""
        if len(faults) == 1 and faults.before is not None and faults.after is not None:
            return faults.sites.index, faults.before, faults.after
        placed, final = look_up_words(self.opened.model, faults)
        index, first = np.unique(faults.sites.index, return_index=True)
        assert placed.before is not None
        return index, placed.before[first], final[first]


def rows_apart(channels: NDArray[np.int64], elements: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield rows of one channel each, in which every element comes once: no proof depends on what is beside it."""
    order = np.lexsort((elements, channels))
    begins = np.flatnonzero(np.diff(elements[order], prepend=-1))
    turn = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    for number in range(int(turn.max(initial=0)) + 1):
        mine = order[turn == number]
        yield from np.split(mine, np.flatnonzero(np.diff(channels[mine])) + 1)


def _judged(golden: GoldenRun, classes: Classes, ran: list[BatchOutcome]) -> Judgement:
    """Return the judgement of a trial from its proved classes, and from what ran."""
    answers, proved = golden.answers, classes != UNKNOWN
    top = classes.astype(np.int64)
    other, due, nonfinite = proved & (top != answers.top), np.zeros(len(top), np.bool_), answers.nonfinite.copy()
    for one in ran:
        mine = ~proved[one.samples]
        at = one.samples[mine]
        top[at], other[at], due[at], nonfinite[at] = (
            column[mine] for column in (one.top, one.other, one.due, one.nonfinite)
        )
    pair = ClassPair(
        answers, answers, golden.detects, top=top, other_top=other, detected=due, nonfinite=nonfinite, proved=proved
    )
    return replace(judge_pair(golden, pair), route=Route.PROVED)
