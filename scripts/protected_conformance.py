"""Protections on every model at hand: fault-free outputs on the calibration data stay byte for byte.

For each model that ONNX Runtime runs and each protection: protect every tensor that it takes, calibrated on the model's
own inputs, with optimisation off on both sides (on for clip-weights, which the runtime folds when it loads a model:
products round otherwise where weights are no constants); outputs must be the plain model's, byte for byte. Protecting
once more must be refused. What a protection refuses is counted by reason. Models as in scripts/conformance.py: the node
tests of the onnx package, its other models, and the shipped and fetched ones.

python scripts/protected_conformance.py [--every N] [--kind node,files,models]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from conformance import KINDS, OFF, Case, made_up

from onnxfi.errors import ModelError, OnnxfiError
from onnxfi.faults.space import Selector
from onnxfi.graph.dataflow.batch_layout import BatchLayout
from onnxfi.graph.dataflow.random_nodes import RANDOM_OPERATORS
from onnxfi.graph.model.graph_index import all_nodes
from onnxfi.graph.model.loading import Model, load, parse
from onnxfi.protection.protection import Setting
from onnxfi.protection.protections import parse_protection
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.engine.ports import Array, same_bytes

#: With `--include` of every activation, but for weights, which have their default.
PROTECTIONS = (
    "range:clip", "range:zero", "range:average", "nan-filter", "duplicate", "triplicate", "checksum", "clip-weights",
)  # fmt: skip
ON = OrtEngine(provider="cpu")
#: Where(c, -0.0, x) is +0.0 in ONNX Runtime 1.31.1.
ZEROS = "the sign of zeros differs"
SAME, FAILED = "byte-identical", "failed"


@dataclass(frozen=True)
class Verdict:
    """The end of a protection on a model: byte-identical, another one, or failed, with a detail."""

    case: str
    protection: str
    end: str
    detail: str = ""


def check(case: Case) -> Iterator[Verdict]:
    """Protect a model by each protection, and compare."""
    try:
        plain = OFF.prepare(case.model)
        feeds = case.feeds if case.feeds is not None else made_up(plain)
        golden, folded = plain.run(feeds), ON.prepare(case.model).run(feeds)
        model = load(case.model)
    except Exception:  # what the runtime does not run, and inputs that are no arrays
        return
    random = any(node.op_type in RANDOM_OPERATORS for node in all_nodes(model.proto.graph.node))
    if not golden or random:
        return
    data = Data.of_arrays(feeds, None, BatchLayout(0, (), None), "the case's own")
    for text in PROTECTIONS:
        on = text == "clip-weights"
        yield _protected(case, model, data, folded if on else golden, text, ON if on else OFF)


def _protected(case: Case, model: Model, data: Data, golden: dict[str, Array], text: str, engine: OrtEngine) -> Verdict:
    selector = Selector() if text in ("clip-weights", "checksum") else Selector(include=("*",))
    feeds = dict(next(iter(data.batches(1))).feeds)
    try:
        edit = parse_protection(text).passes(Setting(model, selector, data, OFF))
        made, _ = edit.run(parse(model))
    except OnnxfiError as error:
        return Verdict(case.name, text, _reason(str(error)), str(error))
    try:
        found = engine.prepare(made.SerializeToString()).run(feeds, list(golden))
    except OnnxfiError as error:
        return Verdict(case.name, text, FAILED, f"the protected model does not run: {error}")
    try:
        edit.run(made)
        return Verdict(case.name, text, FAILED, "a second time is not refused")
    except ModelError:
        pass
    apart = [name for name, array in golden.items() if not same_bytes(array, found[name])]
    if not apart:
        return Verdict(case.name, text, SAME)
    equal = all(np.array_equal(golden[name], found[name], equal_nan=golden[name].dtype.kind == "f") for name in apart)
    return Verdict(case.name, text, ZEROS if equal else FAILED, f"outputs {', '.join(apart)} differ")


def _reason(error: str) -> str:
    """Return the kind of a refusal."""
    for words in ("is not finite", "is empty", "cannot be computed again", "needs opset", "no gain expected"):
        if words in error:
            return f"refused: {words}"
    nothing = ("takes no", "finds no", "matches no", "names '", "has no checksum")
    return "nothing to protect" if any(words in error for words in nothing) else "refused: " + error


def run(kinds: list[str], every: int = 1) -> list[Verdict]:
    """Return the verdicts on one model in `every`."""
    cases = [case for kind in kinds for k, case in enumerate(KINDS[kind]()) if k % every == 0]
    return [verdict for case in cases for verdict in check(case)]


def report(verdicts: list[Verdict]) -> str:
    """Return the report as Markdown."""
    ends = [end for end, _ in Counter(v.end for v in verdicts).most_common()]
    lines = ["| protection | " + " | ".join(ends) + " |", "|---|" + "---|" * len(ends)]
    for text in PROTECTIONS:
        counts = Counter(v.end for v in verdicts if v.protection == text)
        lines.append(f"| `{text}` | " + " | ".join(f"{counts[end]:,}" for end in ends) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the report and what failed; the exit code says whether anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="node,files,models")
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    start = time.time()
    verdicts = run(given.kind.split(","), given.every)
    print(f"{len({v.case for v in verdicts}):,} models\n{report(verdicts)}")
    failed = [v for v in verdicts if v.end == FAILED]
    for v in failed:
        print(f"{v.case}, {v.protection}: {v.detail}")
    print(f"{time.time() - start:.0f} s")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
