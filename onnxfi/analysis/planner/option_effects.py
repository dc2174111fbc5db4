"""Effects of protections on recorded trials: the rate that each trial would have measured under each option."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxfi.analysis.planner.options import ALARMS, ProtectionOption
from onnxfi.analysis.planner.recorded_trials import RecordedTrial, RecordedTrials
from onnxfi.errors import InputError
from onnxfi.graph.write.faulty_copy import look_up_words
from onnxfi.protection.coded_memory import CodedMemory
from onnxfi.protection.memory_codes import CodeAssignment, parse_memory_code
from onnxfi.protection.protect import protect
from onnxfi.protection.protection_plan import GraphEntry, ProtectionPlan
from onnxfi.runtime.data.open_data import Data

#: Protections that act on the faults of their own layer alone, so that those of all parts are tried at once.
_SEPARATE = (*ALARMS, "clip-weights")
#: The rates of some trials by number.
Values = Mapping[int, float]


def option_effects(
    recorded: RecordedTrials, options: Sequence[ProtectionOption], folder: Path, data: Data | None, *, workers: int = 0
) -> dict[ProtectionOption, Values]:
    """Return what each trial of the choosing half would have measured under each option of its part.

    A trial that did no damage is taken to do none under a protection either. Codes are decoded word by word, and only
    words that they change otherwise are run again; protections of the graph are run.
    """
    damaging: dict[str, list[RecordedTrial]] = defaultdict(list)
    for one in recorded.choosing:
        if one.value > 0:
            damaging[one.part].append(one)
    found: dict[ProtectionOption, Values] = {}
    groups: dict[tuple[str, str], list[ProtectionOption]] = defaultdict(list)
    for option in options:
        separate = option.memory or option.protection.partition(":")[0] in _SEPARATE
        groups[option.protection, "" if separate else option.part].append(option)
    for group in groups.values():
        trials = sorted((one for option in group for one in damaging[option.part]), key=lambda one: one.trial)
        how = _decoded if group[0].memory else _rerun
        values = how(recorded, group, trials, folder, data, workers)
        for option in group:
            found[option] = {one.trial: values[one.trial] for one in damaging[option.part]}
    return found


def _decoded(
    recorded: RecordedTrials, group: Sequence[ProtectionOption], trials: Sequence[RecordedTrial], folder: Path,
    data: Data | None, workers: int,
) -> dict[int, float]:  # fmt: skip
    """Return the rates under a memory code, from what it makes of each faulty word."""
    names = tuple("=" + name for option in group for name in option.names)
    assigned = CodeAssignment(((parse_memory_code(group[0].protection), names),))
    covered = tuple(t for t in recorded.targets.listed(recorded.header).targets if assigned.code_of(t) is not None)
    memory = CodedMemory.over(assigned, covered)
    values: dict[int, float] = {}
    changed: list[RecordedTrial] = []
    for one, (trial, faults) in zip(trials, recorded.faults(trials), strict=True):
        read, counts = memory.read(recorded.model, faults, 0.0, recorded.header.sampler.seed, trial)
        if counts["stopped"]:
            values[trial] = _when_due(recorded)
        elif not len(read):
            values[trial] = 0.0
        elif len(read) == len(faults) and np.array_equal(
            look_up_words(recorded.model, read)[1], look_up_words(recorded.model, faults)[1]
        ):
            values[trial] = one.value
        else:
            changed.append(one)
    return values | recorded.rerun(changed, folder, code=str(assigned), workers=workers)


def _when_due(recorded: RecordedTrials) -> float:
    """Return the rate of a trial that ends as DUE: 0 of one that counts silent damage alone."""
    metric = recorded.metric
    if metric.name in ("masked", "sdc"):
        return 0.0
    return 0.0 if metric.silent else 1.0


def _rerun(
    recorded: RecordedTrials, group: Sequence[ProtectionOption], trials: Sequence[RecordedTrial], folder: Path,
    data: Data | None, workers: int,
) -> dict[int, float]:  # fmt: skip
    """Return the rates on the model with a protection over all parts of the group."""
    if not trials:
        return {}
    names = tuple(dict.fromkeys(name for option in group for name in option.names))
    plan = ProtectionPlan(recorded.model.digest, (GraphEntry(group[0].protection, names),))
    file = folder / f"protected{len(list(folder.iterdir()))}.onnx"
    try:
        protect(recorded.model, (), file, data=data, plan=plan)
        return recorded.rerun(trials, folder, model=file, workers=workers)
    except InputError as error:
        raise InputError(f"{group[0].protection} cannot be tried: {error}; leave it out with --with") from None
