"""Options that several verbs share. A flag bears the name of its API parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from onnxfi.faults.space import Selector
    from onnxfi.graph.model.loading import Model
    from onnxfi.runtime.data.sources import Data
    from onnxfi.runtime.engine.engines import OrtEngine

F = TypeVar("F", bound=Callable[..., Any])

#: Whether a file can be read is told where it is opened.
PATH = click.Path(readable=False, path_type=Path)
MODEL = click.argument("model", metavar="MODEL", type=PATH)

_SELECT = (
    click.option("--include", multiple=True, metavar="PATTERN", help="Targets, nodes or layers to keep: a substring, =exact, a glob, or re:expression. Repeatable."),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="Targets, nodes or layers to leave out, last. Repeatable."),
    click.option("--op", multiple=True, metavar="PATTERN", help="Operators that use the target, as Conv. Repeatable."),
    click.option("--dtype", multiple=True, metavar="TYPE", help="Number formats, as float32 or int8. Repeatable."),
    click.option("--role", multiple=True, metavar="ROLE", help="What the target is for: weight, bias, scale or zero-point. Repeatable."),
    click.option("--bits", default="", metavar="BITS", help="Bits: 30, 0-22, sign, exponent, mantissa, or a comma list; 0 is the lowest."),
    click.option("--elements", default="", metavar="SLICES", help="Elements by axis as in numpy: 0:8,:,1,1."),
)  # fmt: skip
_DATA = (
    click.option("--data", metavar="DATA", help="Labelled data: an .npz, a folder of images by class, module:function, or 'synthetic'."),
    click.option("--preprocess", type=PATH, metavar="YAML", help="How images become inputs (default: preprocess.yaml in their folder)."),
    click.option("--samples", type=click.IntRange(1), metavar="N", help="Take the first N samples only."),
    click.option("--batch", type=click.IntRange(1), metavar="N", default=32, show_default=True, help="Samples run together."),
    click.option("--batch-axis", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="Axis of the inputs that counts samples."),
    click.option("--output", metavar="NAME", help="The output that is scored (default: the only 2-D float one)."),
    click.option("--task", metavar="TASK", default="auto", show_default=True, help="What the output means: classification, deviation, NAME:key=value, module:name; auto takes class scores where the shape is that of some."),
    click.option("--metric", multiple=True, metavar="METRIC", help="A further metric: module:name, or an installed one. Repeatable."),
    click.option("--time-axis", type=click.IntRange(0), metavar="N", help="Axis of the scored output that counts time steps: spikes are counted along it, and the counts are scored."),
)  # fmt: skip
CUSTOM_OPS = click.option(
    "--custom-ops", multiple=True, metavar="LIB", help="A library of custom operators. Repeatable."
)
_ENGINE = (
    click.option("--provider", default="auto", show_default=True, metavar="NAME", help="Execution provider: auto, cpu, cuda, tensorrt, …"),
    click.option("--provider-option", multiple=True, metavar="KEY=VALUE", help="An option of the provider. Repeatable."),
    click.option("--threads", type=click.IntRange(1, 1024), metavar="N", default=1, show_default=True, help="Threads of the runtime's session."),
    click.option("--optimization", type=click.Choice(["all", "extended", "basic", "off"]), metavar="LEVEL", default="all", show_default=True, help="Graph optimisation of the runtime: all, extended, basic or off."),
    CUSTOM_OPS,
)  # fmt: skip
#: The parameters of the selectors, and of what needs something to run.
SELECTORS = ("include", "exclude", "op", "dtype", "role", "bits", "elements")
RUNNING = (
    *("preprocess", "samples", "batch", "batch_axis", "output", "task", "metric", "time_axis"),
    *("provider", "provider_option", "threads", "optimization", "custom_ops"),
)
LINKS = click.option("--allow-links", is_flag=True, help="Follow symbolic and hard links to external data.")
CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Let a spec or budget have code run that it names: data, task or metric as module:name, libraries.",
)
NEURONS = click.option(
    "--neurons", type=PATH, metavar="FILE", help="A mapping (YAML) of spiking layers that no pattern finds."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


def stack(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """A decorator that adds options, the first on top."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def select_options(function: F) -> F:
    """The selectors."""
    return stack(_SELECT)(function)


def run_options(function: F) -> F:
    """Data and engine."""
    return stack((*_DATA, *_ENGINE))(function)


def selector(given: Mapping[str, Any]) -> Selector:
    """The selector that the flags say."""
    from onnxfi.faults.space import Selector

    return Selector(**{name: given[name] for name in SELECTORS})


def engine(given: Mapping[str, Any]) -> OrtEngine:
    """The engine that the flags say; two runtimes installed side by side are pointed out."""
    from onnxfi.cli.terminal import note
    from onnxfi.runtime.engine.engines import OrtEngine, both_runtimes_warning

    if warning := both_runtimes_warning():
        note(warning)

    pairs = []
    for text in given["provider_option"]:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--provider-option {text!r} is not of the form KEY=VALUE")
        pairs.append((key, value))
    return OrtEngine(
        provider=given["provider"], provider_options=tuple(pairs), optimization=given["optimization"],
        threads=given["threads"], custom_ops=tuple(given["custom_ops"]),
    )  # fmt: skip


def data(given: Mapping[str, Any], model: Model, how: OrtEngine) -> Data:
    """The data that the flags say, checked against the model's inputs."""
    from onnxfi.runtime.data.sources import open_data
    from onnxfi.runtime.engine.dry_run import dry_run

    spec = None if given["data"] in (None, "synthetic") else given["data"]
    dry_run(how, model.path or b"")
    ports = how.prepare(model.path or b"").inputs
    return open_data(
        spec, ports, preprocess=given["preprocess"], limit=given["samples"], batch_axis=given["batch_axis"]
    )


def scored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `evaluate` takes of the flags: how many samples run together, and what is scored."""
    return {name: given[name] for name in ("batch", "output", "task", "metric", "time_axis")}


def refuse(names: Iterable[str], why: str) -> None:
    """Refuse flags that would say nothing: what is given is never silently left out."""
    source = click.get_current_context().get_parameter_source
    for name in names:
        if source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} says nothing {why}; leave it out")
