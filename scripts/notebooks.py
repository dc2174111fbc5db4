"""Write the notebooks of examples/ from the scripts beside them; with --check say whether they are the same.

    python scripts/notebooks.py [--check]

A script's cells begin with `# %%`; those that begin with `# %% [markdown]` are text. The notebooks hold no outputs.
"""

import argparse
import json
import re
from pathlib import Path

FOLDERS = [Path(__file__).resolve().parent.parent / "examples" / name for name in ("notebooks", "spiking")]


def cells(script: str) -> list[dict[str, object]]:
    """The cells of a script as a notebook holds them."""
    found: list[dict[str, object]] = []
    for number, part in enumerate(re.split(r"^# %%", script, flags=re.M)[1:]):
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        text = "[markdown]" in head
        if text:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines())
        cell: dict[str, object] = {"cell_type": "markdown" if text else "code", "id": f"cell-{number}", "metadata": {}}
        cell |= {} if text else {"execution_count": None, "outputs": []}
        found.append(cell | {"source": body.splitlines(keepends=True)})
    return found


def notebook(script: str) -> str:
    """A script as a notebook (nbformat 4.5)."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    held = {
        "cells": cells(script), "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip
    return json.dumps(held, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where they differ")
    check, stale = parser.parse_args().check, []
    for script in sorted(script for folder in FOLDERS for script in folder.glob("*.py")):
        file, text = script.with_suffix(".ipynb"), notebook(script.read_text(encoding="utf-8"))
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(file.name)
            if not check:
                file.write_text(text, encoding="utf-8", newline="\n")
    print(
        f"{len(stale)} notebooks differ from their scripts: {', '.join(stale)}"
        if stale
        else "all notebooks are as their scripts"
    )
    if stale and check:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
