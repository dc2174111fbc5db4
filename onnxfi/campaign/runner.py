"""Running a campaign: golden twice, the canary, then every trial that has no result yet.

Trials are pure functions of the campaign and their lines, so the number and order of workers change nothing.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from onnxfi.campaign.outcomes import Golden, Judgement, failed, judge
from onnxfi.campaign.plan import Plan, make_plan
from onnxfi.campaign.spec import Campaign, print_spec
from onnxfi.campaign.store import Result, Store, StoreError
from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.faults.faultlist import Header, Lines
from onnxfi.faults.models import FaultModel
from onnxfi.faults.space import Sites, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Mask, Word
from onnxfi.graph.model import Model, load
from onnxfi.graph.mutate import Edits, edits, faulty_bytes, place, write
from onnxfi.runtime.data import Data, open_data
from onnxfi.runtime.engines import Session
from onnxfi.runtime.evaluation import run_scores
from onnxfi.runtime.metrics import scored_output

#: Elements of a tensor that the canary sets.
_CANARY_ELEMENTS = 1 << 22
#: Seconds between two writes of results.
_WRITE_EVERY_S = 1.0
_MOST_TRIALS_A_TASK = 16


class CampaignError(OnnxfiError):
    """The campaign cannot be trusted: golden is not deterministic, or no fault reaches the runtime's weights."""


@dataclass
class Bench:
    """A campaign ready to run: model, data, engine, golden. One in each worker."""

    campaign: Campaign
    model: Model
    data: Data
    output: str | None
    provider: str
    note: str
    header: Header | None = None
    golden: Golden | None = None

    @classmethod
    def open(cls, campaign: Campaign) -> Bench:
        """Open everything that the campaign names; raises what is wrong with it."""
        model = load(campaign.model, allow_links=campaign.allow_links)
        session = campaign.engine().prepare(campaign.model)
        data = open_data(
            campaign.data, session.inputs, preprocess=campaign.preprocess, limit=campaign.samples,
            batch_axis=campaign.batch_axis,
        )  # fmt: skip
        output = scored_output(session.outputs, campaign.output, labelled=data.labels is not None)
        return cls(campaign, model, data, output, session.provider, session.note)

    def scores(self, session: Session, *, batches: int | None = None) -> np.ndarray[Any, Any]:
        """The scored output over all samples, or over the first batches."""
        size = self.data.layout.fixed or self.campaign.batch
        return run_scores(session, self.data, size, self.output, batches=batches)

    def run_golden(self) -> Golden:
        """Run golden twice; CampaignError where the two differ."""
        c, session = self.campaign, self.campaign.engine().prepare(self.campaign.model)
        first, second = self.scores(session), self.scores(session)
        if first.tobytes() != second.tobytes():
            raise CampaignError(
                "two golden runs differ, so no trial could be told from chance; use --threads 1, or another --provider"
            )
        due = tuple(c.due)
        self.golden = Golden.of(first, self.data.labels, self.output, c.scores, c.tolerance, due)
        return self.golden

    def faulty_session(self, faults: Faults) -> Session:
        """A session of the model with these faults; the files stay as they are."""
        engine = self.campaign.engine()
        _, final = place(self.model, faults)
        change = edits(self.model, faults, final)
        if not self.model.external:
            return engine.prepare(faulty_bytes(self.model, change))
        with tempfile.TemporaryDirectory(prefix="onnxfi-") as folder:
            copy = Path(folder) / "faulty.onnx"
            write(self.model, change, copy)
            return engine.prepare(copy)

    def trial(self, lines: Sequence[str]) -> Judgement:
        """Run one trial from its lines."""
        assert self.golden is not None and self.header is not None
        reader = Lines(self.header, self.model.targets, "the store")
        struck = [faults for _, faults in reader.trials(enumerate(lines, 1))]
        if not struck:
            return judge(self.golden, self.golden.scores)
        try:
            return judge(self.golden, self.scores(self.faulty_session(struck[0])))
        except EngineError as error:
            cause = "memory" if "alloc" in str(error).lower() else "error"
            if cause not in self.golden.due:
                raise
            return failed(self.golden, cause)

    def canary(self, targets: Sequence[Target]) -> dict[str, Any]:
        """Set a whole tensor, one after the other, until a change is seen; CampaignError where none is."""
        assert self.golden is not None
        unseen: list[str] = []
        for target in targets:
            model = _Canary()
            n = min(target.size, _CANARY_ELEMENTS)
            sites = Sites(np.zeros(n, np.int64), np.arange(n, dtype=np.int64), np.full(n, -1, np.int16))
            try:
                scores = self.scores(self.faulty_session(Faults((target,), sites, (model,))), batches=1)
            except EngineError:
                return {"seen": target.id, "unseen": unseen}
            if scores.tobytes() != self.golden.scores[: len(scores)].tobytes():
                return {"seen": target.id, "unseen": unseen}
            unseen.append(target.id)
        raise CampaignError(
            f"no canary was seen: all exponent bits set in {', '.join(unseen[:5])} changed nothing in output "
            f"{self.output!r}, so faults there cannot either; select other targets, or score another --output"
        )


@dataclass(frozen=True)
class _Canary(FaultModel):
    """All exponent bits set (integers: all bits)."""

    name = "canary"

    def mask(self, word: Word, bit: int) -> Mask:
        bits = sum(1 << b for b in word.field("exponent")) or word.full
        return Mask(word.full & ~bits, bits)


def identity(bench: Bench, plan: Plan) -> dict[str, Any]:
    """All that fixes the campaign's answers: the spec, and the digests of model, data and list."""
    kept = bench.campaign.identity() | {
        "model": bench.model.digest, "data": bench.data.digest, "provider": bench.provider, "output": bench.output,
    }  # fmt: skip
    if bench.campaign.faults is not None:
        kept["faults"] = hashlib.sha256(Path(bench.campaign.faults).read_bytes()).hexdigest()
    return kept | {"strata": [group.label for group in plan.groups]}


@dataclass
class Running:
    """A campaign under way: what was planned and found before the trials, and the stream of results."""

    plan: Plan
    bench: Bench
    store: Path
    total: int
    done: int
    golden_s: float
    results: Iterator[Result] = field(repr=False)

    def __iter__(self) -> Iterator[Result]:
        return self.results


def default_store(model: str) -> Path:
    """Where the results of a model's campaign go unless said otherwise."""
    return Path(f"{Path(model).stem}.onnxfi.db")


def run(
    campaign: Campaign,
    store: str | Path | None = None,
    *,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    executor: Callable[[], Executor] | None = None,
) -> Running:
    """Run a campaign into a store; iterate over what comes back for the results, as they come.

    An existing store of the same campaign is resumed, or extended where more trials are asked for; of another one it is
    refused. `workers` above 1 are processes of one session each; `shard` (i, n) runs every n-th trial from the i-th on.

    >>> import tempfile
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, ber=(1e-4,), repeat=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [result.outcome for result in run(campaign, folder + "/store.db")]
    ['sdc', 'sdc']
    """
    place_ = Path(store) if store is not None else default_store(campaign.model)
    bench = Bench.open(campaign)
    plan = make_plan(campaign, bench.model)
    bench.header = plan.header
    with Store.open(place_, create=True) as opened:
        opened.bind(identity(bench, plan))
        begun = time.perf_counter()
        golden = bench.run_golden()
        golden_s = (time.perf_counter() - begun) / 2
        _record(opened, bench, plan, golden)
        if opened.get("canary") is None:
            opened.put(canary=bench.canary([t for t in _targets(plan) if t.size]))
        if opened.count("plan") < len(plan):
            opened.plan(plan.groups, plan.trials())
        total, done = opened.count("plan"), opened.count("results")
    return Running(plan, bench, place_, total, done, golden_s, _results(bench, place_, workers, shard, executor))


def plan(campaign: Campaign) -> tuple[Plan, float | None]:
    """A campaign's plan, and the seconds that one golden run takes where data is named."""
    if campaign.data is None:
        return make_plan(campaign, load(campaign.model, allow_links=campaign.allow_links)), None
    bench = Bench.open(campaign)
    made = make_plan(campaign, bench.model)
    session = campaign.engine().prepare(campaign.model)
    begun = time.perf_counter()
    bench.scores(session)
    return made, time.perf_counter() - begun


def export_trial(store: str | Path, trial: int, out: str | Path) -> None:
    """Write the faulty model of one trial; StoreError where the model is another one by now."""
    with Store.open(store) as opened:
        header = Header.parse(opened.get("header"), str(store))
        lines = opened.trial(trial)["lines"].splitlines()
        links = "allow_links: true" in opened.get("spec")
    model = load(header.file, allow_links=links)
    if model.digest != header.model:
        raise StoreError(f"{store} is of the model {header.model}, {header.file} is {model.digest} now")
    struck = [faults for _, faults in Lines(header, model.targets, str(store)).trials(enumerate(lines, 1))]
    change = Edits()
    if struck:
        _, final = place(model, struck[0])
        change = edits(model, struck[0], final)
    write(model, change, Path(out))


def _targets(plan: Plan) -> list[Target]:
    return list({t.id: t for group in plan.groups for t in group.space.targets}.values())


def _record(store: Store, bench: Bench, plan: Plan, golden: Golden) -> None:
    scores = hashlib.sha256(golden.scores.tobytes()).hexdigest()
    kept = store.get("golden")
    metrics = judge(golden, golden.scores).metrics
    found = {"scores": scores, "metrics": metrics, "samples": bench.data.samples, "data": bench.data.description}
    if kept is not None and kept["scores"] != scores:
        raise CampaignError(
            f"golden is another one than in {store.path}: the runtime or the machine changed; start anew with --fresh"
        )
    store.put(
        golden=found,
        header=plan.header.line(),
        spec=print_spec(bench.campaign),
        cells=plan.cells(),
        length={k: asdict(bench.campaign)[k] for k in ("repeat", "trials", "margin", "confidence")},
        environment={
            "onnxfi": version("onnxfi"),
            "onnxruntime": _runtime_version(),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "provider": bench.provider,
        },
    )


def _runtime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _results(
    bench: Bench,
    place_: Path,
    workers: int,
    shard: tuple[int, int] | None,
    executor: Callable[[], Executor] | None,
) -> Iterator[Result]:
    """Run what is pending, write it in batches, and hand it on."""
    with Store.open(place_, create=True) as store:
        pending = store.pending(shard)
        waiting: list[Result] = []
        written = time.monotonic()
        stream = (
            _here(bench, pending) if workers == 1 and executor is None else _pooled(bench, pending, workers, executor)
        )
        try:
            for result in stream:
                waiting.append(result)
                if time.monotonic() - written > _WRITE_EVERY_S or len(waiting) >= 500:
                    store.add(waiting)
                    waiting, written = [], time.monotonic()
                yield result
        finally:
            store.add(waiting)


def _here(bench: Bench, pending: Iterator[tuple[int, str]]) -> Iterator[Result]:
    for trial, lines in pending:
        yield _one(bench, trial, lines)


def _one(bench: Bench, trial: int, lines: str) -> Result:
    begun = time.perf_counter()
    try:
        found = bench.trial(lines.splitlines())
    except Exception:  # a harness error is no outcome: it is kept with its traceback, and run again next time
        return Result(trial, "", None, {}, time.perf_counter() - begun, error=traceback.format_exc(limit=20))
    return Result(trial, found.outcome, found.cause, found.metrics, time.perf_counter() - begun, found.changed)


_bench: Bench | None = None  # of a worker process, set once by its initialiser


def _open_worker(campaign: Campaign, header: Header, golden: Golden) -> None:
    global _bench  # noqa: PLW0603
    _bench = Bench.open(campaign)
    _bench.header, _bench.golden = header, golden


def _work(chunk: list[tuple[int, str]]) -> list[Result]:
    assert _bench is not None
    return [_one(_bench, trial, lines) for trial, lines in chunk]


Task = list[tuple[int, str]]


def _pooled(
    bench: Bench, pending: Iterator[tuple[int, str]], workers: int, executor: Callable[[], Executor] | None
) -> Iterator[Result]:
    """Trials in worker processes. A trial whose worker dies is run once more, alone; then that is its outcome."""

    def pool(size: int) -> Executor:
        if executor is not None:
            return executor()
        import multiprocessing

        given: Any = {"initializer": _open_worker, "initargs": (bench.campaign, bench.header, bench.golden)}
        return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"), **given)

    suspects: Task = []
    with ExitStack() as stack:
        crew = stack.enter_context(pool(workers))
        running: dict[Future[list[Result]], Task] = {}
        size = _MOST_TRIALS_A_TASK
        while True:
            while len(running) < 2 * workers and (chunk := list(islice(pending, size))):
                running[crew.submit(_work, chunk)] = chunk
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            try:
                for future in done:
                    results = future.result()
                    del running[future]
                    yield from results
            except BrokenProcessPool:
                suspects += [row for chunk in running.values() for row in chunk]
                running.clear()
                crew = stack.enter_context(pool(workers))
        for row in suspects:
            yield _alone(bench, row, pool)


def _alone(bench: Bench, row: tuple[int, str], pool: Callable[[int], Executor]) -> Result:
    begun = time.perf_counter()
    try:
        with pool(1) as single:
            return single.submit(_work, [row]).result()[0]
    except BrokenProcessPool:
        assert bench.golden is not None
        found = failed(bench.golden, "crash")
        return Result(row[0], found.outcome, found.cause, found.metrics, time.perf_counter() - begun, found.changed)
