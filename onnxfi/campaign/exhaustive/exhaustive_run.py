"""Every single-bit fault of a campaign on every sample: the class outcomes, proved or run."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.campaign.execute import canary
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.exhaustive.outcome_table import (
    VERSION,
    OutcomeTable,
    TensorTable,
    load_part,
    read_outcome_table,
    save_part,
    write_outcome_table,
)  # fmt: skip
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.proved.campaign_proofs import CampaignProofs, Proofs, agree, as_numbers, flip, on_cpu
from onnxfi.campaign.proved.unproved_runs import BatchOutcome, TensorRuns
from onnxfi.campaign.run.campaign_record import identity
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.workers.scheduling import versions
from onnxfi.errors import SpecError, StoreError
from onnxfi.faults.space import Target
from onnxfi.graph.write.output_file import check_output_files
from onnxfi.runtime.proofs.propagation import UNKNOWN
from onnxfi.tasks.outcomes import Judgement, judge

#: Faults of a block are no more than this, where each has a number for each sample.
_FAULTS = 2048
_KEEP_S = 30.0
OnTensor = Callable[[str, int, int], None]
#: Element and bit of each fault.
_Sites = tuple[NDArray[np.int64], NDArray[np.int64]]


def default_table(campaign: Campaign) -> Path:
    """Return the default path of the outcome table of a campaign."""
    return Path(f"{Path(campaign.model).stem}.classes.npz")


def exhaustive_outcomes(
    campaign: Campaign, out: str | Path | None = None, *, fresh: bool = False, progress: OnTensor | None = None
) -> OutcomeTable:
    """Judge every single-bit fault of an exhaustive campaign by the class of each answer, and write the table of it.

    Classes are proved where a bound on the faulty scores decides them, and run otherwise, by the routes of any
    campaign. What is done is kept beside the file in a folder OUT.parts, from which the same call goes on.

    Parameters
    ----------
    campaign : Campaign
        An exhaustive campaign of flips in the weights of a classifier, with `outcomes="class"`.
    out : str or Path, optional
        The file of the table; by default MODEL.classes.npz in the current folder.
    fresh : bool
        Start again, whatever is there.
    progress : callable, optional
        Called with the name of a tensor, and its faults that are done, of all.

    Returns
    -------
    OutcomeTable
        The table, with the processor seconds and the wall time that it took.

    Raises
    ------
    SpecError
        If the campaign is another one, or its model is no classifier.
    StoreError
        If the file, or the folder of its parts, is of another campaign.
    CampaignError
        If the golden run is not deterministic, a canary stays masked, or a run contradicts a proof.

    Examples
    --------
    >>> import tempfile
    >>> campaign = Campaign(
    ...     "models/fashion_cnn.onnx", "models/fashion_test.npz", samples=20, exhaustive=True, outcomes="class",
    ...     include="fc2.bias",
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = exhaustive_outcomes(campaign, folder + "/table.npz")
    >>> table.faults, table.ran
    (320, 0)
    """
    if not campaign.tabled:
        raise SpecError("outcome tables are of exhaustive campaigns; give exhaustive and outcomes class", "outcomes")
    file = default_table(campaign) if out is None else Path(out)
    parts = file.with_name(file.name + ".parts")
    check_output_files(None, [file], copy=False)
    begun, used = time.monotonic(), time.process_time()
    run = ExhaustiveRun(campaign)
    if fresh:
        shutil.rmtree(parts, ignore_errors=True)
    elif file.exists():
        held = read_outcome_table(file)
        if held.header["identity"] != run.identity:
            raise StoreError(f"{str(file)!r} holds another campaign; name another file with -o, or use --fresh")
        return held
    cost = _begin(parts, run.identity)
    tables = []
    for table in run.tables(parts, progress or (lambda *_: None)):
        tables.append(table)
        spent = {"cpu_s": time.process_time() - used, "wall_s": time.monotonic() - begun}
        total = {name: round(cost[name] + spent[name], 1) for name in cost}
        (parts / "cost.json").write_text(json.dumps(total))
    found = OutcomeTable({**run.header_row(), "cost": total}, tuple(reversed(tables)))
    write_outcome_table(file, found)
    shutil.rmtree(parts)
    return found


def _begin(parts: Path, identity: dict[str, Any]) -> dict[str, float]:
    """Make the folder of the parts, or go on in it; return what was spent so far."""
    parts.mkdir(exist_ok=True)
    known = parts / "identity.json"
    if known.exists() and json.loads(known.read_text()) != identity:
        raise StoreError(f"{str(parts)!r} holds parts of another campaign; delete it, or use --fresh")
    known.write_text(json.dumps(identity))
    cost = parts / "cost.json"
    return json.loads(cost.read_text()) if cost.exists() else {"cpu_s": 0.0, "wall_s": 0.0}


class ExhaustiveRun:
    """The class outcomes of every single-bit fault of a campaign."""

    def __init__(self, campaign: Campaign) -> None:
        self.executor = TrialExecutor.open(campaign)
        self.opened = self.executor.opened
        if not on_cpu(self.executor):
            raise SpecError(
                f"outcomes class rests on the rounding of the CPU's kernels, and {self.opened.provider} has others; "
                f"add provider cpu, or leave outcomes class out", "outcomes",
            )  # fmt: skip
        self.golden, self.golden_s = self.executor.golden_runs.run()
        made = make_plan(campaign, self.opened.fault_targets)
        self.header = made.header
        self.identity: dict[str, Any] = json.loads(json.dumps(identity(self.opened, made), default=list))
        self.space = self.opened.fault_targets.listed(self.header)
        self.proofs = CampaignProofs(self.executor, self.golden)
        self.labels, self.top = self.golden.labels, self.proofs.top
        self.canary = canary.prove(self.executor, [t for t in made.targets if t.size])

    def header_row(self) -> dict[str, Any]:
        """Return the header of the table, but for its cost."""
        metrics = judge(self.golden, self.golden.run).metrics
        return {
            "version": VERSION, "identity": self.identity, "samples": len(self.top), "canary": self.canary,
            "golden": {name: metrics[name] for name in ("top1",) if name in metrics},
            "environment": {**versions(self.opened.campaign.engine.open()), "machine": platform.machine()},
        }  # fmt: skip

    def tables(self, kept: Path, progress: OnTensor) -> Iterator[TensorTable]:
        """Yield the table of each tensor, the last first; those that are kept in a folder are not made again."""
        for target, bits in reversed([*zip(self.space.targets, self.space.bit_positions, strict=True)]):
            file = kept / f"{self.opened.fault_targets.by_id[target.id]}.npz"
            if not file.exists():
                save_part(file, self.table(target, bits, progress, file.with_suffix(".part")))
            yield load_part(file)[0]

    def table(self, target: Target, bits: tuple[int, ...], progress: OnTensor, part: Path) -> TensorTable:
        """Return the table of one tensor; what is done of it is kept in a file from time to time."""
        table, kept = load_part(part) if part.exists() else (None, 0)
        table = table or TensorTable.empty(target.id, target.layer, target.dtype, target.size, bits)
        written = time.monotonic()
        proofs, runs = self.proofs.of(target), self.proofs.runs(self.header, target)
        elements = np.arange(target.size, dtype=np.int64)
        channels = elements * 0 if proofs is None else proofs.channel_of(elements)
        stored = self.opened.model.words(target, elements)
        if proofs is not None and not kept:
            self.proofs.check(target, bits, proofs, runs)
        done = 0
        for channel in np.unique(channels).tolist():
            mine = elements[channels == channel]
            for first in range(0, len(mine), step := max(1, _FAULTS // len(bits))):
                some = mine[first : first + step]
                done += len(some) * len(bits)
                if done <= kept:
                    continue
                at = np.repeat(some, len(bits))
                bit = np.tile(np.array(bits, np.int64), len(some))
                after = stored[at] ^ (np.uint64(1) << bit.astype(np.uint64))
                classes = self._classes(target, proofs, at, stored[at], after)
                self._tally(table, runs, (at, bit), classes)
                if time.monotonic() - written > _KEEP_S:
                    save_part(part, table, done)
                    written = time.monotonic()
                progress(target.id, done, table.faults)
        return table

    def _classes(
        self, target: Target, proofs: Proofs | None, elements: NDArray[np.int64], before: NDArray[np.uint64],
        after: NDArray[np.uint64],
    ) -> NDArray[np.int16]:  # fmt: skip
        """Return the class of each fault and sample, from the stored and the faulty words; UNKNOWN without a proof."""
        if proofs is None:
            return np.full((len(elements), len(self.top)), UNKNOWN, np.int16)
        return proofs.classes(elements, *as_numbers(target, before, after))

    def _tally(
        self, table: TensorTable, runs: TensorRuns, faults: _Sites,
        classes: NDArray[np.int16],
    ) -> None:  # fmt: skip
        """Count the outcomes of some faults; those without a proof run."""
        elements, bits = faults
        column = np.searchsorted(table.bits, bits)
        right = np.zeros(len(self.top), np.bool_) if self.labels is None else self.top == self.labels
        changed = (classes != self.top) & (classes >= 0)
        table.changed[elements, column] = np.count_nonzero(changed, axis=1)
        table.critical[elements, column] = np.count_nonzero(changed & right, axis=1)
        if self.labels is not None:
            table.right[elements, column] = np.count_nonzero(classes == self.labels, axis=1)
        unknown = classes == UNKNOWN
        rows = np.flatnonzero(unknown.any(1))
        needed = [np.flatnonzero(unknown[row]) for row in rows]
        flips = [flip(runs.target, *site) for site in zip(elements[rows].tolist(), bits[rows].tolist(), strict=True)]
        for row, found in zip(rows, runs.run(flips, needed), strict=True):
            where = elements[row], column[row]
            if isinstance(found, Judgement):
                self._judged(table, where, found)
            else:
                self._ran(table, where, found, classes[row], right)

    def _judged(self, table: TensorTable, where: tuple[int, int], found: Judgement) -> None:
        def count(name: str) -> int:
            return round(float(found.metrics[name]) * len(self.top))

        table.changed[where], table.due[where] = count("sdc1"), count("due_samples")
        if self.labels is not None:
            table.right[where], table.critical[where] = count("top1"), count("critical")
        table.ran[where] = len(self.top)

    def _ran(
        self, table: TensorTable, where: tuple[int, int], found: list[BatchOutcome], classes: NDArray[np.int16],
        right: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Add what ran to what was proved, and hold the proofs of the same batches against it."""
        for one in found:
            proved = classes[one.samples] != UNKNOWN
            agree(one, classes, f"{table.id}[{where[0]}]:{table.bits[where[1]]}")
            rest = one.samples[~proved]
            table.changed[where] += np.count_nonzero(one.changed[~proved])
            table.critical[where] += np.count_nonzero(one.changed[~proved] & right[rest])
            table.due[where] += np.count_nonzero(one.due[~proved])
            if self.labels is not None:
                table.right[where] += np.count_nonzero(one.top[~proved] == self.labels[rest])
            table.ran[where] += len(rest)
