"""Conformance of the fault operators: every model that is at hand, every value armed, against the plain model.

For each model that ONNX Runtime runs: arm everything (`--all`); with nothing armed and optimisation off on both sides
every output must be the plain model's, byte for byte; then one fault sets all exponent bits (of integers: all bits) of
one element of one value, which must read back as numpy predicts. Models: the node tests of the onnx package, generated
in memory, its light, simple and pytorch models, and the shipped and fetched ones.

python scripts/conformance.py [--report docs/how-to/activations.md] [--every N] [--kind node,files,models]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxfi.errors import EngineError, OnnxfiError
from onnxfi.faults.words import Mask, Word
from onnxfi.graph.dataflow.activation_targets import Activation
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.graph.model.loading import load
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, Armed
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import same_bytes
from onnxfi.runtime.inject.activations import instrument

ROOT = Path(__file__).parents[1]
OFF = OrtEngine(provider="cpu", optimization="off")
NEWEST_OPSET, NEWEST_IR = 26, 13


@dataclass(frozen=True)
class Case:
    """A model and what it is fed: None where inputs are to be made up."""

    name: str
    model: bytes
    feeds: dict[str, Any] | None


@dataclass(frozen=True)
class Verdict:
    """The verdict of a case: `passed`, `failed`, or the reason why it was skipped."""

    case: str
    end: str
    detail: str = ""
    sites: int = 0
    read_back: bool = False
    exact: bool = True


def node_cases() -> Iterator[Case]:
    """The node tests, generated in memory; a newer opset than the runtime's is set down to its newest."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases()
    for case in sorted(cases, key=lambda c: c.name):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        model.ir_version = min(model.ir_version, NEWEST_IR)
        for entry in model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = min(entry.version, NEWEST_OPSET)
        inputs = case.data_sets[0][0]
        arrays = [numpy_helper.to_array(i) if isinstance(i, onnx.TensorProto) else i for i in inputs]
        feeds = dict(zip([i.name for i in model.graph.input], arrays, strict=False))
        yield Case(case.name, model.SerializeToString(), feeds)


def file_cases() -> Iterator[Case]:
    """The models that come with the onnx package, with their inputs where they lie beside them."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for file in sorted([*data.glob("light/*.onnx"), *data.glob("*/*/model.onnx")]):
        if file.parts[-3] == "node":
            continue
        model = onnx.load(file)
        name = f"{file.parent.parent.name}/{file.parent.name}" if file.name == "model.onnx" else f"light/{file.stem}"
        feeds: dict[str, Any] | None = {}
        for k, value in enumerate(model.graph.input):
            stored = file.parent / "test_data_set_0" / f"input_{k}.pb"
            if not stored.is_file() or not value.type.HasField("tensor_type"):
                feeds = None
                break
            tensor = onnx.TensorProto.FromString(stored.read_bytes())
            feeds[value.name] = numpy_helper.to_array(tensor)  # type: ignore[index]
        yield Case(name, file.read_bytes(), feeds)


#: Models that made-up inputs do not fit: 16 kHz sound of one speaker, whose state has its batch inside.
_FEEDS = {
    "silero_vad.onnx": {
        "input": np.random.default_rng(0).normal(size=(1, 512)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000),
    }
}


def model_cases() -> Iterator[Case]:
    """The shipped and fetched models."""
    for folder in ("models", "fetched"):
        for file in sorted((ROOT / folder).glob("*.onnx")):
            yield Case(f"{folder}/{file.name}", file.read_bytes(), _FEEDS.get(file.name))


def check(case: Case) -> Verdict:
    """Arm everything and compare."""
    try:
        plain = OFF.prepare(case.model)
        feeds = case.feeds if case.feeds is not None else made_up(plain)
        golden = plain.run(feeds)
    except OnnxfiError as error:
        return Verdict(case.name, "the runtime does not run it", str(error))
    except Exception as error:  # inputs that are no arrays
        return Verdict(case.name, "its inputs are no tensors", str(error))
    if not golden:
        return Verdict(case.name, "no output that is a tensor of numbers")
    data = Data.of_arrays(feeds, None, BatchLayout(0, (), None), "the case's own")
    try:
        done = instrument(load(case.model), all=True, data=data)
    except OnnxfiError as error:
        return Verdict(case.name, "refused", str(error))
    if not done.armed.sites:
        reasons = "; ".join(done.left_out) or "no activation"
        return Verdict(case.name, "no target for faults", reasons)
    return _compare(case, done.armed, feeds, golden)


def made_up(session: Any) -> dict[str, Any]:
    """Return made-up inputs of a model."""
    return dict(next(iter(open_data(None, session.inputs, limit=2).batches(_size(session)))).feeds)


def _size(session: Any) -> int:
    return open_data(None, session.inputs, limit=1).layout.fixed or 2


def _compare(case: Case, armed: Armed, feeds: dict[str, Any], golden: dict[str, Any]) -> Verdict:
    sites = len(armed.sites)
    site = _readable(armed, set(golden))
    try:
        session = OFF.prepare(_with_output(armed.proto, site))
        found = session.run(feeds, [*golden, *([site.name] if site and site.name not in golden else [])])
    except OnnxfiError as error:
        return Verdict(case.name, "failed", f"the armed model does not run: {error}", sites)
    exact = all(same_bytes(array, found[name]) for name, array in golden.items())
    half = any(a.target.dtype == "float16" for a in armed.sites)
    random = any(n.op_type in _RANDOM for n in armed.proto.graph.node)
    if not exact and not (half or random):
        return Verdict(case.name, "failed", "disarmed is not the plain model", sites)
    if site is None or random or not found[site.name].size:
        return Verdict(case.name, "passed", "no output could be read back", sites, exact=exact)
    return _check_faulty(case, armed, feeds, site, session, found[site.name], exact)


_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
}


def _readable(armed: Armed, outputs: set[str]) -> Activation | None:
    """The value in the middle of the graph that can be read back; an output of the model where there is no other."""
    able = [a for a in armed.sites if (not a.path and a.target.word.bits >= 8) or a.target.dtype == "bool"]
    able = [a for a in able if not a.path and a.target.kind == "activation"]
    # A faulty integer may be a shape further on, which no model survives: outputs are read back instead.
    floats = [a for a in able if a.target.word.is_float or a.name in outputs]
    return floats[len(floats) // 2] if floats else None


def _with_output(proto: onnx.ModelProto, site: Activation | None) -> bytes:
    if site is None or site.name in [o.name for o in proto.graph.output]:
        return proto.SerializeToString()
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    made.graph.output.append(onnx.ValueInfoProto(name=site.name))
    return made.SerializeToString()


def _check_faulty(
    case: Case, armed: Armed, feeds: dict[str, Any], site: Activation, session: Any, before: Any, exact: bool
) -> Verdict:
    word, sites = site.target.word, len(armed.sites)
    rows = np.moveaxis(before, site.axis, 0) if site.axis is not None else before.reshape(1, *before.shape)
    flat = rows.reshape(len(rows), -1)
    element = flat.shape[1] // 2
    bits = sum(1 << k for k in (word.field("exponent") if word.is_float else range(word.bits)))
    fed = columns(armed, [ActivationFault(site, element, Mask(word.full & ~bits, bits))])
    try:
        after = session.run(feeds | fed, [site.name])[site.name]
    except EngineError as error:
        return Verdict(case.name, "failed", f"armed: {error}", sites)
    expected = flat.copy()
    expected[:, element] = word.values((word.words(flat[:, element]) & np.uint64(word.full & ~bits)) | np.uint64(bits))
    shaped = expected.reshape(rows.shape)
    predicted = np.moveaxis(shaped, 0, site.axis) if site.axis is not None else shaped.reshape(before.shape)
    if not _equal(word, after, predicted):
        return Verdict(case.name, "failed", f"{site.target.id!r} does not read back as numpy predicts", sites)
    return Verdict(case.name, "passed", "", sites, read_back=True, exact=exact)


def _equal(word: Word, one: Any, other: Any) -> bool:
    """Byte for byte, but that NaN is NaN."""
    words = [word.words(a) for a in (one, other)]
    same = words[0] == words[1]
    if word.is_float:
        with np.errstate(invalid="ignore"):
            same |= np.isnan(one.astype(np.float64)) & np.isnan(other.astype(np.float64))
    return one.shape == other.shape and bool(np.all(same))


KINDS = {"node": node_cases, "files": file_cases, "models": model_cases}


def run(kinds: list[str], every: int = 1) -> dict[str, list[Verdict]]:
    """The verdicts by kind; one model in `every`."""
    out: dict[str, list[Verdict]] = {}
    for kind in kinds:
        out[kind] = [check(case) for k, case in enumerate(KINDS[kind]()) if k % every == 0]
    return out


def report(verdicts: dict[str, list[Verdict]]) -> str:
    """The report as Markdown."""
    lines = ["| | models | run | armed | values armed | disarmed byte-identical | read back right | failed |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for kind, rows in verdicts.items():
        tried = [v for v in rows if v.end in ("passed", "failed")]
        ran = [v for v in rows if not v.end.startswith(("the runtime", "its inputs"))]
        lines.append(
            f"| {kind} | {len(rows):,} | {len(ran):,} | {len(tried):,} | {sum(v.sites for v in tried):,} "
            f"| {sum(v.end == 'passed' and v.exact for v in tried):,} | {sum(v.read_back for v in tried):,} "
            f"| {sum(v.end == 'failed' for v in tried)} |"
        )
    lines += ["", "Not tried, by reason:", ""]
    for kind, rows in verdicts.items():
        ends = Counter(v.end for v in rows if v.end not in ("passed", "failed"))
        lines += [f"- {kind}: {many} {end}" for end, many in ends.most_common()]
        lines += [f"- {kind}, passed, not byte-identical: {v.case}" for v in rows if v.end == "passed" and not v.exact]
    return "\n".join(lines)


def main() -> None:
    """Run, print the report and what failed; the exit code says whether anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="node,files,models")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    start = time.time()
    verdicts = run(given.kind.split(","), given.every)
    print(report(verdicts))
    for rows in verdicts.values():
        for v in rows:
            if v.end == "failed" or (given.verbose and v.end != "passed"):
                print(f"{v.end}: {v.case}: {v.detail}")
    print(f"{time.time() - start:.0f} s")
    raise SystemExit(any(v.end == "failed" for rows in verdicts.values() for v in rows))


if __name__ == "__main__":
    main()
