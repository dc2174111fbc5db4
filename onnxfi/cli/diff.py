"""`onnxfi diff MODEL OTHER`: which bits differ, as a table and as a fault list; repaired from the intact file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, verb
from onnxfi.cli.streams import OUTPUT, InputFile
from onnxfi.cli.terminal import count, number, print_json, print_line, table

if TYPE_CHECKING:
    from onnxfi.analysis.model_diff import ModelDiff

#: Rows of a table.
_MOST_ROWS = 20


_OPTIONS = (
    click.argument("other", metavar="OTHER", type=InputFile()),
    click.option("--save-faults", type=OUTPUT, metavar="FILE", help="Write the differing bits as a fault list of MODEL."),
    click.option("--repair", type=OUTPUT, metavar="OUT", help="Write OTHER with the words of MODEL."),
)  # fmt: skip


@verb("diff", "Print which bits of OTHER differ from MODEL.", MODEL, *_OPTIONS, LINKS, JSON)
def command(
    model: Path, other: Path, save_faults: Path | None, repair: Path | None, allow_links: bool, as_json: bool
) -> None:
    """Compare the stored words of two models bit by bit. Exit code 1: they differ.

    Damage seen in the field becomes a fault list: inject, run and report work on it. Of two builds of a network the
    tensors and operators are compared, and how far the numbers lie apart.

    \b
    onnxfi diff golden.onnx damaged.onnx --save-faults damage.jsonl --repair repaired.onnx
    onnxfi run golden.onnx --data images.npz --faults damage.jsonl
    """
    from onnxfi.analysis.model_diff import diff
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files, output_files
    from onnxfi.runtime.inject.weights import inject

    first, second = (load(path, allow_links=allow_links) for path in (model, other))
    for source in (first, second):
        if save_faults is not None:
            check_output_files(source, [save_faults], copy=False)
        if repair is not None:
            check_output_files(source, output_files(repair, len(second.external)), copy=source is second)
    found = diff(first, second)
    written = []
    if save_faults is not None and not found.same:
        inject(first, found.faults(), save_faults=save_faults)
        written.append(save_faults)
    if repair is not None and not found.same:
        found.repaired(repair)
        written.append(repair)
    if as_json:
        print_json(found.document())
    else:
        _print(found, model, other)
        for path in written:
            print_line(f"wrote {path}")
    if not found.same:
        raise SystemExit(1)


def _print(found: ModelDiff, model: Path, other: Path) -> None:
    """Print the differences as tables and lines."""
    if found.tensors:
        rows = [
            (
                one.target.id, one.target.word.name, f"{one.words:,} of {one.target.size:,}", f"{one.bits:,}",
                " ".join(str(bit) for bit, many in enumerate(one.by_bit) if many), number(one.largest), number(one.relative),
            )
            for one in found.tensors[:_MOST_ROWS]
        ]  # fmt: skip
        columns = ("Tensor", "Type", ">Words", ">Bits", "Bit positions", ">Largest change", ">Relative L2")
        table("Differing tensors", columns, rows)
        if len(found.tensors) > _MOST_ROWS:
            print_line(f"and {len(found.tensors) - _MOST_ROWS:,} tensors more; --json has all")
    if found.formats:
        formats = [
            (
                one.target.id, f"{one.target.word.name}, {one.other}", f"{one.words:,} of {one.target.size:,}",
                number(one.largest), number(one.relative),
            )
            for one in found.formats[:_MOST_ROWS]
        ]  # fmt: skip
        table("Tensors in two formats", ("Tensor", "Types", ">Numbers", ">Largest change", ">Relative L2"), formats)
        if len(found.formats) > _MOST_ROWS:
            print_line(f"and {len(found.formats) - _MOST_ROWS:,} tensors more; --json has all")
    for where, names in ((model, found.only_first), (other, found.only_second)):
        if names:
            print_line(f"only in {where}, or of another type or shape there: {', '.join(names[:_MOST_ROWS])}")
    for name, (here, there) in found.operators.items():
        print_line(f"operator {name}: {here:,} and {there:,}")
    if not found.structure:
        print_line("the structure differs: operators, attributes, names or shapes")
    words = sum(one.words for one in found.tensors)
    differ = f"{count(words, 'word')} and {count(found.bits, 'bit')} differ" if words else "no stored number differs"
    alike = f" alike; {count(len(found.formats), 'tensor')} in two formats" if found.formats else ""
    print_line(f"{differ}, of {count(found.compared, 'tensor')} that both have{alike}")
