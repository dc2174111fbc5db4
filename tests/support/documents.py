"""Parts of the documents: code blocks, tables, shown commands, and the comparison with what they print."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?|-?\d+e[+-]?\d+|\d+(?= ?%)")


def on_one_core() -> None:
    """These campaigns are over before a second worker has started: on one core there is one, so starting costs half."""
    cores, mine = sorted(os.sched_getaffinity(0)), int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    os.sched_setaffinity(0, {cores[mine % len(cores)]})


def read(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of all console blocks, each with the lines that it is shown to print."""
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block.replace("\\\n", ""), flags=re.M)[1:]:
            first, *rest = part.splitlines()
            yield " ".join(first.split()), rest


def lines_of(text: str) -> list[str]:
    """Lines with single blanks, without empty ones and the rules of tables."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line.strip("─ ")]


def same_line(shown: str, printed: str) -> bool:
    """Return true where a line is as it is shown, but for numbers that another processor may round otherwise."""
    numbers: list[float] = []
    pattern, at = "", 0
    for match in re.finditer(rf"\.\.\.|{_NUMBER.pattern}", shown):
        pattern += re.escape(shown[at : match.start()])
        if match[0] == "...":
            pattern += ".*"
        else:
            pattern += f"({_NUMBER.pattern})"
            numbers.append(float(match[0]))
        at = match.end()
    found = re.fullmatch(pattern + re.escape(shown[at:]), printed)
    near = 0.3 if "%" in shown else 0.0
    return found is not None and all(
        math.isclose(one, float(other), rel_tol=0.02, abs_tol=near)
        for one, other in zip(numbers, found.groups(), strict=True)
    )


def same(shown: list[str], printed: list[str]) -> bool:
    """Return true where lines are as they are shown; `...` stands for any number of them."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(same(shown[1:], printed[k:]) for k in range(len(printed) + 1))
    return bool(printed) and same_line(shown[0], printed[0]) and same(shown[1:], printed[1:])


def shell(command: str, folder: Path) -> str:
    """Return the output of a command, standard error included; its exit status must be what its message says."""
    env = {**os.environ, "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}
    for name in ("ONNXFI_LOG_LEVEL", "FORCE_COLOR", "COLUMNS"):
        env.pop(name, None)
    env["PATH"] = f"{folder / 'bin'}{os.pathsep}{env['PATH']}"
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    how |= {"preexec_fn": on_one_core} if sys.platform == "linux" else {}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, check=False, **how)
    assert done.returncode == (2 if "onnxfi: error:" in done.stdout else 0), f"{command}\n{done.stdout}"
    return str(done.stdout).replace(f"{folder}/", "").replace(f"{ROOT}/", "")


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column is headed so."""
    lines = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def code(cell: str) -> list[str]:
    """Return the text of a cell between backticks; a line that ends with a backslash goes on in the next."""
    cell = cell.replace("\\`<br>`", "")
    return re.findall(r"`([^`]+)`", cell)
