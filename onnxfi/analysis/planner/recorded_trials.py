"""The single faults that a store holds, by part of the network: what each did, and what it does to another version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxfi.analysis.vulnerability import vulnerabilities
from onnxfi.campaign.execute.open_campaign import open_campaign
from onnxfi.campaign.execute.route_cache import KEPT_BYTES
from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.mapped_list import write_trials
from onnxfi.campaign.report.adaptive_estimates import AdaptiveRecord
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.spec_file import load_spec
from onnxfi.errors import InputError, NoCanaryError, StoreError
from onnxfi.faults.faultlist import Header, LineReader
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Faults
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.protection.coded_memory import with_check_bits
from onnxfi.protection.memory_codes import parse_code_assignment
from onnxfi.statistics.intervals import Interval, Stratum, stratified_interval
from onnxfi.tasks.task import Metric

#: Place where a trial was drawn: a stratum of an adaptive campaign, else a layer.
Cell = int | str


@dataclass(frozen=True)
class RecordedTrial:
    """A trial with one fault: its part, the cell that it was drawn from, its faults and the rate that it measured."""

    trial: int
    part: str
    cell: Cell
    lines: str
    value: float


@dataclass(frozen=True)
class RecordedTrials:
    """Trials of a campaign of single faults, in two halves: one to choose by, one to judge the choice.

    `sites` counts the bits of each cell, `parts` says which part each cell is of, and `kind` is weights or activations.
    """

    store: Path
    campaign: Campaign
    model: Model
    header: Header
    metric: Metric
    kind: str
    confidence: float
    trials: tuple[RecordedTrial, ...]
    sites: Mapping[Cell, int]
    parts: Mapping[Cell, str]
    exhaustive: bool

    @classmethod
    def read(cls, store: str | Path, rate: str | None, *, allow_code: bool = False) -> RecordedTrials:
        """Read a store; InputError for trials that are not single faults by layer or tensor, or another model."""
        found = vulnerabilities(store, rate=rate)
        identity = found.golden.campaign
        ranked = identity.get("rank", "none")
        if ranked == "channel":
            raise InputError(f"{str(store)!r} ranks channels; a plan is by layer or tensor: rank those")
        if identity.get("memory_code"):
            raise InputError(f"{str(store)!r} was run with a memory code; plan from a campaign without one")
        with Store.open(store) as opened:
            header = opened.header()
            with scratch_folder() as folder:
                (folder / "spec.yaml").write_text(opened.get("spec"))
                campaign = load_spec(folder / "spec.yaml", allow_code=allow_code)
            strata, rows = opened.strata(), list(opened.planned_rows())
            cells = [tuple(cell) for cell in opened.get("cells")]
        model = load(campaign.model, allow_links=campaign.allow_links)
        if model.digest != header.model:
            raise InputError(f"{campaign.model!r} is another file than the one that {str(store)!r} was run on")
        metric = found.golden.task.metric(found.rate)
        by_stratum = len(strata) > 1 and all(s["layer"] is not None for s in strata)
        trials = []
        for lines, row in rows:
            value = metric.value(row.outcome, row.metrics)
            part = strata[row.stratum]["layer"] if by_stratum else row.layer
            if value is not None and part is not None:
                cell: Cell = row.stratum if by_stratum else part
                trials.append(RecordedTrial(row.trial, part, cell, lines, value))
        sites: dict[Cell, int] = defaultdict(int)
        parts: dict[Cell, str] = {}
        for cell, layer, n in ((k, s["layer"], s["population"]) for k, s in enumerate(strata)) if by_stratum else (
            (layer, layer, n) for layer, _, n in cells
        ):  # fmt: skip
            sites[cell] += n
            parts[cell] = layer
        return cls(
            Path(store), campaign, model, header, metric, found.kind, found.confidence, tuple(trials), dict(sites),
            parts, len(trials) == sum(sites.values()),
        )  # fmt: skip

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parts of the network, in file order."""
        return tuple(dict.fromkeys(self.parts.values()))

    @cached_property
    def targets(self) -> FaultTargets:
        """The targets of the campaign."""
        return FaultTargets.from_header(self.model, self.header)

    def targets_of(self, part: str) -> tuple[Target, ...]:
        """Return the targets of a part that faults were drawn in."""
        drawn = self.targets.listed(self.header).targets
        return tuple(t for t in drawn if part in (t.layer, t.id))

    @cached_property
    def choosing(self) -> tuple[RecordedTrial, ...]:
        """The half that a plan is chosen by; of an exhaustive campaign all."""
        return self.trials if self.exhaustive else self.trials[0::2]

    @cached_property
    def judging(self) -> tuple[RecordedTrial, ...]:
        """The half that forecasts what a plan does; of an exhaustive campaign all."""
        return self.trials if self.exhaustive else self.trials[1::2]

    def faults(self, trials: Iterable[RecordedTrial]) -> list[tuple[int, Faults]]:
        """Return the faults of some trials, by number."""
        reader = LineReader(
            self.header, self.targets.targets, str(self.store), lambda: self.targets.listed(self.header)
        )
        return [
            (number, faults) for one in trials for number, faults in reader.trials(enumerate(one.lines.splitlines(), 1))
        ]

    def rerun(
        self, trials: Iterable[RecordedTrial], folder: Path, *, model: Path | None = None, code: str | None = None,
        workers: int = 0,
    ) -> dict[int, float]:  # fmt: skip
        """Run trials again on a protected version of the model, or under a memory code; return rates by number."""
        rows = self.faults(trials)
        if not rows:
            return {}
        number = len(list(folder.iterdir()))
        listed, store = folder / f"{number}.jsonl", folder / f"{number}.db"
        file = str(model or self.campaign.model)
        other = self.model if model is None else load(file, allow_links=self.campaign.allow_links)
        if code is not None:  # the words as the codes keep them, in which the same bits flip
            other = with_check_bits(other, parse_code_assignment(code))
            rows = [(trial, replace(faults, before=None, after=None)) for trial, faults in rows]
        onto = self._targets_on(file) if self.kind == "activations" else FaultTargets.of(other)
        write_trials(rows, self.header, onto, (self.campaign.model, file), listed)
        with_code = {} if code is None else {"memory_code": code}
        campaign = self.campaign.with_fields(model=file, faults=str(listed), **with_code)
        try:
            for _ in run(campaign, store, workers=workers):
                pass
        except NoCanaryError:  # it was seen without the protection, which now takes care of every fault here
            return dict.fromkeys((trial for trial, _ in rows), 0.0)
        with Store.open(store) as opened:
            found = {row.trial: self.metric.value(row.outcome, row.metrics) for row in opened.rows()}
        if len(found) < len(rows):
            raise StoreError(
                f"{len(rows) - len(found)} trials ended in errors of the harness on the protected version; run "
                f"onnxfi doctor"
            )
        return {trial: value for trial, value in found.items() if value is not None}

    def _targets_on(self, file: str) -> FaultTargets:
        """Return the activations of another version on the data of the campaign."""
        opened, _ = open_campaign(self.campaign.with_fields(model=file), KEPT_BYTES, runs=False)
        return opened.fault_targets

    def interval(self, values: Mapping[int, float], counted: Iterable[RecordedTrial]) -> Interval:
        """Return the rate over all faults where each trial has a value, from the counted ones."""
        counted = tuple(counted)
        with Store.open(self.store) as opened:
            if opened.get("identity")["design"] == "adaptive" and opened.get("identity")["method"] != "simple":
                record = replace(AdaptiveRecord.of(opened), headline=self.metric.name, _rounds={})
                kept = {one.trial for one in counted}
                ordered = np.array([values.get(trial, np.nan) for trial in record.trials])
                mask = np.array([trial in kept for trial in record.trials])
                return record.with_values(np.nan_to_num(ordered)).judged_by(mask, self.confidence)
        by_stratum = all(isinstance(cell, int) for cell in self.sites)
        sizes: dict[Cell, int] = dict(self.sites) if by_stratum else {"all": sum(self.sites.values())}
        found: dict[Cell, list[float]] = {cell: [] for cell in sizes}
        for one in counted:
            found[one.cell if by_stratum else "all"].append(values[one.trial])
        strata = [Stratum(sizes[cell], len(row), sum(row), sum(x * x for x in row)) for cell, row in found.items()]
        return stratified_interval(strata, self.confidence)
