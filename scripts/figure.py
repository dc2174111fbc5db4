"""Draw the README's figures in SVG: a real run of the command line, as it looks on a terminal, and a campaign's curves.

    python scripts/figure.py [FOLDER]

The commands of FIGURES run in a pseudo-terminal (so not on Windows), and rich draws what they printed; those of CURVES
are campaigns, the last of them the report that draws; MAPS are those of an example. The files go to docs/figures/ or
into FOLDER; tests/test_docs.py compares what the first two say with a new run.
"""

import argparse
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 106
MODEL, DATA = "models/fashion_cnn.onnx", "models/fashion_test.npz"
FIGURES = {
    "inject.svg": f"onnxfi inject {MODEL} --ber 1e-5 --seed 1 --data {DATA} --provider cpu",
}
SWEEP = f"--data {DATA} --samples 100 --provider cpu --ber 1e-7:1e-3 --repeat 200"
SCENES = "--data models/scenes_test.npz --provider cpu --samples 50"
DETECT = f"onnxfi run models/scenes_detector.onnx {SCENES} --labels models/scenes_test.json --task detection"
#: By the name of a figure that of the report's, and the commands.
CURVES = {
    "accuracy.svg": (
        "accuracy.svg",
        f"onnxfi run {MODEL} {SWEEP} -o float32.db",
        f"onnxfi run models/fashion_cnn_int8_qdq.onnx {SWEEP} -o int8.db",
        "onnxfi report float32.db int8.db --figures figures",
    ),
    "segmentation.svg": (
        "accuracy.svg",
        f"onnxfi run models/scenes_segmenter.onnx {SCENES} --task segmentation --ber 1e-7:1e-3 --repeat 200 -o mIoU.db",
        "onnxfi report mIoU.db --figures figures",
    ),
    "detection.svg": (
        "accuracy.svg",
        f"{DETECT} --ber 1e-7:1e-3 --repeat 100 -o AP50.db",
        "onnxfi report AP50.db --figures figures",
    ),
    "detection-bits.svg": (
        "bits.svg",
        f"{DETECT} --single --trials 1800 --bits 23-31 -o detector.db",
        "onnxfi report detector.db --figures figures",
    ),
}
#: Drawn by examples/spiking/parametric.py.
MAPS = ("parametric-leak.svg", "parametric-threshold.svg")
#: Drawn by examples/spiking/train_faulty.py, which needs PyTorch (`OUT=docs/figures`).
TRAINED = ("learning-curves.svg",)
#: Drawn by scripts/protection.py, which takes some minutes.
STUDIES = ("protection.svg",)
# The figure asks no other server for a font, and takes the reader's own.
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
FORMAT = re.sub(r"@font-face\s*{{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S).replace("Fira Code", FONTS)


def printed(command: str) -> str:
    """Return the coloured output of a command on a terminal of COLUMNS; it runs in a folder with the models."""
    master, slave = pty.openpty()
    env = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}
    for name in ("NO_COLOR", "FORCE_COLOR", "ONNXFI_LOG_LEVEL"):
        env.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(ROOT / "models")
        words = [sys.executable, "-m", *command.split()]
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=slave, stderr=subprocess.PIPE, text=True)
        os.close(slave)
        parts = []
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            parts.append(part)
        os.close(master)
        _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command}\n{errors}")
    return b"".join(parts).decode().replace("\r\n", "\n")


def draw(command: str, output: str, title: str) -> str:
    """The command and its output as SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, highlight=False, force_terminal=True)
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(output.rstrip("\n") + "\n"))  # the last line of a drawing is cut at its foot
        return console.export_svg(title=title, theme=DIMMED_MONOKAI, code_format=FORMAT, unique_id="onnxfi")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "figures", metavar="FOLDER")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in FIGURES.items():
        (folder / name).write_text(draw(command, printed(command), "onnxfi"), encoding="utf-8")
        print(folder / name)
    for name, (drawn, *commands) in CURVES.items():
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "models").symlink_to(ROOT / "models")
            for command in commands:
                words = [sys.executable, "-m", *command.split()]
                env = {**os.environ, "PYTHONPATH": str(ROOT)}
                subprocess.run(words, cwd=scratch, env=env, check=True, stdout=subprocess.DEVNULL)
            (folder / name).write_bytes((Path(scratch) / "figures" / drawn).read_bytes())
        print(folder / name)
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "OUT": scratch, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, str(ROOT / "examples" / "spiking" / "parametric.py")]
        subprocess.run(words, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        for name in MAPS:
            (folder / name).write_bytes((Path(scratch) / name).read_bytes())
            print(folder / name)


if __name__ == "__main__":
    main()
