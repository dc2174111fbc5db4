"""Cost of the segments of a model, and how much of what trials give them differs from the golden run.

    python scripts/bench/segments.py MODEL [--trials 200] [--batch 8] [--rounds 9]

For each segment on one thread, in turns: the processor time of a run of a batch, with optimisation `all` and
`extended` (without blocks of channels), and of so many samples in runs of two and of four batches; all segments one
after the other against the whole model. For each convolution of 3 × 3 with stride 1: a run of a batch against one of
its images side by side, with zeros between them, and whether the bits are the same. Then single faults in stored words
run, uniform over the network, and of what each segment is run with is printed how many samples, rows (tokens; of images
places) and numbers differ.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
from campaign import made_up
from onnx import helper, numpy_helper

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.graph.partition.subgraph_model import extract_model
from onnxfi.runtime.engine.onnx_runtime import OrtEngine
from onnxfi.runtime.partial.segmented_model import SampleRows, SegmentedModel

Arrays = Mapping[str, np.ndarray]
#: Dimensions of images.
_IMAGES = 4


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median processor time of each of some runs, in milliseconds."""
    taken = defaultdict[str, list[float]](list)
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            taken[name].append(1e3 * (time.process_time() - begun))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def many(feeds: Arrays, times: int, size: int) -> dict[str, np.ndarray]:
    """Return the feeds of so many batches."""
    return {n: np.concatenate([a] * times) if a.ndim and len(a) == size else a for n, a in feeds.items()}


def time_segments(segmented: SegmentedModel, whole: Callable[[], object], size: int, rounds: int) -> None:
    """Print what each segment takes."""
    net, sessions, golden = segmented.segmentation.net, segmented.segment_sessions, segmented.golden
    every: dict[str, Callable[[], object]] = {}
    extended = OrtEngine(provider="cpu", optimization="extended")
    for number, segment in enumerate(segmented.segmentation.segments):
        feeds, session = golden.values(0, segment.inputs), sessions.sessions[number]
        every[f"{number}"] = partial(session.run, feeds)
        part = extract_model(net, segment.nodes, sessions.feeds(segment.inputs), segment.outputs)
        other = extended.prepare_part(part.data, part.stored)
        runs: dict[str, Callable[[], object]] = {"all": every[f"{number}"], "extended": partial(other.run, feeds)}
        runs |= {f"{times} batches": partial(session.run, many(feeds, times, size)) for times in (2, 4)}
        try:
            found = in_turns(runs, rounds)
        except Exception as error:  # a shape that was computed for one batch
            found = in_turns({name: runs[name] for name in ("all", "extended")}, rounds)
            print(f"segment {number}: more batches do not run ({str(error)[:60]} …)")
        each = {name: ms / int(name[0]) if name[0].isdigit() else ms for name, ms in found.items()}
        print(f"segment {number} ({', '.join(segment.inputs)[:40]}): ", end="")
        print(", ".join(f"{name} {ms:.2f} ms" for name, ms in each.items()))
    found = in_turns({**every, "whole": whole}, rounds)
    total = sum(ms for name, ms in found.items() if name != "whole")
    print(f"all segments {total:.1f} ms, {total / found['whole']:.3f} of the whole model's {found['whole']:.1f} ms")


def side_by_side(shape: tuple[int, ...], rounds: int) -> None:
    """Print what a convolution of 3 × 3 takes of images of a shape, and of all of them side by side."""
    images, channels, height, width = shape
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, channels, None, None])
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3), np.float32)
    graph = helper.make_graph([node], "g", [given], [onnx.ValueInfoProto(name="y")])
    graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    session = OrtEngine(provider="cpu").prepare(model.SerializeToString())
    padded = np.zeros((images, channels, height, width + 1), np.float32)
    padded[..., :width] = np.random.default_rng(1).standard_normal(shape, np.float32)
    wide = np.ascontiguousarray(padded.transpose(1, 2, 0, 3).reshape(1, channels, height, -1))
    apart = np.ascontiguousarray(padded[..., :width])
    back = session.run({"x": wide})["y"][0].reshape(channels, height, images, width + 1).transpose(2, 0, 1, 3)
    same = np.ascontiguousarray(back[..., :width]).tobytes() == session.run({"x": apart})["y"].tobytes()
    runs = {"apart": partial(session.run, {"x": apart}), "wide": partial(session.run, {"x": wide})}
    found = in_turns(runs, rounds)
    both = f"{found['apart']:.1f} ms, side by side {found['wide']:.1f} ms"
    print(f"3 × 3, {channels} channels, {height} × {width}: {both}, {'the same' if same else 'other'} bits")


def differing(executor: TrialExecutor) -> None:
    """Print how much of the inputs of segments differs in trials."""
    plan = make_plan(executor.opened.campaign, executor.opened.fault_targets)
    golden = executor.golden_runs.run_again()
    shares = defaultdict[tuple[int, str], list[tuple[float, float, float]]](list)
    run_segment = SegmentedModel.run_segment

    def seen(self: SegmentedModel, number: int, rows: SampleRows, found: Arrays) -> dict[str, np.ndarray]:
        for name in (name for name in self.segmentation.segments[number].inputs if name in found):
            differs = np.ascontiguousarray(found[name]).view(np.uint8) != rows.values([name])[name].view(np.uint8)
            row = differs.any(1 if differs.ndim == _IMAGES else -1)
            samples = row.reshape(len(row), -1).any(1)
            words = differs.reshape(-1, found[name].itemsize).any(1)
            shares[number, name].append((float(samples.mean()), float(row.mean()), float(words.mean())))
        return run_segment(self, number, rows, found)

    with patch.object(SegmentedModel, "run_segment", seen):
        trials = [planned.lines.splitlines() for planned in plan.trials()]
        done = executor.together(plan.header, golden, trials)
        for k in range(len(trials)):
            if k not in done:
                executor.trial(plan.header, golden, trials[k])
    for (number, name), rows in sorted(shares.items()):
        samples, places, numbers = np.array(rows).T
        print(
            f"segment {number} ({name}): {len(rows)} runs; differ {samples.mean():.1%} of the samples that run, "
            f"{places.mean():.1%} of the rows, {numbers.mean():.1%} of the numbers; "
            f"under a tenth of the rows in {np.mean(places < 0.1):.1%} of the runs"
        )


def main() -> None:
    """Measure, and print."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("model", type=Path)
    parse.add_argument("--trials", type=int, default=200)
    parse.add_argument("--batch", type=int, default=8)
    parse.add_argument("--rounds", type=int, default=9)
    given = parse.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = OrtEngine(provider="cpu").prepare(given.model)
        feeds = {port.name: made_up(port, given.batch) for port in session.inputs}
        np.savez(Path(folder) / "data.npz", **feeds)
        files = (str(given.model), str(Path(folder) / "data.npz"))
        executor = TrialExecutor.open(
            Campaign(*files, single=True, trials=given.trials, batch=given.batch, provider="cpu"), 4 << 30
        )
        if executor.weights is None:
            raise SystemExit(f"{given.model} does not run in segments")
        time_segments(executor.weights.segmented, partial(session.run, feeds), given.batch, given.rounds)
        segmented = executor.weights.segmented
        inputs = [a for one in segmented.segmentation.segments for a in segmented.golden.values(0, one.inputs).values()]
        for shape in dict.fromkeys(a.shape for a in inputs if a.ndim == _IMAGES):
            side_by_side(shape, given.rounds)
        differing(executor)


if __name__ == "__main__":
    main()
