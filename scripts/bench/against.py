"""Figures of a benchmark against those of another commit, interleaved in one run.

    python scripts/bench/against.py COMMIT [--rounds 3] scripts/bench/shortcuts.py models/fashion_cnn.onnx …

The commit is checked out into a temporary worktree, whose path comes first in PYTHONPATH, so that its own package and
its own copy of the script run. Both versions run in turn, the order changing each round, so that a busy machine slows
both. Each number that differs between runs is printed with its line: both medians, and the ratio of now to before.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
#: A line with `#` in place of each number, and the position of a number in it; lines of one text are counted.
Label = tuple[str, int, int]
Figures = dict[Label, float]


def figures(text: str) -> Figures:
    """Return the numbers that a benchmark printed, by line and position."""
    found: Figures = {}
    seen: dict[str, int] = {}
    for line in text.splitlines():
        label = " ".join(NUMBER.sub("#", line).split())
        seen[label] = seen.get(label, 0) + 1
        for k, number in enumerate(NUMBER.findall(line)):
            found[label, seen[label], k] = float(number.replace(",", ""))
    return found


def medians(before: Sequence[Figures], now: Sequence[Figures]) -> Iterator[tuple[Label, float, float]]:
    """Yield the medians of each number that all runs printed and that is not the same in all of them."""
    for label in before[0]:
        values = [[run[label] for run in runs if label in run] for runs in (before, now)]
        if all(map(len, values)) and len({*values[0], *values[1]}) > 1:
            yield label, statistics.median(values[0]), statistics.median(values[1])


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary worktree, which is removed in the end."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "tree")
        added = subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(place), commit], check=False)
        if added.returncode:
            raise SystemExit(f"{commit!r} cannot be checked out; give a commit of this repository")
        try:
            yield place
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(place)], check=True)


def run(tree: Path, script: Path, arguments: Sequence[str]) -> Figures:
    """Run the script of a tree with the package of that tree; return its numbers."""
    paths = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(tree / script), *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=False
    )
    found = figures(done.stdout)
    if done.returncode not in (0, 1) or not found:  # 1: a target was missed
        raise SystemExit(f"{script} of {tree} ended with exit code {done.returncode}, and {len(found)} numbers")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("script", type=Path, help="the benchmark, which both versions have")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each version")
    given = parser.parse_args()
    script = given.script.resolve().relative_to(ROOT)
    before: list[Figures] = []
    now: list[Figures] = []
    with checkout(given.commit) as tree:
        for number in range(given.rounds):
            turns = [(tree, before), (ROOT, now)]
            for place, runs in turns if number % 2 == 0 else reversed(turns):
                runs.append(run(place, script, given.arguments))
    print(f"{'before':>12}{'now':>12}{'ratio':>8}  medians of {given.rounds}, before: {given.commit}")
    for (line, _, k), old, new in medians(before, now):
        ratio = f"{new / old:.2f}" if old else "-"
        print(f"{old:>12.5g}{new:>12.5g}{ratio:>8}  {line} [{k + 1}]")


if __name__ == "__main__":
    main()
