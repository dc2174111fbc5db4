"""An open campaign: its model, data, targets and scored output, and runs of the whole model on them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from onnxfi.campaign.plan.fault_targets import FaultTargets
from onnxfi.campaign.plan.open_model import beside, changed_session, describing_session, open_model, output_of
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import Replay
from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
from onnxfi.errors import SpecError
from onnxfi.faults.faultlist import FaultList
from onnxfi.faults.trials import Faults
from onnxfi.graph.dataflow.lookup_tables import lookup_tables
from onnxfi.graph.model.loading import Model
from onnxfi.graph.protection.alarms import ALARM
from onnxfi.graph.write.faulty_copy import FileEdits, find_edits, look_up_words
from onnxfi.runtime.data.decoder_inputs import check_rows
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data
from onnxfi.runtime.data.sample_outputs import KeptInputs, Outputs, Reduce, run_outputs, sample_axes
from onnxfi.runtime.engine.onnx_runtime import short_name
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.engine.protocols import Engine, Session
from onnxfi.runtime.generation.generation_engine import GenerationSession
from onnxfi.runtime.pipeline.later_stages import FrontRun
from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
from onnxfi.tasks.evaluation import by_places, reduction, scored_answers, scored_columns, scored_names
from onnxfi.tasks.kinds.classification import CLASS_OUTCOMES
from onnxfi.tasks.outcomes import GoldenRun
from onnxfi.tasks.registry import choose_task, open_samples


@dataclass(frozen=True)
class OpenCampaign:
    """Everything that a campaign names, opened.

    Attributes
    ----------
    campaign : Campaign
        The campaign, with the provider that its sessions get.
    names : tuple of str
        The outputs that count; none: all.
    provider, note : str
        The execution provider of the runtime, and a remark about it.
    fault_targets : FaultTargets
        The targets of faults.
    axes : mapping of str to tuple of int
        The axes of each output that hold samples.
    inputs : tuple of Port
        The inputs of the model.
    reduce : callable, optional
        What the task keeps of the outputs of a batch.
    opened_s : float
        Seconds that opening a session of the model took.

    In a pipeline the model is that of the faulty stage, and data, names and axes are those of this stage.
    """

    campaign: Campaign
    model: Model
    data: Data
    names: tuple[str, ...]
    provider: str
    note: str
    fault_targets: FaultTargets
    axes: Mapping[str, tuple[int, ...]]
    inputs: tuple[Port, ...]
    opened_s: float = 0.0
    reduce: Reduce | None = None
    #: In a pipeline the stages in front of the faulty one, which have run.
    front: FrontRun | None = None
    #: The numbers per sample of the scored output, as it is declared.
    columns: int | None = None

    @cached_property
    def engine(self) -> Engine:
        """Return the engine that runs the model as the task asks."""
        return self.campaign.open_engine()

    @property
    def size(self) -> int:
        """Return the number of samples that run together."""
        return self.data.layout.fixed or _size(self.front, self.campaign)

    @property
    def judged(self) -> Data:
        """Return the data whose samples are judged: that of the model, or of the pipeline."""
        return self.data if self.front is None else self.front.data

    def session(self, change: FileEdits | None = None) -> Session:
        """Return a session of the model with this change, opened as every trial opens it."""
        return changed_session(self.engine, self.model, change or FileEdits())

    def faulty_session(self, faults: Faults) -> Session:
        """Return a session of the model with these faults in its weights."""
        return self.session(find_edits(self.model, faults, look_up_words(self.model, faults)[1]))

    @property
    def output(self) -> str | None:
        """Return the name of the scored output, of several their names; None if all count, and in a pipeline."""
        if self.front is not None:
            return None
        return ", ".join(name for name in self.names if name != ALARM) or None

    def run(self, session: Session, *, batches: int | None = None) -> tuple[Outputs, ...]:
        """Return the outputs that count over all samples, or over the first batches."""
        return run_outputs(
            session, self.data, self.size, self.names, batches=batches, axes=self.axes, reduce=self.reduce
        )

    def begin(self) -> None:
        """Let the next run be the golden one, which settles what is kept of outputs."""
        if self.reduce is not None and hasattr(self.reduce, "forget"):
            self.reduce.forget()

    def golden(self, run: Sequence[Outputs]) -> GoldenRun:
        """Return the golden run that gave these outputs."""
        how = self.campaign.scoring
        later = None
        if self.front is not None:
            later = self.front.later(tuple(run))
            later = replace(later, answers=scored_answers(later.answers, how.output, how.kind, task=how.task))
        output, scored = (self.output, run) if later is None else (later.answers.output, later.answers.run)
        task = choose_task(how.task, scored, output, self.judged, how.kind, how.metric)
        if how.outcomes == "class":
            if task.name != CLASS_OUTCOMES.name:
                raise SpecError("outcomes class is for scores of classes; leave it out", "outcomes")
            task = CLASS_OUTCOMES
        size = self.size if later is None else 1
        inputs = KeptInputs.read(self.judged, size, task.inputs) if task.inputs else None
        return GoldenRun.of(run, self.judged.labels, task, how.kind, how.tolerance, how.due, inputs, later)


def open_campaign(
    campaign: Campaign, kept_bytes: int, *, model: Model | None = None, runs: bool = True
) -> tuple[OpenCampaign, Session]:
    """Open everything that a campaign names; return it with a session of the model.

    `model` is given where it is open already. Where the session is not to run (`runs`), it only describes inputs and
    outputs, and opens faster.
    """
    model = model or open_model(campaign)
    dry_run(campaign.open_engine(), model.stored_form)
    begun = time.perf_counter()
    session = describing_session(campaign, model) if not runs else campaign.open_engine().prepare(model.stored_form)
    opened_s = time.perf_counter() - begun
    campaign = replace(campaign, engine=campaign.engine.with_provider(short_name(session.provider)))
    front = _front(campaign, model)
    data = _data(campaign, session) if front is None else front.stage_data(_size(front, campaign))
    check_rows(data, lookup_tables(model.index.main))
    alone = runs and not beside(model, kept_bytes)
    if alone:
        del session  # the dry run opens the model too
    if runs:
        dry_run(campaign.open_engine(), model.stored_form, data)
    if alone:
        session = campaign.open_engine().prepare(model.stored_form)
    scoring, design = campaign.scoring, campaign.design
    if front is None:
        output = output_of(campaign, model)
        data = by_places(data, lambda: model, session.outputs, output, scoring.task)
        names = scored_names(session, output, data, scoring.kind, task=scoring.task, whole=True)
    else:
        names = front.stage.outputs
    if names and any(port.name == ALARM for port in session.outputs):  # beside what is scored
        names = (*names, ALARM)
    listed = FaultList.open(design.faults).header if isinstance(design, Replay) else None
    if not runs and isinstance(session, GenerationSession) and listed is None:  # its golden texts say which steps exist
        session = campaign.open_engine().prepare(model.stored_form)
    fault_targets = FaultTargets.of(
        model, campaign.scopes, data, listed, campaign.engine.custom_ops, session, scored=names,
        full=campaign.engine.route == "full",
    )  # fmt: skip
    reduce = None if front is not None else reduction(data, session.outputs, scoring.output, scoring.task)
    axes = sample_axes(session, data, model)
    provider, note, inputs = session.provider, session.note, session.inputs
    columns = scored_columns(session.outputs, scoring.output)
    opened = OpenCampaign(
        campaign, model, data, names, provider, note, fault_targets, axes, inputs, opened_s, reduce, front, columns
    )  # fmt: skip
    return opened, session


def _size(front: FrontRun | None, campaign: Campaign) -> int:
    """Return the number of samples, or rows of the faulty stage, that run together unless the model says it."""
    return (front and front.stage.stage.batch) or campaign.data.batch


def _data(campaign: Campaign, session: Session) -> Data:
    how = campaign.data
    return open_samples(
        campaign.scoring.task, how.data, session.inputs, preprocess=how.preprocess, limit=how.samples,
        batch_axis=how.batch_axis, labels=how.labels, dim=how.dim,
    )  # fmt: skip


def _front(campaign: Campaign, model: Model) -> FrontRun | None:
    """Run the stages of a pipeline in front of the faulty one; None if the campaign is of a model alone."""
    if not names_pipeline(campaign.model):
        return None
    pipeline, how = load_pipeline(campaign.model), campaign.data
    stage = pipeline.faulty_stage(campaign.stage)
    opened = open_pipeline(
        pipeline, campaign.engine.open(), instead={stage.name: model}, allow_code=campaign.allow_code,
        allow_links=campaign.allow_links,
    )  # fmt: skip
    data = opened.open_data(how.data, preprocess=how.preprocess, limit=how.samples, labels=how.labels)
    front, scoring = FrontRun.of(opened, stage.name, data), campaign.scoring
    scored_answers(front.first_answer(), scoring.output, scoring.kind, task=scoring.task)  # what is refused is so early
    return front
