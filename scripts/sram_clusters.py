"""Write examples/hardware/sram_beam.json: shapes of upsets that a published radiation test of an SRAM measured.

    python scripts/sram_clusters.py LELAPE/Examples/Example1/*_global.out

The files are the results of LELAPE (doi 10.5281/zenodo.10156119) on its first example: every flip in a commercial
SRAM of 2M words of 8 bits, written and read again every 30 seconds in a beam, by event. Two cells are neighbours where
the exclusive or of their numbers (8 × address + bit) is one that the test found too often for chance: DOWN along one
axis of the array, RIGHT along the other, which of them is a word line is not known. Mirror images are one shape.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from onnxfi.statistics.intervals import clopper_pearson

OUT = Path(__file__).resolve().parent.parent / "examples" / "hardware" / "sram_beam.json"
DOWN, RIGHT = (0x001000, 0x801000, 0xC01000), (0x100010, 0x100011)
#: The distance of two cells by the exclusive or of their numbers.
STEPS = {
    **dict.fromkeys(DOWN, (1, 0)), **dict.fromkeys(RIGHT, (0, 1)),
    **{down ^ right: (1, 1) for down, right in product(DOWN, RIGHT)},
}  # fmt: skip
#: Bytes from a line to the next: 0x1000 of the numbers, in which a byte has 8.
LINE_BYTES = 0x1000 // 8
FORMATS = {
    ("float32", "int32", "uint32"): 4, ("float16", "bfloat16", "int16", "uint16"): 2, ("int8", "uint8"): 1,
    ("float64", "int64"): 8,
}  # fmt: skip
Cell = tuple[int, int]


def events(files: Iterable[Path]) -> Iterator[list[int]]:
    """Yield the numbers of the cells of each event."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if re.fullmatch(r"0x[0-9a-f]+(, 0x[0-9a-f]+)*", line.strip()):
                yield [int(number, 16) for number in line.split(",")]


def shape(cells: Sequence[int]) -> tuple[Cell, ...]:
    """Return the lines and columns of the cells of an event, of all mirror images the first in order."""
    grid = [*product(range(-2, 3), repeat=2)]
    for places in product([(0, 0)], *[grid] * (len(cells) - 1)):
        pairs = combinations(zip(cells, places, strict=True), 2)
        if all(_fits(a ^ b, (abs(x - u), abs(y - v))) for (a, (x, y)), (b, (u, v)) in pairs):
            images = ([(down * x, right * y) for x, y in places] for down, right in product((1, -1), repeat=2))
            return min(_from_origin(image) for image in images)
    raise SystemExit(f"no shape for {', '.join(map(hex, cells))}: is it of another device?")


def _fits(difference: int, apart: Cell) -> bool:
    """Return whether two cells are as far apart as their numbers say: neighbours, or not."""
    return apart == STEPS[difference] if difference in STEPS else max(apart) > 1


def _from_origin(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the cells with the first in order at [0, 0]."""
    top, left = min(cells)
    return tuple(sorted((x - top, y - left) for x, y in cells))


def _table(found: Counter[tuple[Cell, ...]], dtypes: Sequence[str], size: int) -> dict[str, Any]:
    """Return the table of formats whose words have this many bytes."""
    line, total = LINE_BYTES // size, found.total()
    rows = [
        {"p": count / total, "cells": cells, "line": line, "interleave": line} for cells, count in found.most_common()
    ]
    return {"dtype": dtypes, "rows": rows}


def _text(head: dict[str, Any], tables: Sequence[dict[str, Any]]) -> str:
    """Return a distribution file with a line for each row."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    whole = [
        f'    {{\n      "dtype": {json.dumps(table["dtype"])},\n      "rows": [\n        '
        + ",\n        ".join(map(json.dumps, table["rows"]))
        + "\n      ]\n    }"
        for table in tables
    ]
    return "\n".join(["{", *lines, '  "tables": [', ",\n".join(whole), "  ]", "}", ""])


def main(files: Sequence[str]) -> int:
    """Print the shapes, and write the table."""
    found = Counter(map(shape, events(map(Path, files))))
    total = found.total()
    for cells, count in found.most_common():
        low, high = clopper_pearson(count, total).low, clopper_pearson(count, total).high
        print(f"{count:4d} of {total}: {count / total:7.2%}, 99 % interval {low:.2%} to {high:.2%}  {list(cells)}")
    source = (
        f"LELAPE, doi 10.5281/zenodo.10156119, Examples/Example1: {total} events in a commercial SRAM of 2M x 8 bits "
        f"in a beam; device and particle are not named. Measured: the shares and shapes, mirror images taken together; "
        f"{LINE_BYTES} bytes from a line to the next; no event with two bits of one word. The neighbour along the line "
        f"is the same bit of the next word here; in the chip it is that or the bit beside it, of the byte 131,074 on."
    )
    head = {"version": 1, "name": "SRAM in a beam: multi-cell upsets by the shape of their cluster", "source": source}
    OUT.write_text(_text(head, [_table(found, *one) for one in FORMATS.items()]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="results of LELAPE")
    sys.exit(main(parser.parse_args().files))
