"""The stages after the one that is faulty: from its outputs to the answers, run again where a bit differs.

A later stage runs for one sample at a time, from the outputs that the faulty stage gave for its rows. So an answer
follows from that sample alone, and golden outputs stand for whatever is equal to them bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, EngineError, InputError
from onnxfi.runtime.data.batches import Data, layout
from onnxfi.runtime.data.open_data import data_of_batches
from onnxfi.runtime.data.sample_outputs import Outputs, alike
from onnxfi.runtime.engine.ports import Array, one_line, same_by, same_bytes
from onnxfi.runtime.engine.protocols import Engine
from onnxfi.runtime.pipeline.open_pipeline import OpenPipeline, Values, open_pipeline, without_faults
from onnxfi.runtime.pipeline.open_stages import ModelStage, frozen
from onnxfi.runtime.pipeline.pipeline import Pipeline, Source, Stage
from onnxfi.runtime.pipeline.pipeline_answers import PipelineAnswers

Run = tuple[Outputs, ...]


@dataclass(frozen=True)
class FrontRun:
    """The run of the stages that faults in a stage do not reach, which feeds that stage.

    Attributes
    ----------
    opened : OpenPipeline
        The pipeline.
    stage : ModelStage
        The stage that is faulty.
    data : Data
        The data of the pipeline.
    values : list of mapping of Source to array
        The outputs that count, of each sample.
    """

    opened: OpenPipeline
    stage: ModelStage
    data: Data
    values: Sequence[Values] = field(repr=False)

    @classmethod
    def of(cls, opened: OpenPipeline, name: str, data: Data) -> FrontRun:
        """Run the stages in front of the stage of this name on all samples."""
        stage = opened.stages[name]
        assert isinstance(stage, ModelStage)
        return cls(opened, stage, data, opened.front(data, name))

    def fed(self, values: Values) -> dict[str, Array]:
        """Return the arrays of one sample that the stage reads."""
        return {key: values[source] for key, source in self.stage.stage.reads.items()}

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The number of rows of each sample in the stage ([N])."""
        axes = self.stage.axes
        counts = ([len(array) for key, array in self.fed(v).items() if key in axes] for v in self.values)
        return np.array([min(count, default=1) for count in counts], np.int64)

    @cached_property
    def samples(self) -> NDArray[np.int64]:
        """The sample of each row of the stage ([R])."""
        return np.repeat(np.arange(len(self.rows)), self.rows)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The end of the rows of each sample ([N])."""
        return np.cumsum(self.rows)

    def stage_data(self, size: int) -> Data:
        """Return the data of the stage: the rows of all samples in their order, up to `size` of one shape together."""
        name, ports = self.stage.stage.name, self.stage.session.inputs
        if not self.rows.sum():
            raise DataError(f"no sample of {self.data.description} has a row for stage {name!r}; take other data")
        size = layout(ports, 0).fixed or size
        description = f"stage {name!r} of a pipeline on {self.data.description}"
        found = data_of_batches(self._batches(size), ports, f"what feeds stage {name!r}")
        return replace(found, description=description, synthetic=self.data.synthetic)

    def _batches(self, size: int) -> list[dict[str, Array]]:
        batches: list[dict[str, Array]] = []
        waiting: list[dict[str, Array]] = []
        for values, rows in zip(self.values, self.rows, strict=True):
            fed = self.fed(values) if rows else {}
            for row in range(rows):
                one = {key: array[row : row + 1] if key in self.stage.axes else array for key, array in fed.items()}
                if waiting and (len(waiting) == size or not self._together(waiting[0], one)):
                    batches.append(self._joined(waiting))
                    waiting = []
                waiting.append(one)
        return [*batches, self._joined(waiting)]

    def _together(self, one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
        axes = self.stage.axes
        return all(array.shape == other[key].shape if key in axes else same_bytes(array, other[key])
                   for key, array in one.items())  # fmt: skip

    def _joined(self, rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        axes = self.stage.axes
        joined = {key: np.concatenate([row[key] for row in rows]) if key in axes else array
                  for key, array in rows[0].items()}  # fmt: skip
        return self.stage.feeds(joined)

    def first_answer(self) -> PipelineAnswers:
        """Run the first sample to its answer, to find what does not fit before the rest is run."""
        name = self.stage.stage.name
        order = [stage for stage in self.opened.pipeline.order if stage not in self.opened.pipeline.front(name)]
        with without_faults(0):
            return PipelineAnswers(self.opened, self.data, (self.opened.run(order, self.values[0]),))

    def later(self, run: Run) -> LaterStages:
        """Return the stages after, with golden outputs from a golden run of the stage; DataError if they fail."""
        behind = self.opened.pipeline.behind(self.stage.stage.name)
        found = LaterStages(self, behind, run, PipelineAnswers(self.opened, self.data, ()))
        values = list[Values]()
        for sample, known in enumerate(self.values):
            with without_faults(sample):
                values.append(self.opened.run(behind, {**known, **found.given(sample, {})}))
        self.opened.check_steady(behind, {**self.values[0], **found.given(0, {})}, values[0])
        return replace(found, answers=replace(found.answers, values=tuple(values)))


@dataclass(frozen=True)
class LaterStages:
    """The stages after the faulty one, with the golden outputs of every sample.

    Attributes
    ----------
    front : FrontRun
        The stages in front.
    after : tuple of Stage
        The stages after, in order.
    golden : tuple of Outputs
        The golden run of the faulty stage, batch by batch.
    answers : PipelineAnswers
        The golden outputs that count, of each sample, and the answers that they are.
    """

    front: FrontRun = field(repr=False)
    behind: tuple[Stage, ...]
    golden: Run = field(repr=False)
    answers: PipelineAnswers

    def __call__(self, run: Run) -> Run:
        """Return the answers of the samples of which this run of the faulty stage has rows: golden ones where equal.

        Raises
        ------
        EngineError
            If a later stage fails, or rows cannot be distinguished.
        """
        changed: dict[int, dict[int, tuple[Outputs, int]]] = {}
        for outputs in run:
            for sample in np.unique(self.front.samples[outputs.samples]).tolist():
                changed.setdefault(sample, {})
            for at in self._changed(outputs).tolist():
                row = int(outputs.samples[at])
                changed[int(self.front.samples[row])][row] = outputs, at
        if sum(len(outputs.samples) for outputs in run) == len(self.front.samples):  # also the samples without rows
            changed = {sample: changed.get(sample, {}) for sample in range(len(self.front.rows))}
        return tuple(self._answer(sample, rows) for sample, rows in changed.items())

    def _answer(self, sample: int, rows: Mapping[int, tuple[Outputs, int]]) -> Outputs:
        found = self._rerun(sample, self.given(sample, rows)) if rows else {}
        return self.answers.changed(sample, found)

    def _rerun(self, sample: int, given: Values) -> dict[Source, Array]:
        """Run the later stages that read something else than golden outputs; return what differs from those."""
        known = self.answers.values[sample]
        found = {source: array for source, array in given.items() if not same_bytes(array, known[source])}
        for stage in self.behind:
            if not any(source in found for source in stage.sources):
                continue
            try:
                made = self.front.opened.outputs(stage, {**known, **found})
            except DataError as error:  # of what a fault made
                raise EngineError(str(error)) from error
            found |= {s: a for s, a in made.items() if s not in known or not same_bytes(a, known[s])}
        return found

    # Rows of the faulty stage

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([outputs.samples[0] for outputs in self.golden])

    def _batch(self, row: int) -> Outputs:
        return self.golden[int(np.searchsorted(self._starts, row, side="right")) - 1]

    def _changed(self, outputs: Outputs) -> NDArray[np.int64]:
        """Return the places of the rows in which some bit is not golden."""
        golden = self._batch(int(outputs.samples[0]))
        if all(array is golden.arrays[name] for name, array in outputs.arrays.items()):
            return np.zeros(0, np.int64)
        every = np.arange(len(outputs.samples))
        if golden.has_rows and outputs.has_rows:
            own = golden.take(outputs.samples - golden.samples[0])
            if not alike(own, outputs):
                return every
            same = [same_by(array, outputs.arrays[name], 0) for name, array in own.arrays.items()]
            return np.flatnonzero(~np.all(same, axis=0))
        return every

    def given(self, sample: int, rows: Mapping[int, tuple[Outputs, int]]) -> dict[Source, Array]:
        """Return what the faulty stage gives for a sample: these rows, and golden ones for the rest."""
        stage, end = self.front.stage, int(self.front.ends[sample])
        places = range(end - int(self.front.rows[sample]), end)
        every = [rows[row] if row in rows else self._golden_row(row) for row in places]
        found = {}
        for name in stage.outputs:
            try:
                parts = [stage.restored(name, _row(outputs, name, at, stage)) for outputs, at in every]
                whole = np.concatenate(parts) if parts else stage.nothing(name)
            except ValueError as error:
                raise EngineError(f"rows of {name!r} do not fit together: {one_line(error)}") from None
            found[Source(stage.stage.name, name)] = frozen(whole)
        return found

    def _golden_row(self, row: int) -> tuple[Outputs, int]:
        outputs = self._batch(row)
        return outputs, row - int(outputs.samples[0])


def _row(outputs: Outputs, name: str, at: int, stage: ModelStage) -> Array:
    """Return one row of an output; of a run of one row all that it gave."""
    array = outputs.arrays[name]
    if len(outputs.samples) == 1:
        return array if array.ndim else array.reshape(1)
    if not array.ndim or len(array) != len(outputs.samples):
        raise EngineError(
            f"stage {stage.stage.name!r} gave {len(array) if array.ndim else 1} rows of {name!r} for the "
            f"{len(outputs.samples)} that it was fed, and nothing says which sample each belongs to; run one row at a "
            f"time, with batch: 1 in the stage or --batch 1"
        )
    return array[at : at + 1]


def stage_data(
    pipeline: Pipeline,
    stage: str | None,
    engine: Engine,
    data: Any,
    *,
    batch: int,
    reading: Mapping[str, Any],
    allow_code: bool = False,
    allow_links: bool = False,
) -> Data | None:
    """Return what the stages in front of a stage of a pipeline feed it, `batch` rows at a time; None without data.

    `reading` are the arguments of `OpenPipeline.open_data`. Raises InputError for a stage that runs in a loop.
    """
    fed = pipeline.faulty_stage(stage)
    if fed.loop is not None:
        raise InputError(
            f"stage {fed.name!r} runs its model in a loop, which a written model would have twice; protect "
            f"{fed.model} alone, with data for it"
        )
    if data is None:
        return None
    whole = open_pipeline(pipeline, engine, allow_code=allow_code, allow_links=allow_links)
    spec = None if isinstance(data, str) and data == "synthetic" else data
    return FrontRun.of(whole, fed.name, whole.open_data(spec, **reading)).stage_data(fed.batch or batch)
