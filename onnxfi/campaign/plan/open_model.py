"""Opening of a campaign's model: unchanged or with exposed neurons; with modules or single tensors as layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat
from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
from onnxfi.errors import EngineError, OutputError, SpecError
from onnxfi.graph.model.loading import Model, load
from onnxfi.graph.passes.scored_outputs import score_outputs, spike_count_output, with_map_scores, with_spike_counts
from onnxfi.graph.write.faulty_copy import FileEdits, faulty_bytes, write_scratch_copy
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.protection.coded_memory import with_check_bits
from onnxfi.protection.memory_codes import parse_code_assignment
from onnxfi.runtime.engine.process_memory import give_back
from onnxfi.runtime.engine.protocols import Engine, Session
from onnxfi.runtime.inject.neurons import with_exposed_neurons
from onnxfi.runtime.pipeline.open_pipeline import load_stage

#: From this size on, a model's memory matters more than the time that it takes to have it from the system.
LARGE_BYTES = 64 << 20


def open_model(campaign: Campaign) -> Model:
    """Return the model of a campaign.

    >>> found = open_model(Campaign("models/fashion_snn.onnx", single=True, expose=True, layers="tensors"))
    >>> [target.layer for target in found.targets][-2:]
    ['lif3/reset', 'lif3/spike']
    """
    return with_map_scores(reopen(campaign.model, flat(campaign)))[0]


def reopen(path: str, fields: Mapping[str, Any]) -> Model:
    """Open a model, or the stage of a pipeline, as these flat fields of a campaign say."""
    links = bool(fields.get("allow_links", False))
    if names_pipeline(path):
        _refuse_beside_stage(fields)
        pipeline = load_pipeline(path)
        model = load_stage(pipeline, pipeline.faulty_stage(fields.get("stage")), allow_links=links)
    elif fields.get("stage") is not None:
        raise SpecError(f"{path!r} is no pipeline; leave stage out, or name a pipeline as the model", "stage")
    else:
        model = load(path, allow_links=links)
    if sum(source.size for source in model.sources) >= LARGE_BYTES:
        give_back()
    if fields.get("expose", False):
        model = with_exposed_neurons(model, fields.get("neurons"))
    if fields.get("time_axis") is not None:
        model = with_spike_counts(model, fields.get("output"), fields["time_axis"])
    if fields.get("memory_code"):
        model = with_check_bits(model, parse_code_assignment(fields["memory_code"]))
    if fields.get("layers", "modules") == "tensors":
        model = replace(model, targets=tuple(replace(target, layer=target.id) for target in model.targets))
    return model


def _refuse_beside_stage(fields: Mapping[str, Any]) -> None:
    """Refuse settings that say something about the data or the scored output of one model."""
    for name, other in (("batch_axis", 0), ("time_axis", None)):
        if fields.get(name, other) != other:
            raise SpecError(f"{name} has no meaning in a pipeline, which counts samples along the first axis; leave it "
                            f"out, or count in a stage behind", name)  # fmt: skip


def beside(model: Model, kept_bytes: int) -> bool:
    """Return True if two processes may open the model at once: it is small, or fits half of their memory."""
    size = sum(source.size for source in model.sources)
    return size < LARGE_BYTES or 2 * size <= kept_bytes


def output_of(campaign: Campaign, model: Model) -> str | None:
    """Return the output that a campaign scores: of spikes over time their counts, of maps the scores in them."""
    scoring = campaign.scoring
    if scoring.time_axis is not None:
        return spike_count_output(model.proto)
    return scoring.output and score_outputs(model.proto).get(scoring.output, scoring.output)


def changed_session(engine: Engine, model: Model, change: FileEdits) -> Session:
    """Open a session of a model with this change; no copy of the model is left."""
    # Of a file the runtime holds less than of bytes, which it parses beside them.
    if model.external or model.source.size >= LARGE_BYTES:
        try:
            return _drafted(engine, model, change)
        except (OutputError, OSError):
            if model.external:
                raise
    return engine.prepare(faulty_bytes(model, change))


def _drafted(engine: Engine, model: Model, change: FileEdits) -> Session:
    with scratch_folder() as folder:
        write_scratch_copy(model, change, folder / "faulty.onnx")
        return engine.prepare(folder / "faulty.onnx")


def describing_session(campaign: Campaign, model: Model) -> Session:
    """Open a session for the inputs and outputs of a model: without optimization, where the runtime allows."""
    with suppress(EngineError):
        return campaign.open_engine().unoptimized().prepare(model.stored_form)
    return campaign.open_engine().prepare(model.stored_form)
