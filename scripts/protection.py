"""Reproduce what protections gain and cost, and draw accuracy over bit error rates with them.

    python scripts/protection.py [FOLDER] [--only PART]...

Prints the tables of docs/how-to/protect.md and docs/reference/protections.md; the figure goes to
docs/figures/protection.svg, or into FOLDER. Calibration takes other samples than scoring. Networks are the shipped ones
and two published ones, MiniLM and silero-vad, where scripts/export_minilm.py and scripts/fetch_models.py have brought
them. Takes about 4 minutes of one core, nearly half of them for MiniLM; each part says what it took.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from math import comb
from pathlib import Path

import numpy as np

from onnxfi import parse_fault
from onnxfi.campaign.report.figures import write_figures
from onnxfi.campaign.report.paired_comparison import PairedComparison, compare_paired
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.run.runner import run
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.faults.space import Selector
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.graph.model.loading import load
from onnxfi.protection.coded_memory import CodedMemory
from onnxfi.protection.memory_codes import parse_memory_code
from onnxfi.protection.protect import protect
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.statistics.intervals import Interval

ROOT = Path(__file__).resolve().parent.parent
MODELS, FETCHED = ROOT / "models", ROOT / "fetched"
MINILM, VAD = FETCHED / "minilm.onnx", FETCHED / "silero_vad.onnx"
CALIBRATION, SCORED, LINES = 500, 100, 200
RATES, HIGH = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3), (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
REPEAT = 16
#: The top exponent bit of float32: a network whose faults lie there alone shows most damage in fewest trials.
TOP = "30"
CLIP, ZERO = ("range:clip", "nan-filter"), ("range:zero",)
PARTS = ("gains", "sweeps", "codes", "detectors", "bodies", "residual", "minilm")
ENGINE = OrtEngine(provider="cpu")


def split(work: Path) -> None:
    """Write calibration data and other data."""
    with np.load(MODELS / "fashion_test.npz") as data:
        images, labels = data["image"], data["labels"]
    np.savez(work / "calibration.npz", image=images[:CALIBRATION], labels=labels[:CALIBRATION])
    np.savez(work / "scored.npz", image=images[CALIBRATION:], labels=labels[CALIBRATION:])


def write_sentences(work: Path) -> None:
    """Write the sentences of examples/pipelines, and lines of the documents to calibrate on."""
    sys.path.insert(0, str(ROOT))
    from examples.pipelines.sentences import TEXTS, sentences

    lines = [line for page in sorted((ROOT / "docs").rglob("*.md")) for line in page.read_text("utf-8").splitlines()]
    plain = [line for line in lines if re.fullmatch(r"[A-Za-z ,.']{40,}", line)]
    for name, texts in (("sentences", TEXTS), ("lines", plain[:: len(plain) // LINES][:LINES])):
        fed = sentences(texts)
        np.savez(work / f"{name}.npz", input_ids=fed["ids"], attention_mask=fed["mask"], labels=fed["labels"])


def protected(work: Path, model: Path, name: str, *what: str, data: str = "calibration.npz") -> Path:
    """Write a protected version of a network."""
    opened = load(model)
    calibration = open_data(work / data, ENGINE.prepare(opened.path or b"").inputs)
    done = protect(opened, what, work / f"{name}.onnx", data=calibration, engine=ENGINE)
    print(f"{name}: {sum(map(len, done.tensors.values()))} tensors; {done.fault_free}", flush=True)
    return done.out


def sweep(work: Path, model: Path, name: str, rates: tuple[float, ...] = RATES, **fields: object) -> Report:
    """Run accuracy over bit error rates; the store has the name that the figure shows."""
    copy = work / "named" / f"{name}.onnx"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(model, copy)
    campaign = Campaign(copy, work / "scored.npz", samples=SCORED, ber=rates, repeat=REPEAT, provider="cpu", **fields)
    for _ in run(campaign, work / f"{name}.db"):
        pass
    found = report(work / f"{name}.db")
    cells = " | ".join(f"{100 * fold.rate('top1').estimate:.1f} %" for fold in found.by_rate)
    print(f"| {name} | {cells} |", flush=True)
    return found


def single(model: Path, other: Path, data: Path, **fields: object) -> PairedComparison:
    """Compare a network and its protected version on single faults."""
    campaign = Campaign("", data, single=True, provider="cpu", **fields)
    with tempfile.TemporaryDirectory() as stores:
        return compare_paired(str(model), str(other), campaign, stores)


def percent(i: Interval, sign: str = "") -> str:
    """Return an interval in percent."""
    return f"{100 * i.estimate:{sign}.2f} [{100 * i.low:{sign}.2f}, {100 * i.high:{sign}.2f}]"


def print_gain(title: str, found: PairedComparison) -> None:
    """Print a row of what a protection gains and costs on single faults."""
    rows, task = {row.metric.name: row for row in found.rows}, found.task
    any_of = next((m.name for m in task.metrics if m.any_of == task.headline), "sdc")
    rate, anywhere, due = (rows[name] for name in (task.headline, any_of, "due"))
    assert anywhere.ratio is not None
    golden = ", ".join(f"{m.text(one)} → {m.text(two)}" for m, one, two in found.golden()[:1])
    print(
        f"| {title} | {rate.found.n} | {100 * rate.found.first:.2f} → {100 * rate.found.second:.2f} % | "
        f"{percent(rate.found.difference, '+')} | {anywhere.found.first * rate.found.n:.0f} → "
        f"{anywhere.found.second * rate.found.n:.0f}, p = {anywhere.found.p_value:.2g} | {anywhere.ratio.estimate:.3g} "
        f"[{anywhere.ratio.low:.2g}, {anywhere.ratio.high:.2g}] | {100 * due.found.first:.2f} → "
        f"{100 * due.found.second:.2f} % | {golden} | × {found.second.batch_s / found.first.batch_s:.2f} |",
        flush=True,
    )


def print_detection(title: str, found: PairedComparison) -> None:
    """Print a row of what detectors find and cost."""
    assert found.detection is not None
    d, grown = found.detection, found.second.size_bytes / found.first.size_bytes - 1
    due = next(row.found for row in found.rows if row.metric.name == "due")
    print(
        f"| {title} | {due.n} | {percent(d.coverage)} | {percent(d.critical)} | {percent(d.false_alarms)} | "
        f"{100 * due.first:.2f} → {100 * due.second:.2f} % | × {found.second.batch_s / found.first.batch_s:.2f} | "
        f"{100 * grown:+.1f} % |",
        flush=True,
    )


def print_residual(p: float, interval: float, trials: int = 20) -> None:
    """Print the blocks of the largest tensor of the CNN that SECDED does not correct, beside the formula."""
    model, code, event = load(MODELS / "fashion_cnn.onnx"), parse_memory_code("secded"), parse_fault("flip")
    (target,) = [t for t in model.targets if t.id == "fc1.weight"]
    space = Selector(include=("=fc1.weight",)).space(model.targets, event)
    memory, counts = CodedMemory.over(code, (target,), interval), Counter[str]()
    for trial in range(1, trials + 1):
        faults = draw_faults(space, Sampler("ber", rate=p, seed=7), event, trial)
        counts += memory.read(model, faults, p, 7, trial)[1]
    blocks, each = trials * target.size // code.words_a_block(target.word), p * interval
    formula = blocks * comb(72, 2) * each**2 / interval
    exact = blocks * (1 - (1 - each) ** 72 - 72 * each * (1 - each) ** 71) / interval
    left = counts["detected"] + counts["missed"]
    print(
        f"| {p:g} | {interval:g} | {blocks:,} | {counts['corrected']:,} | {formula:.1f} | {exact:.1f} | {left} "
        f"({(left - exact) / exact**0.5:+.1f} σ) | {counts['missed']} |",
        flush=True,
    )


def print_gains(work: Path) -> None:
    """Print what range restriction gains on single faults, on CNN and transformers."""
    print(
        "\n| faults | trials | rate | difference | trials that change an answer | times rarer | DUE | golden | time |"
    )
    scored = work / "scored.npz"
    for name, trials in (("fashion_cnn", (150, 150)), ("fashion_attention", (300, 150))):
        bare = MODELS / f"{name}.onnx"
        for what in (CLIP, ZERO):
            other = protected(work, bare, f"{name}-{what[0].replace(':', '-')}", *what)
            for target, number in zip(("activations", "weights"), trials, strict=True):
                found = single(bare, other, scored, trials=number, bits=TOP, target=target, samples=SCORED)
                print_gain(f"{name}, {target}, {' and '.join(what)}", found)
    bare = MODELS / "fashion_cnn.onnx"
    clipped = protected(work, bare, "fashion_cnn-weights", "clip-weights")
    found = single(bare, clipped, scored, trials=150, bits=TOP, samples=SCORED)
    print_gain("fashion_cnn, weights, clip-weights", found)


def print_minilm(work: Path) -> None:
    """Print what range restriction gains in a published transformer."""
    if not MINILM.exists():
        print("\nno fetched/minilm.onnx: python scripts/export_minilm.py", flush=True)
        return
    print()
    write_sentences(work)
    embeddings = {"exclude": ("word_embeddings",)}
    for what, target, trials, fields in (
        (ZERO, "activations", 150, {}),
        (ZERO, "weights", 100, embeddings),
        (CLIP, "weights", 60, embeddings),
    ):
        other = protected(work, MINILM, f"minilm-{what[0].replace(':', '-')}", *what, data="lines.npz")
        found = single(
            MINILM, other, work / "sentences.npz", bits=TOP, target=target, task="embedding", trials=trials, **fields
        )
        print_gain(f"MiniLM, {target}, {' and '.join(what)}", found)


def print_detectors(work: Path) -> None:
    """Print coverage, false alarms and cost of detectors."""
    print("\n| faults, detector | trials | coverage | of critical ones | false alarms | DUE | time | size |")
    for name, what, target, trials in (
        ("fashion_cnn", "duplicate", "activations", 200),
        ("fashion_cnn", "checksum", "activations", 200),
        ("fashion_cnn", "checksum", "weights", 300),
        ("fashion_attention", "checksum", "activations", 100),
        ("fashion_attention", "checksum", "weights", 100),
    ):
        bare = MODELS / f"{name}.onnx"
        other = protected(work, bare, f"{name}-{what}", what)
        how = {"target": target, "bits": "exponent", "samples": SCORED, "trials": trials}
        if target == "activations":
            how["op"] = ("Conv", "Gemm", "MatMul")  # results of layers, before their activation functions
        print_detection(f"{name}, {target}, {what}", single(bare, other, work / "scored.npz", **how))


def print_bodies(work: Path) -> None:
    """Print what checksums find in a published model whose layers lie in the branches of an If."""
    if not VAD.exists():
        print("\nno fetched/silero_vad.onnx: python scripts/fetch_models.py --only silero_vad", flush=True)
        return
    random = np.random.default_rng(5)
    noise = random.normal(size=(6, 576)) * random.uniform(0.01, 0.5, (6, 1))
    fed = {"input": noise.astype(np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    np.savez(work / "noise.npz", **fed)
    other = fed | {"input": fed["input"] / 2}
    done = protect(VAD, ["checksum"], work / "silero_vad-checksum.onnx", data=other, engine=ENGINE, batch=1)
    print(f"\nsilero-vad: {len(done.tensors['checksum'])} layers; {done.fault_free}", flush=True)
    how = {"batch": 1, "task": "deviation", "bits": TOP, "include": ("then_branch",), "trials": 40}
    print_detection("silero-vad, weights, checksum", single(VAD, done.out, work / "noise.npz", **how))


def figure(work: Path) -> Iterator[Report]:
    """Run the sweeps of the figure."""
    cnn, int8 = MODELS / "fashion_cnn.onnx", MODELS / "fashion_cnn_int8_qdq.onnx"
    yield sweep(work, cnn, "float32")
    clipped = protected(work, cnn, "fashion_cnn-clip", "range:clip", "nan-filter")
    yield sweep(work, clipped, "float32, range:clip")
    tuned = protected(work, cnn, "fashion_cnn-tuned", "range:tuned", "nan-filter")
    yield sweep(work, tuned, "float32, range:tuned")
    yield sweep(work, int8, "int8")
    yield sweep(work, int8, "int8, secded", memory_code="secded:detected=keep")


def print_sweeps(work: Path, folder: Path) -> None:
    """Print accuracy over bit error rates, and draw it."""
    print(f"\ntop-1 at a bit error rate of {', '.join(f'{rate:g}' for rate in RATES)}")
    found = list(figure(work))
    weights = protected(work, MODELS / "fashion_cnn.onnx", "fashion_cnn-weights", "clip-weights")
    sweep(work, weights, "float32, clip-weights")
    write_figures(found, work / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "figures" / "accuracy.svg", folder / "protection.svg")
    print(folder / "protection.svg")


def print_codes(work: Path) -> None:
    """Print accuracy over bit error rates in memories with a code."""
    print(f"\ntop-1 at a bit error rate of {', '.join(f'{rate:g}' for rate in HIGH)}")
    for code in ("secded:detected=keep", "secded:detected=zero", "cep", "mset", "tmr"):
        name = code.replace(":detected=", " ")
        sweep(work, MODELS / "fashion_cnn.onnx", f"float32, {name}", HIGH, memory_code=code)


def print_residuals() -> None:
    """Print what SECDED leaves, beside the formula."""
    print("\n| p | interval | words | corrected | C(72,2) p² | binomial | left | of them missed |")
    for p in (1e-4, 5e-4, 1e-3):
        for interval in (1.0, 0.1):
            print_residual(p, interval)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; all by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        split(work)
        parts = {
            "gains": lambda: print_gains(work),
            "sweeps": lambda: print_sweeps(work, given.folder),
            "codes": lambda: print_codes(work),
            "detectors": lambda: print_detectors(work),
            "bodies": lambda: print_bodies(work),
            "residual": print_residuals,
            "minilm": lambda: print_minilm(work),
        }
        for name in given.only or PARTS:
            begun = time.process_time()
            parts[name]()
            print(f"{name}: {time.process_time() - begun:.0f} s of processor", flush=True)


if __name__ == "__main__":
    main()
