"""Mutate real models; onnxfi must accept each or refuse it with an error of its own: no traceback, hang or leak.

    python scripts/fuzz.py --count 100000 --report docs/explanation/fuzz.md   # as the tests' figures were taken
    python scripts/fuzz.py --one 12345                            # one mutation again, with its traceback

Each mutation is opened, inspected, sampled and injected. One that is accepted must also be right: exactly the bits of
the faults differ, and the same flips again restore the bytes. Workers have a limit of time and memory; mutation
number i is a function of the seed and i alone, so every finding can be looked at again. Exit 1 where there are any.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 1 << 20  # bytes of a model that is mutated
LIMIT_S = 10  # of processor time for one mutation of such a model; the slowest take half a second
LIMIT_MB = 400  # beyond what a worker holds after its first model
BATCH = 250  # mutations that a worker reports together
ODD_NUMBERS = (
    *(0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 2**14, 2**16, 2**21, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**40, 2**56, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
ODD_TEXTS = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xc3",
        b"../w.bin",
        b"/etc/passwd",
        b"w.bin",
        b".",
        b"m.onnx",
        b"\x1b[2J",
        b"a" * 5000,
    ),
    *(b"onnxfi:0", b"onnxfi:x", b"::", b"W[0]:1", b"If", b"Constant", b"ai.onnx.ml", b"location", b"-1", b"9" * 30),
)


class Field(NamedTuple):
    """A field of a message: its number, wire type, and where it, its payload and the lengths around it lie."""

    number: int
    wire: int
    start: int
    head: int
    payload: int
    end: int
    around: tuple[tuple[int, int, int], ...]


def varint(number: int) -> bytes:
    number %= 1 << 64
    out = bytearray()
    while number > 127:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    number = shift = 0
    while at < end and shift < 70:
        number |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return number, at
        shift += 7
    raise ValueError("no varint")


def fields(data: bytes, start: int, end: int, around: tuple[tuple[int, int, int], ...] = ()) -> list[Field]:
    """The fields of a message and of what looks like messages inside it; ValueError where it is none."""
    out = []
    at = start
    while at < end:
        tag, head = read_varint(data, at, end)
        wire, payload = tag & 7, head
        if wire == 2:
            length, payload = read_varint(data, head, end)
            stop = payload + length
        elif wire == 0:
            stop = read_varint(data, head, end)[1]
        else:
            stop = head + {1: 8, 5: 4}.get(wire, 1 << 62)
        if stop > end or not 0 < tag >> 3 < 1 << 12:
            raise ValueError("no message")
        out.append(Field(tag >> 3, wire, at, head, payload, stop, around))
        if wire == 2 and stop - payload > 1 and len(around) < 30:
            with suppress(ValueError):  # text, numbers or bytes
                out += fields(data, payload, stop, (*around, (head, payload, stop)))
        at = stop
    return out


def put(data: bytes, field: Field, start: int, end: int, new: bytes, *, mend: bool) -> bytes:
    """Replace bytes of a field; `mend` sets the lengths of the messages around it right."""
    data = data[:start] + new + data[end:]
    grown = len(new) - (end - start)
    for head, payload, stop in reversed(field.around) if mend else ():
        length = varint(stop - payload + grown)
        data = data[:head] + length + data[payload:]
        grown += len(length) - (payload - head)
    return data


def edit_field(data: bytes, rng: random.Random, known: list[Field]) -> bytes:
    """One edit of one field: what a damaged or hostile writer might have put there."""
    # Small fields hold the structure; most bytes are weights, where any value is a weight.
    field = min(rng.sample(known, min(2, len(known))), key=lambda f: f.end - f.start)
    other = rng.choice(known)
    whole, mend = data[field.start : field.end], rng.random() < 0.8
    tag, payload = data[field.start : field.head], data[field.payload : field.end]
    spare = data[other.start : other.end][: 1 << 16]
    number, odd = rng.choice(ODD_NUMBERS), rng.choice(ODD_TEXTS)
    edits: list[Callable[[], bytes]] = [
        lambda: whole * rng.choice((2, 2, 2, 3, 50)),
        lambda: b"",
        lambda: whole + spare,
        lambda: spare,
        lambda: varint(field.number << 3 | rng.randrange(8)) + data[field.head : field.end],
        lambda: varint(rng.choice((rng.randrange(1, 31), number)) << 3 | field.wire) + data[field.head : field.end],
        lambda: varint(field.number << 3 | 3) * rng.choice((1, 50, 101)) + whole,
    ]
    if field.wire == 2:
        edits += [
            lambda: tag + varint(rng.choice((len(payload) + rng.randrange(-9, 10), number))) + payload,
            lambda: tag + varint(len(payload) // 2) + payload[: len(payload) // 2],
            lambda: tag + varint(len(odd)) + odd,
            lambda: tag + varint(len(payload) + len(spare)) + payload + spare,
            lambda: tag + varint(len(spare)) + spare,
            lambda: nested(tag, whole, rng.choice((1, 2, 40, 120))),
            lambda: (
                tag + bytes([len(payload) & 127 | 128, len(payload) >> 7 & 127 | 128, len(payload) >> 14]) + payload
            ),
        ]
    elif field.wire == 0:
        edits += [lambda: tag + varint(number), lambda: tag + varint(number)] * 4
    return put(data, field, field.start, field.end, rng.choice(edits)(), mend=mend)


def nested(tag: bytes, whole: bytes, times: int) -> bytes:
    for _ in range(times):
        whole = tag + varint(len(whole)) + whole
    return whole


def edit_bytes(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """One edit that knows nothing of the format: flips, truncation, splices."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    if kind == 1:
        return data[:at]
    length = rng.choice((1, 2, 10, 300, 5000))
    if kind == 2:
        return data[:at] + data[at + length :]
    start = rng.randrange(len(other) + 1)
    if kind == 3:
        return data[:at] + other[start : start + length] + data[at + length * rng.randrange(2) :]
    return data[:at] + bytes([rng.choice((0, 127, 128, 255))]) * length + data[at + length :]


@cache
def corpus() -> tuple[tuple[str, bytes, tuple[Field, ...]], ...]:
    """The models that are mutated: those shipped, those of the onnx wheel, and one that uses every feature."""
    import onnx

    from onnxfi.graph.model.loading import load

    paths = [*sorted((ROOT / "models").glob("*.onnx"))]
    paths += sorted((Path(onnx.__file__).parent / "backend/test/data").rglob("*.onnx"))
    whole = {path.parent.name + "/" + path.stem: path.read_bytes() for path in paths}
    models = {name: data for name, data in whole.items() if len(data) <= LARGEST and load(data).targets}
    models |= {"every feature": every_feature()}
    return tuple((name, data, tuple(fields(data, 0, len(data)))) for name, data in models.items())


def every_feature() -> bytes:
    """A small model with branches, functions, sparse and typed tensors, lists, and external data in w.bin."""
    from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

    w = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    far = TensorProto(name="far", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "w.bin"), ("offset", "8"), ("length", "16")):
        far.external_data.add(key=key, value=text)
    typed = [
        helper.make_tensor(f"t{k}", k, [3], [1, 2, 3])
        for k in (1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21, 22, 23, 25)
    ]
    sparse = SparseTensorProto(
        values=numpy_helper.from_array(np.ones(2, np.float32), "sp"),
        indices=numpy_helper.from_array(np.array([1, 5]), ""),
        dims=[9],
    )
    inner = helper.make_graph([helper.make_node("Constant", [], ["k"], value_ints=[1, -2])], "inner", [], [], [w])
    then = helper.make_graph([helper.make_node("If", ["c"], ["r"], then_branch=inner)], "then", [], [], [w])
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=inner),
        helper.make_node("Constant", [], ["f"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["s"], value_float=1.0),
        helper.make_node("TreeEnsembleRegressor", ["x"], ["t"], domain="ai.onnx.ml", nodes_values=[0.5] * 90),
        helper.make_node("F", ["w"], ["g"], domain="own"),
        helper.make_node("Reshape", ["far", "t7"], ["h"]),
    ]
    opset = helper.make_opsetid("", 20)
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [helper.make_node("Constant", [], ["b"], value=w)], [opset]
    )
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, ["n"])], [w, far, *typed])
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph, ir_version=10, opset_imports=[opset, opset], functions=[function])
    model.training_info.add().algorithm.CopyFrom(inner)
    return model.SerializeToString()


def mutation(number: int, seed: int) -> tuple[str, bytes]:
    """Mutation `number`: the name of its model, and its bytes."""
    rng = random.Random(f"{seed}/{number}")
    models = corpus()
    name, data, known = models[-1] if rng.random() < 0.2 else rng.choice(models)
    if rng.random() < 0.75 and known:
        data = edit_field(data, rng, list(known))
    if rng.random() < 0.3 or data == models[-1][1]:
        data = edit_bytes(data, rng, rng.choice(models)[1])
    return name, data


def attempt(data: bytes, folder: Path, seed: int) -> str:
    """Open, inspect, sample and inject a model: `accepted`, or the class of the error that refused it.

    AssertionError where an accepted one came out wrong; any other error is a finding too.
    """
    from onnxfi.errors import OnnxfiError
    from onnxfi.faults.space import Selector
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.inject.weights import inject, inspect, sample

    path, out, back = (folder / name for name in ("m.onnx", "faulty.onnx", "back.onnx"))
    path.write_bytes(data)
    try:
        model = load(path)
        inspect(model)
        # Every other time also what is left out unless it is named.
        named = tuple("=" + t.id for t in model.targets) if seed % 2 and len(model.targets) < 60 else ()
        chosen = Selector(include=named)
        drawn = sample(model, count=min(5, chosen.space(model.targets).size), selector=chosen, seed=seed)
        done = inject(model, drawn, out)
    except OnnxfiError as error:
        text = str(error)
        assert "\x1b" not in text, "the message holds a terminal escape"
        assert "\0" not in text, "the message holds a NUL"
        return type(error).__name__
    assert done.faulty_digest == load(out).digest, "the digest is another"
    if not done.resized and not model.external:
        old, new = np.frombuffer(data, np.uint8), np.frombuffer(out.read_bytes(), np.uint8)
        assert len(old) == len(new), "the length is another"
        assert np.bitwise_count(old ^ new).sum() == drawn.drawn, "other bits differ than those of the faults"
        inject(load(out), sample(load(out), sites=[str(fault.site) for fault in drawn.faults]), back)
        assert back.read_bytes() == data, "the same flips again do not restore the bytes"
    return "accepted"


class Late(BaseException):
    """A mutation took longer than it may."""


def work(start: int, stop: int, seed: int) -> None:
    """Try mutations start … stop; prints one line of JSON for each batch and each finding."""

    waited: list[int] = []

    def late(which: int, _: object) -> None:
        # Whoever was stopped and goes on meets an alarm at once: only the second one means that nothing moves.
        if which == signal.SIGALRM and not waited:
            waited.append(which)
            signal.alarm(3 * LIMIT_S)
        else:
            raise Late

    warnings.simplefilter("error")
    os.fsync = lambda descriptor: None  # what is written here need not last
    for which in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(which, late)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "w.bin").write_bytes(bytes(range(32)))
        attempt(corpus()[0][1], folder, 0)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + (LIMIT_MB << 20),) * 2)
        for first in range(start, stop, BATCH):
            ends: Counter[str] = Counter()
            for number in range(first, min(first + BATCH, stop)):
                print(json.dumps({"at": number}), flush=True)
                model, data = mutation(number, seed)
                # Time of the processor, since machines are shared; by the clock only what waits for ever.
                waited.clear()
                signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
                signal.alarm(30 * LIMIT_S)
                try:
                    end = attempt(data, folder, number)
                except (Exception, Late) as error:
                    end = f"finding: {type(error).__name__}"
                    text = traceback.format_exc(limit=-6)
                    print(json.dumps({"finding": number, "model": model, "end": end, "trace": text}), flush=True)
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    signal.alarm(0)
                    for left in folder.iterdir():
                        if left.name != "w.bin":
                            left.unlink()
                ends[end] += 1
            print(json.dumps({"ends": ends}), flush=True)


class Worker:
    """A subprocess over one range of mutations; started again behind one that ended or hung."""

    def __init__(self, start: int, stop: int, seed: int) -> None:
        self.at, self.stop, self.seed = start, stop, seed
        self.ends: Counter[str] = Counter()
        self.findings: list[dict[str, Any]] = []

    def run(self) -> None:
        while self.at < self.stop:
            first = self.at
            command = [sys.executable, __file__, "--work", str(first), str(self.stop), "--seed", str(self.seed)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                ends: Counter[str] = Counter()
                for line in process.stdout:
                    message = json.loads(line)
                    if "ends" in message:
                        ends.update(message["ends"])
                    elif "finding" in message:
                        self.findings.append(message)
                        print(
                            f"mutation {message['finding']} of {message['model']}: {message['end']}\n"
                            f"{message['trace']}",
                            flush=True,
                        )
                    else:
                        self.at = message["at"]
            if process.returncode == 0:
                self.ends.update(ends)
                return
            # What the last batch had before the end is counted again, one by one less the one that ended it.
            done = first + sum(ends.values())
            self.ends.update(ends)
            print(f"mutation {self.at}: the worker ended with {process.returncode}", flush=True)
            self.findings.append({"finding": self.at, "end": f"finding: ended with {process.returncode}"})
            self.ends["finding: worker ended"] += 1
            short = Worker(done, self.at, self.seed)
            short.run()
            self.ends.update(short.ends)
            self.at += 1


def report(path: Path, ends: Counter[str], args: argparse.Namespace, took_s: float) -> None:
    import onnx

    version = metadata.version("onnxfi")

    total = sum(ends.values())
    refused = {name: n for name, n in ends.items() if name.endswith("Error") and not name.startswith("finding")}
    other = sum(n for name, n in ends.items() if name.startswith("finding"))
    rows = "\n".join(f"| refused with {name} | {n:,} |" for name, n in sorted(refused.items(), key=lambda p: -p[1]))
    path.write_text(f"""# Fuzzing

Real models, mutated, opened, inspected, sampled and injected: byte flips, truncation, splices, fields doubled, removed,
moved and nested, other numbers, lengths, tags and texts. An accepted one must be right too: exactly the bits of the
faults differ, and the same flips again restore the bytes.

| mutations | {total:,} |
|---|---|
| accepted | {ends["accepted"]:,} |
| refused | {sum(refused.values()):,} |
| other: a traceback, more than {LIMIT_S} s of processor time, more than {LIMIT_MB} MB, or a wrong result | {other:,} |

Of the refused:

| | |
|---|---|
{rows}

Taken over {len(corpus())} models with

    python scripts/fuzz.py --count {args.count} --seed {args.seed} --workers {args.workers} \\
        --report docs/explanation/fuzz.md

in {took_s / 60:.0f} minutes; onnxfi {version}, onnx {onnx.__version__}, Python {sys.version.split()[0]}.
Mutation number i is a function of the seed and i: `--one I` looks at it again. The core tests try a few hundred more
(tests/graph/model/test_loading.py).
""")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--one", type=int, metavar="I")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work, args.seed)
        return 0
    if args.one is not None:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "w.bin").write_bytes(bytes(range(32)))
            model, data = mutation(args.one, args.seed)
            print(f"mutation {args.one} of {model}, {len(data):,} bytes")
            print(attempt(data, Path(name), args.one))
        return 0
    from threading import Thread

    began = time.monotonic()
    borders = [args.count * k // args.workers for k in range(args.workers + 1)]
    workers = [Worker(a, b, args.seed) for a, b in pairwise(borders)]
    threads = [Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = sum((worker.ends for worker in workers), Counter())
    for name, n in sorted(ends.items(), key=lambda pair: -pair[1]):
        print(f"{n:8,} {name}")
    if args.report:
        report(args.report, ends, args, time.monotonic() - began)
    return 1 if any(name.startswith("finding") for name in ends) else 0


if __name__ == "__main__":
    raise SystemExit(main())
