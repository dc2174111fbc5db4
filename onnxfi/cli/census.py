"""`onnxfi census MODEL`: the effect of every bit flip on its word, counted without running the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import JSON, LINKS, MODEL, SELECT, selector_of, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, cut_front, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.analysis.census import Census, CensusRow

#: Lines of a table by layer, and characters of a name in it, so that it fits 80 columns.
_MOST_LAYERS, _LONGEST_NAME = 20, 24
#: The share of all bits from which a format has a table of its own.
_COMMON = 0.01


_OPTIONS = (
    click.option("--csv", "csv_file", type=OUTPUT, metavar="FILE", help="Write a line for each bit of each target."),
)  # fmt: skip


@verb("census", "Count the effect of every bit flip; nothing is run.", MODEL, *SELECT, *_OPTIONS, LINKS, JSON)
def command(model: Path, csv_file: Path | None, as_json: bool, allow_links: bool, **flags: Any) -> None:
    """Count the effect of every single bit flip on its word, exactly and without running MODEL.

    Each flip is in one class: catastrophic, where the number grows by 2^16 or more or is no longer finite;
    amplification and attenuation, by 2 to 2^16; collapse, where it shrinks by 2^16 or more; sign; or negligible, below a
    factor of 2. Whether an answer changes is another question: onnxfi run measures it.

    \b
    onnxfi census model.onnx
    onnxfi census model.onnx --role weight --csv census.csv
    """
    from onnxfi.analysis.census import census
    from onnxfi.campaign.report.tables import write_table
    from onnxfi.graph.model.loading import load
    from onnxfi.graph.write.output_file import check_output_files

    opened = load(model, allow_links=allow_links)
    if csv_file is not None:
        check_output_files(opened, [csv_file], copy=False)
    found = census(opened, selector_of(flags))
    if csv_file is not None:
        write_table(csv_file, found.table())
    if as_json:
        print_json(found.document())
        return
    _print(found)
    if csv_file is not None:
        print_line(f"wrote {csv_file}")
    for text in opened.notes:
        print_note(text)


def _print(found: Census) -> None:
    """Print a census: by class, by bit of the common formats, by layer, and the forecast."""
    from onnxfi.analysis.bit_effects import EFFECT_MEANINGS, EFFECTS
    from onnxfi.analysis.census import FLIPS

    whole = found.whole
    print_line(found.model)
    title = f"Effect of one flip, of {count(whole.bits, 'bit')} in {count(whole.words, 'word')}"
    meant = zip(EFFECTS, EFFECT_MEANINGS, strict=True)
    rows = [(effect, share_text(whole.share(effect)), meaning) for effect, meaning in meant]
    table(title, ("Effect", ">Share", "The number"), rows)
    for one in found.formats:
        if one.bits >= _COMMON * whole.bits:
            _print_bits(one)
    _print_layers(found)
    wide = [row for row in found.targets if row.reach]
    if wide:
        most = max(wide, key=lambda row: row.reach or 0)
        print_line(f"a flip changes {whole.reached / whole.bits:,.1f} words on average,")
        print_line(f"at most {most.reach or 0:,}, in {cut_front(most.key, _LONGEST_NAME)}")
    steps = [row.step for row in found.targets if row.step is not None and row.role == "weight"]
    if steps:
        low, high = min(step[0] for step in steps), max(step[1] for step in steps)
        print_line(f"a step of quantised weights is {low:.4g} to {high:.4g}; bit k moves by 2^k")
    text = ", ".join(f"{n:,}: {share_text(found.broken(n))}" for n in FLIPS)
    print_line("chance that one or more of so many random flips is catastrophic:")
    print_line(f"  {text}")


def _print_bits(row: CensusRow) -> None:
    """Print the classes of each bit of a format."""
    from onnxfi.analysis.bit_effects import EFFECTS

    lines: list[list[str]] = []
    for bit in reversed(range(len(row.flips))):
        flips = row.flips[bit]
        if not sum(flips):
            continue
        cells = [share_text(n / sum(flips)) if n else "" for n in flips]
        if lines and lines[-1][1:] == cells:
            lines[-1][0] = f"{bit}-{lines[-1][0].rpartition('-')[2]}"
        else:
            lines.append([str(bit), *cells])
    heads = (">Catastr.", ">Amplif.", ">Atten.", ">Collapse", ">Sign", ">Negligible")
    assert len(heads) == len(EFFECTS)
    table(f"By bit of {row.dtype}, {row.words:,} words", (">Bit", *heads), lines)


def _print_layers(found: Census) -> None:
    """Print the layers with most of the catastrophic flips."""
    from onnxfi.analysis.bit_effects import CATASTROPHIC

    of_all = max(found.whole.totals[CATASTROPHIC], 1)
    some = [row for row in found.layers if row.totals[CATASTROPHIC]] or list(found.layers)
    ordered = sorted(some, key=lambda row: -row.totals[CATASTROPHIC])[:_MOST_LAYERS]
    lines = [
        (cut_front(row.key, _LONGEST_NAME), row.dtype, f"{row.bits:,}", *map(share_text, (row.share("catastrophic"), row.totals[CATASTROPHIC] / of_all)))
        for row in ordered
    ]  # fmt: skip
    shown = "" if len(found.layers) == len(ordered) else f", {len(ordered)} of {len(found.layers):,}"
    table(f"By layer, most catastrophic flips first{shown}", ("Layer", "Type", ">Bits", ">Catastr.", ">Of all"), lines)


def share_text(share: float) -> str:
    """Return a share in percent; a small one does not read as none, nor one that is nearly all as all.

    >>> share_text(0.25), share_text(3e-6), share_text(0.9999999), share_text(0.0)
    ('25.000 %', '0.0003 %', '> 99.999 %', '0 %')
    """
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if share > 0.99999:
        return "> 99.999 %"
    return f"{100 * share:.3f} %" if share >= 1e-5 else f"{100 * share:.1g} %"
