"""The answers that a trial changed, before and after; the store keeps of which samples, so the model runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.execute.activation_routes import golden_of_trial
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.spec_file import parse_spec
from onnxfi.errors import EngineError, SpecError, StoreError
from onnxfi.faults.faultlist import Header
from onnxfi.tasks.outcomes import answer_text

#: Answers of a trial that are shown.
_MOST_ANSWERS = 8


@dataclass(frozen=True)
class ChangedAnswer:
    """The answer of a sample without faults, and under those of a trial."""

    sample: int
    golden: str
    faulty: str


def changed_answers(store: str | Path, trials: Sequence[int]) -> dict[int, tuple[ChangedAnswer, ...]]:
    """Run trials of a store once more, and return the first answers that each changed silently.

    A trial without an answer has none. Raises StoreError if the model is another one by now, SpecError for a campaign
    that names code, or whose faults meet a memory code or a pipeline, and the errors of opening model and data.

    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> model, data = "models/fashion_cnn.onnx", "models/fashion_test.npz"
    >>> campaign = Campaign(model, data, samples=20, single=True, trials=40, bits="30", include=("conv1",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     worst = max(run(campaign, folder + "/s.db"), key=lambda result: result.metrics["sdc1"])
    ...     found = changed_answers(folder + "/s.db", [worst.trial])[worst.trial]
    >>> found[0].golden.startswith("class "), found[0].golden != found[0].faulty
    (True, True)
    """
    with Store.open(store) as opened:
        header = Header.parse(opened.get("header"), str(store))
        campaign = parse_spec(opened.get("spec") or "", str(store), instead=())
        lines = {trial: opened.lines(trial).splitlines() for trial in trials}
    if campaign.memory.memory_code is not None or campaign.stage is not None:
        raise SpecError("answers before and after are not shown of a campaign with a memory code or on a pipeline")
    executor = TrialExecutor.open(campaign)
    if executor.opened.model.digest != header.model:
        raise StoreError(f"{store} is of the model {header.model}, {campaign.model} is another one now")
    golden, _ = executor.golden_runs.run(again=False)
    found: dict[int, tuple[ChangedAnswer, ...]] = {}
    for trial, rows in lines.items():
        faults = executor.faults(header, rows)
        if not len(faults):
            continue
        prepared = executor.prepare(header, faults)
        try:
            if prepared.activations:
                own, run = executor.longest(prepared)
                pair = golden_of_trial(golden.with_run(own), None).pair(run)
            else:
                pair = golden.pair(executor.opened.run(executor.opened.faulty_session(faults)))
        except (EngineError, MemoryError):  # DUE: there is no answer
            continue
        if not pair.same_shape:
            continue
        wrong = golden.task.wrong
        which = np.flatnonzero(wrong(pair)) if wrong is not None else pair.changed
        if prepared.sample is not None:  # the trial was judged on that sample alone
            which = which[which == prepared.sample]
        found[trial] = tuple(_changed(golden.task, pair, int(k)) for k in which[:_MOST_ANSWERS])
    return found


def _changed(task: Any, pair: Any, k: int) -> ChangedAnswer:
    texts = (answer_text(task, values[k]) for values in (pair.golden.values, pair.values))
    return ChangedAnswer(k, *texts)
