"""Options that several commands share, and their groups in `--help`. A flag has the name of its API parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxfi.cli.streams import InputFile
from onnxfi.cli.terminal import print_note

if TYPE_CHECKING:
    from onnxfi.faults.space import Selector
    from onnxfi.graph.model.loading import Model
    from onnxfi.graph.write.faulty_copy import OnProgress
    from onnxfi.runtime.data.open_data import Data
    from onnxfi.runtime.engine.protocols import Engine
    from onnxfi.runtime.pipeline.open_pipeline import OpenPipeline
    from onnxfi.tasks.evaluation import Evaluation

#: An option or an argument of a verb.
Parameter = Callable[[Callable[..., None]], Callable[..., None]]

#: Files are checked where they are opened.
PATH = click.Path(readable=False, path_type=Path)


MODEL = click.argument("model", metavar="MODEL", type=InputFile())
PIPELINE = click.argument("model", metavar="MODEL|PIPELINE.yaml", type=InputFile())

SELECT = (
    click.option("--include", multiple=True, metavar="PATTERN", help="Select targets, nodes or layers: a substring, =exact, a glob, or re:expression. Repeatable."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Exclude targets, nodes or layers from the selection. Repeatable."),
    click.option("--op", multiple=True, metavar="PATTERN", help="Select targets of these operators, as Conv. Repeatable."),
    click.option("--dtype", multiple=True, metavar="TYPE", help="Select number formats, as float32 or int8. Repeatable."),
    click.option("--role", multiple=True, metavar="ROLE", help="Select by role: weight, bias, scale or zero-point. Repeatable."),
    click.option("--bits", default="", metavar="BITS", help="Select bits: 30, 0-22, sign, exponent, mantissa, or a list with commas; bit 0 is the LSB."),
    click.option("--elements", default="", metavar="SLICES", help="Select elements by axis, as in numpy: 0:8,:,1,1."),
)  # fmt: skip
_DATA = (
    click.option("--data", metavar="DATA", help="Labelled data: an .npz, a folder of images by class, a .txt or .jsonl of texts, module:function, or 'synthetic'."),
    click.option("--labels", metavar="LABELS", help="Labels of the data: a file (.npz[:NAME], .npy, COCO .json, .txt, .csv), a folder of PNG masks, or the name of their array (default: labels)."),
    click.option("--preprocess", type=PATH, metavar="YAML|PRESET", help="Preprocessing of images or texts: a YAML file, for images also timm's config.json, transformers' preprocessor_config.json, or imagenet, timm, inception, clip, caffe (default: preprocess.yaml in their folder, text.yaml beside them)."),
    click.option("--samples", type=click.IntRange(1), metavar="N", help="Use only the first N samples."),
    click.option("--dim", multiple=True, metavar="NAME=SIZE", help="Size of an open dimension of made-up inputs, as T=512 (default: 32); INPUT[AXIS]=SIZE where it has no name. Repeatable."),
    click.option("--batch", type=click.IntRange(1), metavar="N", default=32, show_default=True, help="Samples in a batch."),
    click.option("--batch-axis", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="Axis of the samples in the inputs."),
    click.option("--output", metavar="NAME", help="Output to score (default: the only 2-D float output)."),
    click.option("--task", metavar="TASK", default="auto", show_default=True, help="Task of the model: classification, binary, multi-label, regression, signal, embedding, sequence, language-model, generation, segmentation, detection, deviation, each also with options as NAME:key=value, or module:name; auto: what labels and outputs leave no choice of."),
    click.option("--metric", multiple=True, metavar="METRIC", help="Further metric: module:name, or the name of an installed one. Repeatable."),
    click.option("--time-axis", type=click.IntRange(0), metavar="N", help="Axis of the time steps in the scored output: the spikes along it are counted, and the counts are scored."),
)  # fmt: skip
CUSTOM_OPS = click.option("--custom-ops", multiple=True, metavar="LIB", help="Library of custom operators. Repeatable.")
_ENGINE = (
    click.option("--engine", default="onnxruntime", show_default=True, metavar="NAME", help="Runtime that executes the model: onnxruntime, openvino (pip install 'onnxfi[openvino]'), reference, or one that a package offers."),
    click.option("--provider", default="auto", show_default=True, metavar="NAME", help="Execution provider of ONNX Runtime: auto, cpu, cuda, tensorrt, …"),
    click.option("--provider-option", multiple=True, metavar="KEY=VALUE", help="Option of the provider. Repeatable."),
    click.option("--threads", type=click.IntRange(1, 1024), metavar="N", default=1, show_default=True, help="Threads of a session of the runtime."),
    click.option("--optimization", type=click.Choice(["all", "extended", "basic", "off"]), metavar="LEVEL", default="all", show_default=True, help="Graph optimisation of ONNX Runtime: all, extended, basic or off."),
    CUSTOM_OPS,
)  # fmt: skip
RUN = (*_DATA, *_ENGINE)
#: Parameters of the selection, and those that say how a model is run on data.
SELECTION = ("include", "exclude", "op", "dtype", "role", "bits", "elements")
_DATA_PARAMETERS = (
    "labels", "preprocess", "samples", "dim", "batch", "batch_axis", "output", "task", "metric", "time_axis",
)  # fmt: skip
_ENGINE_PARAMETERS = ("engine", "provider", "provider_option", "threads", "optimization", "custom_ops")
_SAID_BY_STAGES = ("dim", "batch", "batch_axis", "time_axis")
RUN_PARAMETERS = (*_DATA_PARAMETERS, *_ENGINE_PARAMETERS)
#: Groups of options in `--help`; others are listed last.
_GROUPS = {
    "Trials": (
        "ber", "added", "per_sample", "voltage", "temperature", "count", "per_tensor", "sites", "single", "trials", "margin",
        "confidence", "per", "adaptive", "relative_margin", "rate", "rank", "top", "method", "exhaustive", "outcomes",
        "faults", "undo", "mix", "repeat", "seed",
    ),
    "Faults": (
        "fault", "fault_map", "memory_layout", "array", "target", "persistence", "all", "expose", "neurons", "body",
        "inline", "values", "memory_code", "scrub_interval",
    ),
    "Selection": (*SELECTION, "layers", "stage"),
    "Data": ("data", *_DATA_PARAMETERS),
    "Outcomes": ("scores", "tolerance", "due"),
    "Engine": (*_ENGINE_PARAMETERS, "route"),
    "Execution": (
        "workers", "timeout_s", "worker_memory", "memory", "memory_device", "scheduler", "local_cluster", "shard", "time_s",
    ),
}  # fmt: skip


class GroupedCommand(click.Command):
    """A command whose `--help` lists options by groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*_GROUPS, "Options")}
        for parameter in self.get_params(ctx):
            title = next((title for title, names in _GROUPS.items() if parameter.name in names), "Options")
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


STAGE = click.option(
    "--stage", metavar="NAME", help="Stage of a pipeline that faults are injected into (docs/reference/pipeline.md)."
)
LINKS = click.option("--allow-links", is_flag=True, help="Follow symbolic and hard links to external data.")
CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Allow a spec, budget or pipeline to name code that is run: data, task, metric or stage as module:name, libraries.",
)
NEURONS = click.option(
    "--neurons", type=PATH, metavar="FILE", help="Mapping (YAML) of spiking layers that are not detected."
)
MEMORY = (
    click.option("--memory-code", metavar="CODE", help="Code of the memory that holds the weights: parity, secded, tmr, mset or cep, with parameters as secded:bits=32; over some of them as secded@conv1,conv2;mset@fc*, or the file of a protection plan. In a sweep its check bits have faults too."),
    click.option("--scrub-interval", type=float, default=1.0, show_default=True, metavar="SHARE", help="With --memory-code: share of the time after which errors are corrected in memory, as 0.01; 1: never."),
)  # fmt: skip
#: Faults of hardware that a file or a description of it gives, each the text form of a fault model after its name.
HARDWARE = (
    click.option("--fault-map", metavar="MAP.json", help="Cells of a measured memory that fail at a voltage or temperature: --fault fault-map:file=MAP.json, also with its parameters, as MAP.json,instance=0."),
    click.option("--memory-layout", metavar="LAYOUT.json", help="Where the model's files lie in memory, and which part of it fails: --fault memory:file=LAYOUT.json, also with its parameters, as LAYOUT.json,part=row,effect=stuck-at-0 (page, row, column, bank, chip, lane, word-line)."),
    click.option("--array", metavar="rows=R,cols=C,…", help="Bad processing element of a systolic array, with --target activations: --fault array:rows=16,cols=16,dataflow=ws (ws, os or is: what is stationary), lasts=permanent (tile, cycle), effect=flip (stuck-at-0, stuck-at-1), pe=3.5."),
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


def verb(name: str, short_help: str, *parameters: Parameter) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a function the command of a verb, with these parameters in this order."""

    def decorate(function: Callable[..., None]) -> click.Command:
        for parameter in reversed(parameters):
            function = parameter(function)
        return click.command(name, cls=GroupedCommand, short_help=short_help)(function)

    return decorate


def hardware_fault(flags: Mapping[str, Any], *, given: bool) -> str | None:
    """Return the fault model that the flags of hardware describe, None if there is none."""
    texts = {"fault_map": "fault-map:file=", "memory_layout": "memory:file=", "array": "array:"}
    named = [name for name in texts if flags.get(name) is not None]
    if len(named) + given > 1:
        flagged = " and ".join("--" + name.replace("_", "-") for name in [*named, *["fault"] * given])
        raise click.UsageError(f"{flagged} each say what a fault is; give one of them")
    return texts[named[0]] + flags[named[0]] if named else None


def selector_of(flags: Mapping[str, Any]) -> Selector:
    """Return the selector of the flags."""
    from onnxfi.faults.space import Selector

    return Selector(**{name: flags[name] for name in SELECTION})


def engine_of(flags: Mapping[str, Any]) -> Engine:
    """Return the engine of the flags; print a note where two runtimes are installed."""
    from onnxfi.campaign.spec.settings import EngineSettings
    from onnxfi.errors import SpecError
    from onnxfi.runtime.engine.installed_runtime import both_runtimes_warning

    if warning := both_runtimes_warning():
        print_note(warning)

    foreign = EngineSettings.foreign(flags["engine"])
    refuse_flags(foreign, f"with --engine {flags['engine']}")
    names = {f.name for f in fields(EngineSettings)} - {*foreign, "route"}
    try:
        return EngineSettings(**{name: flags[name] for name in names}).open()
    except SpecError as error:
        if error.field == "provider_option":
            raise click.UsageError(str(error).replace("provider_option", "--provider-option", 1)) from None
        raise


def data_of(flags: Mapping[str, Any], model: Model, engine: Engine) -> Data:
    """Return the data of the flags, checked against the model's inputs."""
    from onnxfi.tasks.registry import open_data_of_model

    spec = None if flags["data"] in (None, "synthetic") else flags["data"]
    return open_data_of_model(
        model.path or b"", spec, engine, flags["task"], preprocess=flags["preprocess"], limit=flags["samples"],
        batch_axis=flags["batch_axis"], labels=flags["labels"], dim=flags["dim"],
    )  # fmt: skip


def calibration_of(source: Path, model: Model, flags: Mapping[str, Any], engine: Engine) -> Data | None:
    """Return the data of a model, or what feeds it as a stage of a pipeline; None without --data."""
    from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
    from onnxfi.runtime.pipeline.later_stages import stage_data

    if flags["data"] is None:
        refuse_flags(("preprocess", "samples", "dim", "batch_axis"), "without --data")
    if not names_pipeline(source):
        return None if flags["data"] is None else data_of(flags, model, engine)
    if flags["data"] is not None:
        refuse_flags(_SAID_BY_STAGES, "on a pipeline, which says itself how its stages run")
    allowed = {name: flags[name] for name in ("allow_code", "allow_links")}
    how = {"batch": flags["batch"], "reading": _pipeline_reading(flags), **allowed}
    return stage_data(load_pipeline(source), flags["stage"], engine, flags["data"], **how)


def data_run_once(data: str, model: Model, custom_ops: tuple[str, ...]) -> Data:
    """Return data whose samples are run once on the CPU, to see shapes or that outputs stay as they were."""
    from onnxfi.runtime.data.dry_run import dry_run
    from onnxfi.runtime.data.open_data import open_data
    from onnxfi.runtime.engine.onnx_runtime import OrtEngine

    engine = OrtEngine(provider="cpu", custom_ops=custom_ops)
    dry_run(engine, model.path or b"")
    return open_data(data, engine.prepare(model.path or b"").inputs)


def pipeline_of(
    source: Path, flags: Mapping[str, Any], *, allow_code: bool, allow_links: bool
) -> tuple[OpenPipeline, Data]:
    """Return the open pipeline of a command, and its data."""
    from onnxfi.campaign.spec.pipeline_file import load_pipeline
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline

    refuse_flags(_SAID_BY_STAGES, "on a pipeline, which says itself how its stages run")
    pipeline = load_pipeline(source)
    opened = open_pipeline(pipeline, engine_of(flags), allow_code=allow_code, allow_links=allow_links)
    spec = None if flags["data"] in (None, "synthetic") else flags["data"]
    return opened, opened.open_data(spec, **_pipeline_reading(flags))


def _pipeline_reading(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments among the flags with which the data of a pipeline is opened."""
    return {"preprocess": flags["preprocess"], "limit": flags["samples"], "labels": flags["labels"]}


def pipeline_scoring_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `evaluate_pipeline` among the flags."""
    return {name: flags[name] for name in ("output", "task", "metric")}


def stage_of(model: Path, flags: Mapping[str, Any]) -> Model:
    """Return the model of a command, or of the stage of a pipeline that it names."""
    if model.suffix == ".onnx" and flags["stage"] is None:  # without what pipelines and campaigns take to load
        from onnxfi.graph.model.loading import load

        return load(model, allow_links=flags["allow_links"])
    from onnxfi.campaign.plan.open_model import reopen

    return reopen(str(model), {name: flags[name] for name in ("allow_links", "stage")})


def evaluator(model: Path, opened: Model, flags: Mapping[str, Any]) -> tuple[Data, Callable[..., Evaluation]]:
    """Return the data, and a function that evaluates a model file on it in place of `model`, or of a pipeline's stage.

    The function takes the file (None: without faults), the golden evaluation (None: there is none), and the function that hears of progress.
    """
    from onnxfi.campaign.spec.pipeline_file import load_pipeline, names_pipeline
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline
    from onnxfi.tasks.evaluation import evaluate, evaluate_pipeline

    engine = engine_of(flags)
    if not names_pipeline(model):
        data, how = data_of(flags, opened, engine), scoring_of(flags)
        return data, lambda file, golden, progress: evaluate(
            file or model, data, golden=golden, engine=engine, **how, progress=progress
        )
    allowed = {name: flags[name] for name in ("allow_code", "allow_links")}
    pipeline, how = load_pipeline(model), pipeline_scoring_of(flags)
    whole, of_pipeline = pipeline_of(model, flags, **allowed)

    def evaluated(file: Path | None, golden: Evaluation | None, progress: OnProgress | None) -> Evaluation:
        stages = {} if file is None else {pipeline.faulty_stage(flags["stage"]).name: load(file, allow_links=True)}
        running = open_pipeline(pipeline, engine, instead=stages, **allowed) if stages else whole
        return evaluate_pipeline(running, of_pipeline, golden=golden, **how, progress=progress)

    return of_pipeline, evaluated


def scoring_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `evaluate` among the flags: batch size and scored output."""
    return {name: flags[name] for name in ("batch", "output", "task", "metric", "time_axis")}


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A duration in seconds, minutes or hours: 90, 90s, 10m or 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds of a text, as 600.0 of 10m."""
        from onnxfi.errors import InputError
        from onnxfi.numbers import seconds

        try:
            return seconds(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


def given_flags(flags: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the flags (of these names) that were given, rather than left at their defaults."""
    source = click.get_current_context().get_parameter_source
    return {n: flags[n] for n in (flags if names is None else names) if source(n) is not ParameterSource.DEFAULT}


def refuse_flags(names: Iterable[str], reason: str) -> None:
    """Refuse flags that would have no effect: a given flag is never ignored."""
    context = click.get_current_context()
    flag_of = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag_of[name]} has no effect {reason}; leave it out")
