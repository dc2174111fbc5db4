"""The answers of trials, which a store does not keep: those that changed, or all outputs; the model runs again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.execute.activation_routes import Run, golden_of_trial
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.results.store import Store
from onnxfi.campaign.spec.spec_file import parse_spec
from onnxfi.errors import EngineError, SpecError, StoreError
from onnxfi.faults.faultlist import Header
from onnxfi.graph.write.output_file import atomic_files, check_folder, make_folder
from onnxfi.runtime.data.labels import Labels
from onnxfi.tasks.outcomes import GoldenRun, answer_text

#: Answers of a trial that are shown.
_MOST_ANSWERS = 8


@dataclass(frozen=True)
class ChangedAnswer:
    """The answer of a sample without faults, and under those of a trial."""

    sample: int
    golden: str
    faulty: str


def changed_answers(
    store: str | Path, trials: Sequence[int], *, allow_code: bool = False
) -> dict[int, tuple[ChangedAnswer, ...]]:
    """Run trials of a store once more, and return the first answers that each changed silently.

    A trial without an answer has none. Raises StoreError if the model is another one by now, InputError for a campaign
    or pipeline that names code without `allow_code`, and the errors of opening model and data.

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
    executor, header, lines = _reopened(store, trials, allow_code)
    golden, _ = executor.golden_runs.run(again=False)
    found: dict[int, tuple[ChangedAnswer, ...]] = {}
    for trial, sample, own, run in _runs_again(executor, header, lines, golden):
        pair = (golden if own is golden.run else golden_of_trial(golden.with_run(own), None)).pair(run)
        if not pair.same_shape or run is golden.run:
            continue
        wrong = golden.task.wrong
        which = np.flatnonzero(wrong(pair)) if wrong is not None else pair.changed
        if sample is not None:  # the trial was judged on that sample alone
            which = which[which == sample]
        found[trial] = tuple(_changed(golden.task, pair, int(k)) for k in which[:_MOST_ANSWERS])
    return found


def write_outputs(store: str | Path, folder: str | Path, trials: Sequence[int] | None = None) -> list[Path]:
    """Run trials of a store once more, and write their outputs on each batch into a file of its own.

    `FOLDER/golden/batch-K.npz` has the outputs without faults and the labels, `FOLDER/trial-N/batch-K.npz` those of
    trial N (None: all that have a result), each with the numbers of its samples. A trial that is judged on one sample
    has the batch of that one; one without an answer has no file. Returns what was written; raises what
    `changed_answers` does, and SpecError for a pipeline.

    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> model, data = "models/fashion_cnn.onnx", "models/fashion_test.npz"
    >>> campaign = Campaign(model, data, samples=20, batch=10, single=True, trials=2, include=("conv1",))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = list(run(campaign, folder + "/s.db"))
    ...     written = write_outputs(folder + "/s.db", folder + "/out")
    ...     names = [str(path.relative_to(folder + "/out")) for path in written]
    ...     with np.load(written[-1]) as file:
    ...         shapes = {name: file[name].shape for name in file.files}
    >>> names[0], names[-1], shapes
    ('golden/batch-1.npz', 'trial-2/batch-2.npz', {'samples': (10,), 'logits': (10, 10)})
    """
    if trials is None:
        with Store.open(store) as opened:
            trials = [trial for trial, _ in opened.done()]
    place = Path(folder)
    check_folder(place)
    executor, header, lines = _reopened(store, trials)
    if executor.opened.front is not None:
        raise SpecError("the outputs of a pipeline are not written, as its answers are made by later stages")
    golden, _ = executor.golden_runs.run(again=False)
    labels, output = golden.labels, executor.opened.output or "output"
    written = _write_batches(place / "golden", golden.run, output, labels)
    for trial, sample, _, run in _runs_again(executor, header, lines, golden):
        some = run if sample is None else tuple(one for one in run if sample in one.samples)
        written += _write_batches(place / f"trial-{trial}", some, output, None, all_batches=run)
    return written


def _reopened(
    store: str | Path, trials: Sequence[int], allow_code: bool = False
) -> tuple[TrialExecutor, Header, dict[int, list[str]]]:
    """Return what executes trials of a store again, the header of its list, and the lines of each trial."""
    with Store.open(store) as opened:
        header = opened.header()
        campaign = parse_spec(opened.get("spec") or "", str(store), instead=None if allow_code else ())
        lines = {trial: opened.lines(trial).splitlines() for trial in trials}
    executor = TrialExecutor.open(campaign.with_fields(allow_code=allow_code))
    if executor.opened.model.digest != header.model:
        raise StoreError(f"{store} is of the model {header.model}, {campaign.model} is another one now")
    return executor, header, lines


def _runs_again(
    executor: TrialExecutor, header: Header, lines: Mapping[int, Sequence[str]], golden: GoldenRun
) -> Iterator[tuple[int, int | None, Run, Run]]:
    """Yield each trial that gives an answer, the one sample that it is judged on, its golden and its faulty outputs."""
    for trial, rows in lines.items():
        faults, counts = executor.read_faults(header, rows)
        if counts is not None and counts["stopped"]:  # DUE by the memory code
            continue
        if not len(faults):
            yield trial, None, golden.run, golden.run
            continue
        prepared = executor.prepare(header, faults)
        try:
            if prepared.activations:
                yield trial, prepared.sample, *executor.longest(prepared)
            else:
                run = executor.opened.run(executor.opened.faulty_session(faults))
                yield trial, None, golden.run, run
        except (EngineError, MemoryError):  # DUE: there is no answer
            continue


def _write_batches(folder: Path, run: Run, output: str, labels: Labels | None, *, all_batches: Run = ()) -> list[Path]:
    """Write the outputs of each batch into a file; batches are numbered from 1 as in `all_batches`."""
    make_folder(folder)
    written = []
    for number, outputs in enumerate(all_batches or run, 1):
        if not any(outputs is one for one in run):
            continue
        arrays: dict[str, Any] = {name or output: array for name, array in outputs.arrays.items()}
        if labels is not None:
            arrays["labels"] = labels[outputs.samples]
        path = folder / f"batch-{number}.npz"
        with atomic_files([path]) as (stream,):
            np.savez(stream, samples=outputs.samples, **arrays)
        written.append(path)
    return written


def _changed(task: Any, pair: Any, k: int) -> ChangedAnswer:
    texts = (answer_text(task, values[k]) for values in (pair.golden.values, pair.values))
    return ChangedAnswer(k, *texts)
