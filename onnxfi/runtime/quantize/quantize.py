"""Post-training quantisation: weights become integers or narrower floats, and the loss is measured."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxfi.errors import (
    DataError,
    EngineError,
    InputError,
    IsolationError,
    ModelError,
    OnnxfiError,
    OutputError,
    SelectorError,
    closest,
)
from onnxfi.faults.space import NamePattern, Target
from onnxfi.graph.dataflow.type_inference import convert_opset
from onnxfi.graph.model.dequantize import dequantized, scales_at
from onnxfi.graph.model.graph_index import all_nodes, node_label
from onnxfi.graph.model.layers import layer_of
from onnxfi.graph.model.loading import Model, ModelLike, load
from onnxfi.graph.passes.node_builder import opset_of
from onnxfi.graph.write.output_file import check_output_files, output_files
from onnxfi.graph.write.scratch_folder import scratch_folder
from onnxfi.isolated_call import run_isolated
from onnxfi.runtime.data.dry_run import dry_run
from onnxfi.runtime.data.open_data import Data, data_of
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Array, inputs_of, one_line
from onnxfi.runtime.quantize import backends
from onnxfi.runtime.quantize.quantized_outputs import distance_to_float
from onnxfi.runtime.quantize.recipe import QuantisationRecipe
from onnxfi.runtime.quantize.shared_weights import fold_alpha, separate_biases, transpose_once

#: Protobuf's limit for one message; larger models keep their data outside.
_LARGEST_FILE = 1 << 31
_NARROW = {"fp16": "float16", "bf16": "bfloat16"}
#: Suffixes that the quantisers append to a weight's name.
_SUFFIXES = ("_quantized", "_bf16", "_transposed", "_DQ_Q4", "_DQ_Q8", "_Q4", "_Q8")
#: The errors of ours that a copy of the process names; any other is an InputError.
_KINDS: dict[str, type[OnnxfiError]] = {
    kind.__name__: kind for kind in (DataError, EngineError, ModelError, OutputError, SelectorError)
}
#: Operators whose product a quantiser would turn to integers; what of them is left in float is named.
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "Gather")


@dataclass(frozen=True)
class Quantised:
    """A quantised model that was written, and its measured loss of accuracy in weights and outputs.

    Attributes
    ----------
    recipe : QuantisationRecipe
        The settings, with the defaults of the mode.
    out : Path
        The file.
    digest : str
        SHA-256 of the quantised model.
    size_before_bytes, size_after_bytes : int
        Sizes of both models.
    layers : dict of str to int
        Number of quantised tensors by operator.
    left : tuple of (str, str)
        Nodes and their operators whose weights stay float32 though they were not excluded.
    excluded : tuple of str
        Nodes that were excluded.
    words : int
        Number of quantised weights.
    clipped, flushed : int
        Weights beyond the range, which are set to its end, and weights that became zero.
    relative_error : float, optional
        L2 norm of the difference of the outputs over that of the float model's outputs, on the first samples; None if
        the model could not be run.
    notes : tuple of str
        Remarks for the user.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = quantize(load("models/fashion_cnn.onnx"), QuantisationRecipe("dynamic"), folder + "/cnn.onnx")
    >>> done.layers, done.clipped, done.relative_error < 0.1
    ({'ConvInteger': 2, 'MatMulInteger': 2}, 0, True)
    """

    recipe: QuantisationRecipe
    out: Path
    digest: str
    size_before_bytes: int
    size_after_bytes: int
    layers: dict[str, int]
    left: tuple[tuple[str, str], ...]
    excluded: tuple[str, ...]
    words: int
    clipped: int
    flushed: int
    relative_error: float | None
    notes: tuple[str, ...]


def quantize(model: ModelLike, recipe: QuantisationRecipe | str, out: str | Path, *, data: Any = None) -> Quantised:
    """Quantise a float32 model and write it to `out`; inputs and outputs keep their names and types.

    `onnxfi.quantize` describes arguments and errors; here the settings are those of the recipe.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = quantize(load("models/fashion_cnn.onnx"), QuantisationRecipe("bf16"), folder + "/cnn.onnx")
    >>> done.words, done.clipped, done.flushed, done.size_after_bytes < 0.6 * done.size_before_bytes
    (105866, 0, 0, True)
    """
    model = load(model)
    place = Path(out)
    recipe = QuantisationRecipe(recipe) if isinstance(recipe, str) else recipe
    data = data_of(data, inputs_of(model.proto))
    _check(model, recipe, data)
    check_output_files(model, output_files(place, 1))
    dry_run(OrtEngine(provider="cpu"), model.stored_form)
    settled, notes = recipe.settled()
    try:
        with scratch_folder(place.parent) as folder:
            work = _Work(model, settled, folder, notes)
            return work.finish(place, work.apart(data), data)
    except OSError as error:
        raise OutputError(f"cannot write {str(place)!r}: {error.strerror}; nothing was written") from None


def _check(model: Model, recipe: QuantisationRecipe, data: Data | None) -> None:
    """Refuse what cannot be quantised so, before any work."""
    already = [t for t in model.targets if t.scheme is not None]
    if already:
        raise InputError(
            f"{model.name} is quantised already: {len(already)} tensors, as {already[0].id!r}, hold integers for "
            f"real numbers; quantise the float32 model that it came from"
        )
    weights = [t for t in model.targets if t.role == "weight"]
    if not any(t.dtype == "float32" for t in weights):
        found = ", ".join(sorted({t.dtype for t in weights})) or "none"
        raise InputError(
            f"{model.name} has no float32 weights to quantise (its weights: {found}); give a float32 model"
        )
    if recipe.mode == "static" and data is None:
        raise InputError("static mode calibrates activations on data; give --data, or use --mode dynamic")
    opset = opset_of(model.proto)
    if recipe.opset is not None and recipe.opset < opset:
        raise InputError(f"--opset {recipe.opset} is below the model's {opset}; it can only be raised")
    opset = recipe.opset or opset
    in_blocks = recipe.mode == "weight-only" and recipe.format == "qdq"
    if opset < 21 and (in_blocks or (recipe.mode == "static" and recipe.weights.endswith("int4"))):
        raise InputError(
            f"{recipe.weights or 'int4'} in QDQ form needs opset 21, the model has {opset}; --opset 21 raises it, and "
            f"--mode weight-only --format qoperator takes any opset"
        )


@dataclass
class _Work:
    """One quantisation under way, in a folder of its own."""

    model: Model
    recipe: QuantisationRecipe
    folder: Path
    notes: list[str]

    @property
    def external(self) -> bool:
        """True if weights are kept beside the model file."""
        return bool(self.model.external) or sum(s.size for s in self.model.sources) > _LARGEST_FILE // 2

    @property
    def ready(self) -> Path:
        """The file that the quantiser reads."""
        return self.folder / "ready.onnx"

    @property
    def made(self) -> Path:
        """The file that the quantiser writes."""
        return self.folder / "made.onnx"

    def apart(self, data: Data | None) -> list[str]:
        """Quantise in a copy of the process, since quantisers call onnx's inference; returns the nodes left in float.

        What they refuse, and what ends the copy, is an EngineError.
        """
        backends.load_library(self.recipe.mode)
        refused = "the quantiser refuses the model"
        try:
            answer = json.loads(
                run_isolated(lambda: json.dumps(self._answer(data)).encode(), limited=False, timeout_s=None)
            )
        except IsolationError as error:
            raise EngineError(f"{refused}: {error}") from None
        if "broken" in answer:
            raise EngineError(f"{refused}: {answer['broken']}")
        if "refused" in answer:
            kind, message = answer["refused"]
            raise _KINDS.get(kind, InputError)(message)
        if "unwritten" in answer:
            raise OSError(*answer["unwritten"])
        self.notes[:] = answer["notes"]
        excluded: list[str] = answer["excluded"]
        return excluded

    def _answer(self, data: Data | None) -> dict[str, Any]:
        """Return the nodes left in float and the notes of the child process, or raise its error."""
        try:
            with backends.captured():
                self.prepare()
                excluded = self.excluded()
                self.save(self.quantise(excluded, data))
        except OnnxfiError as error:
            return {"refused": (type(error).__name__, str(error))}
        except OSError as error:
            return {"unwritten": (error.errno, error.strerror)}
        except Exception as error:
            return {"broken": one_line(error)}
        return {"excluded": excluded, "notes": self.notes}

    def prepare(self) -> None:
        """Write a copy with every node named, at the requested opset, pre-processed for integer modes."""
        path = self.model.path
        proto = onnx.load(path) if path is not None else onnx.load_from_string(self.model.source.data or b"")
        for k, node in enumerate(proto.graph.node):
            node.name = node.name or node_label(node, k)
        if self.recipe.opset is not None and self.recipe.opset > opset_of(proto):
            proto = _at_opset(proto, self.recipe.opset)
        if self.recipe.mode in ("static", "dynamic"):
            source = self.folder / "named.onnx"
            _save(proto, source, external=self.external)
            self.notes += backends.preprocess(source, self.ready, external=self.external)
        else:
            _save(proto, self.ready, external=self.external)
        self._unshare()

    def _unshare(self) -> None:
        """Prepare weights and biases that several nodes read for quantisers that expect one reader."""
        integers_of_products = self.recipe.mode in ("dynamic", "weight-only")
        if not integers_of_products and (self.recipe.mode, self.recipe.format) != ("static", "qoperator"):
            return
        proto = onnx.load(self.ready)
        edits = (transpose_once,) if integers_of_products else (separate_biases, fold_alpha)
        if any([edit(proto) for edit in edits]):
            self.ready.unlink()
            self.ready.with_name(f"{self.ready.name}.data").unlink(missing_ok=True)
            _save(proto, self.ready, external=self.external)

    def excluded(self) -> list[str]:
        """Names of the nodes that the patterns leave in float; SelectorError for a pattern that matches nothing."""
        proto = onnx.load(self.ready, load_external_data=False)
        stored = {tensor.name for tensor in proto.graph.initializer}
        texts: dict[str, list[str]] = {}
        for k, node in enumerate(proto.graph.node):
            label = node_label(node, k)
            parameters = [name for name in node.input if name in stored]
            texts[label] = [label, layer_of(node, label, parameters[0] if parameters else ""), *parameters]
        patterns = [NamePattern(text) for text in self.recipe.exclude]
        for one in patterns:
            if not any(one.matches(names) for names in texts.values()):
                known = list(dict.fromkeys(name for names in texts.values() for name in names))
                near = closest(one.text, known)
                raise SelectorError(f"--exclude {one.text!r} matches no node, layer or weight{near}")
        return [label for label, names in texts.items() if any(one.matches(names) for one in patterns)]

    def quantise(self, excluded: Sequence[str], data: Data | None) -> onnx.ModelProto:
        """Run the quantiser of the mode."""
        recipe, excluded = self.recipe, _parts(excluded)
        if recipe.mode == "static" and data is not None:
            backends.static(self.ready, self.made, recipe, data, excluded, external=self.external)
            return onnx.load(self.made)
        if recipe.mode == "dynamic":
            backends.dynamic(self.ready, self.made, recipe, excluded, external=self.external)
            return onnx.load(self.made)
        proto = onnx.load(self.ready)
        if recipe.mode == "weight-only":
            return backends.weight_only(proto, recipe, excluded)
        if recipe.mode == "fp16":
            return backends.half(proto, excluded)
        left = {name for node in proto.graph.node if node.name in excluded for name in node.input}
        wanted = [t.id for t in self.model.targets if t.dtype == "float32" and t.role in ("weight", "bias")]
        return backends.brain(proto, [name for name in wanted if name not in left])

    def save(self, made: onnx.ModelProto) -> None:
        """Write what was made without what it does not use, its nodes with the layers of those they came from."""
        source = onnx.load(self.ready, load_external_data=False)
        used = _domains(made)
        kept = {o.domain: o.version for o in made.opset_import if o.domain in used}
        del made.opset_import[:]
        for domain, version in kept.items():
            made.opset_import.add(domain=domain, version=version)
        _restore_layers(made, source)
        for before, after in ((source.graph.input, made.graph.input), (source.graph.output, made.graph.output)):
            types = {v.name: v.type.tensor_type.elem_type for v in before}
            for value in after:
                if types.get(value.name, value.type.tensor_type.elem_type) != value.type.tensor_type.elem_type:
                    raise EngineError(f"the quantiser changed the number format of {value.name!r}; nothing was written")
        self.made.unlink(missing_ok=True)
        _save(made, self.made, external=self.external)

    def finish(self, place: Path, excluded: Sequence[str], data: Data | None) -> Quantised:
        """Look at the result, let ONNX Runtime load it, and move it to its place."""
        made, ready, mode = load(self.made), load(self.ready), self.recipe.mode
        float_left = [t for t in made.targets if t.dtype == "float32" and t.role == "weight" and t.op in _LAYERS]
        left = dict.fromkeys((t.node, t.op) for t in float_left if t.node not in _parts(excluded))
        narrow = _NARROW.get(mode)
        done = [t for t in made.targets if t.role == "weight" and (t.scheme is not None or t.dtype == narrow)]
        if not done:
            held = ", ".join(f"{op} {node}" for node, op in [*left][:3]) + (" …" if len(left) > 3 else "")
            raise InputError(f"nothing could be quantised in mode {mode} ({held or 'no layer'}); try another --mode")
        away = distance_to_float(self.model, self.made, mode, data, self.notes)
        words, clipped, flushed = _losses(ready, made)
        files = _moved(self.made, place)
        before = sum(source.size for source in self.model.sources)
        return Quantised(
            self.recipe, place, load(place).digest, before, sum(f.stat().st_size for f in files),
            dict(Counter(t.op for t in done)), tuple(left), tuple(excluded), words, clipped, flushed, away,
            tuple(self.notes),
        )  # fmt: skip


def _at_opset(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert the model to a higher opset by the official converter, which drops the origin of nodes."""
    try:
        made = convert_opset(proto, opset)
    except IsolationError as error:
        raise InputError(f"the model cannot be raised to opset {opset}: onnx's converter: {error}") from None
    _restore_layers(made, proto)
    return made


def _parts(names: Sequence[str]) -> list[str]:
    """Nodes and the names of the two that a quantiser splits a Gemm into."""
    return [name + part for name in names for part in ("", "_MatMul", "_Add")]


def _save(proto: onnx.ModelProto, path: Path, *, external: bool) -> None:

    if external:
        onnx.save_model(proto, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    else:
        path.write_bytes(proto.SerializeToString(deterministic=True))


def _moved(made: Path, place: Path) -> list[Path]:
    """Give the result its final name, data first; its external data becomes `OUT.data`."""
    data = made.with_name(f"{made.name}.data")
    files = [place]
    if data.exists():
        proto = onnx.load(made, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = f"{place.name}.data"
        made.write_bytes(proto.SerializeToString(deterministic=True))
        files.append(place.with_name(f"{place.name}.data"))
        os.replace(data, files[1])
    os.replace(made, place)
    return files


def _domains(proto: onnx.ModelProto) -> set[str]:
    """Return the operator domains of a model, of functions and subgraphs too; always with the default one."""
    nodes = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    found = {"", *(node.domain for node in all_nodes(nodes))}
    return found | {function.domain for function in proto.functions}


def _restore_layers(made: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Give new nodes the metadata of the node that they came from, whose name begins theirs."""
    known = {node.name: node for node in source.graph.node if node.metadata_props}
    for node in made.graph.node:
        if node.metadata_props:
            continue
        name = node.name
        while name and name not in known:
            name = name.rpartition("_")[0]
        if name:
            node.metadata_props.extend(known[name].metadata_props)


def _losses(ready: Model, made: Model) -> tuple[int, int, int]:
    """Over the weights and biases that changed their format: words, those clipped, those flushed to zero."""
    words = clipped = flushed = 0
    known = {t.id: t for t in ready.targets if t.role in ("weight", "bias")}
    for target in made.targets:
        if target.role not in ("weight", "bias") or target.dtype == "float32":
            continue
        source = _source(target, known)
        if source is None:
            continue
        old = _read(ready, source)
        new, step = _values(made, target, old)
        if new is None or new.shape != old.shape:
            continue
        words += old.size
        with np.errstate(all="ignore"):
            zero = (old != 0) & (new == 0)
            away = (np.abs(new - old) > step * 0.501) & (np.abs(new) < np.abs(old)) & ~zero
        flushed += int(np.count_nonzero(zero))
        clipped += int(np.count_nonzero(away))
    return words, clipped, flushed


def _source(target: Target, known: dict[str, Target]) -> Target | None:
    """Return the source of a quantised tensor: its name without the suffixes of quantisers."""
    name = target.id
    while name not in known:
        cut = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), None)
        if cut is None:
            stem, _, last = name.rpartition("_")
            if not stem or last[:1] not in "QG":
                return None
            cut = stem
        name = cut
    return known[name]


def _read(model: Model, target: Target) -> Array:
    words = model.words(target, np.arange(target.size))
    return np.asarray(target.word.values(words).astype(np.float64).reshape(target.shape))


def _values(made: Model, target: Target, like: Array) -> Sequence[Any]:
    """Return the real values of a quantised tensor in the layout of its source, and the quantisation step."""
    index = np.arange(target.size)
    words = made.words(target, index)
    if target.scheme is None:
        new = target.word.values(words).astype(np.float64).reshape(target.shape)
        with np.errstate(all="ignore"):
            return new, np.maximum(np.abs(like) * 2.0**-target.word.mantissa, 2.0**-24) * 2
    scale, real = scales_at(made, target, index), dequantized(made, target, index, words)
    if scale is None or real is None:
        return None, 0.0
    pair = [a.astype(np.float64).reshape(target.shape) for a in (real, np.abs(scale))]
    if target.scheme.name == "MatMulNBits":
        pair = [a.reshape(len(a), -1)[:, : like.size // len(a)] for a in pair]
    # A quantiser may have transposed the matrix; of a square one the way that is nearer to its source is right.
    ways = [one for one in (pair, [a.T for a in pair]) if one[0].shape == like.shape]
    return min(ways, key=lambda one: float(np.abs(one[0] - like).sum()), default=(None, 0.0))
