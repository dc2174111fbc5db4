"""A pipeline as a YAML file, described in docs/reference/pipeline.md, or as a function that returns one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from onnxfi.campaign.spec.flat_fields import brief
from onnxfi.campaign.spec.yaml_fields import YamlNode, built, check_version, read_yaml
from onnxfi.errors import InputError, closest
from onnxfi.extensions import names_function
from onnxfi.graph.model.byte_source import quoted
from onnxfi.runtime.pipeline.open_stages import pipeline_code
from onnxfi.runtime.pipeline.pipeline import Pipeline, PipelineLoop, Stage

VERSION = 1
_MOST_NAMES = 1000


def names_pipeline(source: str | Path) -> bool:
    """Return true for a YAML file with stages, or a ``module:function`` in place of a model file.

    >>> names_pipeline("own_pipelines:reading"), names_pipeline("models/fashion_cnn.onnx")
    (True, False)
    """
    text = str(source)
    if Path(text).suffix.lower() not in (".yaml", ".yml"):
        return names_function(text) and not Path(text).exists()
    if not Path(text).is_file():
        return False
    return any(name == "stages" for name, _, _ in read_yaml(text, "campaign").entries())


def load_pipeline(source: str | Path) -> Pipeline:
    r"""Return a pipeline from its YAML file, or from a function that returns one, as ``module:function``.

    Loading is safe: no code that a file names is imported, and its paths stay inside its folder. Every field is
    checked, with line and column.

    Parameters
    ----------
    source : str or Path
        The YAML file, or ``module:function``.

    Returns
    -------
    Pipeline
        The pipeline, whose models and functions are not open yet.

    Raises
    ------
    SpecError
        For a field that is unknown, of a wrong type, or contradicts another.
    InputError
        For a function that cannot be loaded, or returns no `Pipeline`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "pipeline.yaml")
    ...     _ = file.write_text("stages:\n- {name: net, function: 'own:net', inputs: {x: data.x}}\n")
    ...     load_pipeline(file).answer
    ('net',)
    """
    if names_function(str(source)) and not Path(source).exists():
        return _called(str(source))
    whole = read_yaml(source, "pipeline")
    places: dict[str, YamlNode] = {}
    readers: dict[str, Callable[[YamlNode, str], Any]] = {
        "version": lambda node, name: node.scalar(name, int),
        "data": _texts,
        "stages": lambda node, _: [_stage(one, Path(source).parent, places) for one in _listed(node)],
        "answer": lambda node, name: [one.scalar(name, str) for one in node.items()],
        "faults": lambda node, name: [one.scalar(name, str) for one in node.items()],
    }
    given = _fields(whole, readers, places, "a pipeline")
    check_version(given, places, "pipeline", VERSION)
    if "stages" not in given:
        raise whole.error("a pipeline has stages; add stages: with a name, a model and its inputs each")
    return built(lambda fields: Pipeline(**fields, folder=str(Path(source).parent)), given, places, whole)


def _called(spec: str) -> Pipeline:
    function = pipeline_code(spec, os.getcwd())
    if isinstance(function, Pipeline):
        return function
    try:
        found = function()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec!r} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, Pipeline):
        raise InputError(f"{spec!r} returned a {type(found).__name__}; return an onnxfi.Pipeline")
    return found


def _stage(node: YamlNode, folder: Path, places: dict[str, YamlNode]) -> Stage:
    here: dict[str, YamlNode] = {}
    readers: dict[str, Callable[[YamlNode, str], Any]] = {
        "name": lambda one, name: one.scalar(name, str),
        "model": lambda one, name: _inside(one, folder),
        "function": lambda one, name: one.scalar(name, str),
        "inputs": lambda one, name: _mapping(one, _source, here, "inputs."),
        "batch": _whole_number,
        "loop": _loop,
    }
    given = _fields(node, readers, here, "a stage")
    name = str(given.get("name", ""))
    if not name:
        raise node.error("a stage has a name; add name: NAME")
    mine = {name: node, **{f"{name}.{key}": place for key, place in here.items()}}
    for key, place in mine.items():
        places.setdefault(key, place)
    return built(lambda fields: Stage(**fields), given, mine, node)


def _inside(node: YamlNode, folder: Path) -> str:
    """Return the path of a model in the folder of its pipeline."""
    text = str(node.scalar("model", str))
    root, place = os.path.realpath(folder), os.path.realpath(folder / text)
    if not text or os.path.isabs(text) or "\0" in text or os.path.commonpath([root, place]) != root:
        raise node.error(
            f"model {quoted(text[:80])} lies outside of the folder of the pipeline; put it there, or below"
        )
    if not os.path.isfile(place):
        raise node.error(f"there is no file {quoted(text[:80])} in the folder of the pipeline")
    return text


def _source(node: YamlNode, key: str) -> str | int | float | bool:
    value = node.scalar(key, None)
    if value is None:
        raise node.error(f"input {key!r} has no source; give data.NAME, STAGE.OUTPUT or a number")
    return value  # type: ignore[no-any-return]


def _whole_number(node: YamlNode, name: str) -> int:
    value = node.scalar(name, int)
    if not isinstance(value, int) or isinstance(value, bool):
        raise node.error(f"{name} must be a whole number; given {brief(value)!r}")
    return value


def _loop(node: YamlNode, name: str) -> PipelineLoop:
    here: dict[str, YamlNode] = {}
    readers: dict[str, Callable[[YamlNode, str], Any]] = {
        "axis": _whole_number,
        "over": lambda one, key: [item.scalar(key, str) for item in one.items()],
        "carry": _texts,
    }
    given = _fields(node, readers, here, "a loop")
    for key in readers:
        if key not in given:
            raise node.error(f"a loop has axis, over and carry; add {key}")
    return built(lambda fields: PipelineLoop(**fields), given, here, node)


def _texts(node: YamlNode, name: str) -> dict[str, str]:
    return _mapping(node, lambda one, key: str(one.scalar(key, str)), {}, "")


def _listed(node: YamlNode) -> list[YamlNode]:
    if not isinstance(node.node, yaml.SequenceNode):
        raise node.error("stages are a list; begin each with - name: NAME")
    return node.items()


def _mapping(
    node: YamlNode, read: Callable[[YamlNode, str], Any], places: dict[str, YamlNode], prefix: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key, value in node.entries():
        if not name or len(name) > _MOST_NAMES:
            raise key.error("a name is expected here")
        if name in found:
            raise key.error(f"{name[:60]} is given twice")
        found[name] = read(value, name)
        places[f"{prefix}{name}"] = value
    return found


def _fields(
    node: YamlNode, readers: Mapping[str, Callable[[YamlNode, str], Any]], places: dict[str, YamlNode], what: str
) -> dict[str, Any]:
    for name, key, _ in node.entries():
        if name not in readers:
            raise key.error(f"unknown field {name[:60]!r} of {what}{closest(name[:60], readers)}")
    return _mapping(node, lambda value, name: readers[name](value, name), places, "")
