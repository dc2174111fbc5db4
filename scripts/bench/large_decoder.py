"""Memory of onnxfi on a large decoder: a GPT of more than 2 GB, its weights as external data, without training.

python scripts/bench/large_decoder.py [--layers 10] [--width 2048] [--trials 3] [--only inspect,inject,eval,run]
    [--workers 1] [--memory 1GiB]

Makes the model (2.3 GB of float32 as given) and two texts of 32 tokens, runs `onnxfi inspect`, `inject`, `eval` and
`run` on them, and prints the highest memory of each with all processes that it starts, as scripts/bench/memory.py
counts it, beside the target: the size of the model and 1 GB. `run` is measured once for each number of workers. Exits
with 1 where one is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from char_gpt_graph import Shape, build  # noqa: E402
from memory import peak  # noqa: E402

_GB = 1e9


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """Return weights of the shapes and about the sizes that training gives."""
    draw, wide = np.random.default_rng(0), 4 * shape.width

    def normal(*dims: int) -> np.ndarray:
        return draw.standard_normal(dims, np.float32) * np.float32(dims[0] ** -0.5)

    found = {
        "embed_tokens.weight": normal(shape.vocabulary, shape.width),
        "embed_positions.weight": normal(shape.positions, shape.width),
    }
    sizes = {f"attention.{name}_proj": (shape.width, shape.width) for name in "qkvo"}
    sizes |= {"mlp.fc1": (shape.width, wide), "mlp.fc2": (wide, shape.width)}
    norms = ["norm"]
    for k in range(shape.layers):
        norms += [f"layers.{k}.norm1", f"layers.{k}.norm2"]
        for name, dims in sizes.items():
            found[f"layers.{k}.{name}.weight"] = normal(*dims)
            found[f"layers.{k}.{name}.bias"] = np.zeros(dims[1], np.float32)
    for name in norms:
        found[f"{name}.weight"] = np.ones(shape.width, np.float32)
        found[f"{name}.bias"] = np.zeros(shape.width, np.float32)
    return found


def make(folder: Path, shape: Shape) -> Path:
    """Write the model and the texts."""
    model = folder / "decoder.onnx"
    if not model.exists():
        made = build(weights(shape), shape, check=False)
        onnx.save_model(made, model, save_as_external_data=True, location="decoder.onnx.data")
    ids = np.random.default_rng(1).integers(0, shape.vocabulary, (2, 32))
    np.savez(folder / "texts.npz", input_ids=ids)
    return model


def main() -> int:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--only", default="inspect,inject,eval,run")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    shape = Shape(args.vocabulary, args.width, args.layers, args.width // 64)
    task = ["--data", "texts.npz", "--task", "language-model", "--batch", "1"]
    commands = {
        "inspect": ["inspect", "decoder.onnx"],
        "inject": ["inject", "decoder.onnx", "--site", "layers.0.mlp.fc1.weight[0]:30", "--out", "faulty.onnx"],
        "eval": ["eval", "decoder.onnx", *task],
    }
    campaign = ["run", "decoder.onnx", *task, "--single", "--trials", str(args.trials), "--memory", args.memory]
    for workers in args.workers.split(","):
        commands[f"run, workers {workers}"] = [*campaign, "--workers", workers, "--out", "s.db"]
    with tempfile.TemporaryDirectory() as made:
        folder = args.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        model = make(folder, shape)
        size = sum(file.stat().st_size for file in folder.glob(model.name + "*"))
        print(
            f"model {size / _GB:.2f} GB\n"
            "| command | peak | × the model | own | target | seconds |\n|---|---|---|---|---|---|"
        )
        missed, target = False, size + _GB
        for name, words in commands.items():
            if name.partition(",")[0] not in args.only.split(","):
                continue
            for old in (*folder.glob("faulty.onnx*"), *folder.glob("s.db*")):
                old.unlink()
            most, own, took = peak([sys.executable, "-m", "onnxfi", *words], folder)
            missed |= most > target
            print(
                f"| {name} | {most / _GB:.2f} GB | {most / size:.2f} | {own / _GB:.2f} GB | {target / _GB:.2f} GB | "
                f"{took:.1f} |",
                flush=True,
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
