"""`onnxfi assess MODEL --data DATA`: what breaks, where, how sure, and what to do about it, in a given time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli.options import CODE, JSON, LINKS, MODEL, PATH, RUN, SELECT, Duration, given_flags, verb
from onnxfi.cli.terminal import print_json, print_line, print_note, table, value_change

if TYPE_CHECKING:
    from onnxfi.analysis.assess import Assessment

#: Trials that are shown as the worst.
_WORST = 5


_OPTIONS = (
    click.option("--time", "time_s", type=Duration(), default="5m", show_default=True, metavar="TIME", help="Time that it takes, as 90s, 5m or 1h."),
    click.option("--environment", type=PATH, metavar="FILE", help="Environment (YAML): memories, upset rates, mission; adds FIT."),
    click.option("--confidence", type=float, default=0.95, metavar="C", show_default=True, help="Confidence of every interval."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every draw."),
    click.option("-o", "--out", type=PATH, metavar="DIR", help="Folder of the stores and the page (default: MODEL-stem.assess in this folder)."),
    click.option("--workers", type=click.IntRange(0), metavar="N", help="Worker processes; 0 runs trials in this process (default: one per core)."),
)  # fmt: skip


@verb("assess", "Assess MODEL in minutes: what breaks, where, how sure.", MODEL, *SELECT, *RUN, *_OPTIONS, LINKS, CODE, JSON)  # fmt: skip
def command(
    model: Path, time_s: float, environment: Path | None, out: Path | None, workers: int | None, as_json: bool, allow_code: bool, **flags: Any
) -> None:  # fmt: skip
    """Assess MODEL in a given time, and say in plain words what breaks, where, how sure that is, and what to do.

    A census of all bits, a ranking of layers by what a flip in them damages, a sweep over bit error rates around the
    knee, the worst faults and a verdict, as text and as a page. Trials are judged on the first 100 samples, or
    --samples. Ctrl-C ends the trials and assesses what there is; the same command goes on, and so does onnxfi run.

    \b
    onnxfi assess model.onnx --data images.npz
    onnxfi assess model.onnx --data images.npz --time 20m --environment environment.yaml -o report
    """
    began = time.monotonic()
    from onnxfi.analysis.assess import assess
    from onnxfi.analysis.environment import load_environment
    from onnxfi.campaign.workers.scheduling import cores
    from onnxfi.graph.write.output_file import check_folder

    given = given_flags(flags)
    given |= {name: flags[name] for name in ("confidence", "seed")}
    data = given.pop("data", None)
    place = out or Path(f"{model.stem}.assess")
    check_folder(place)
    here = None if environment is None else load_environment(environment)
    written: list[Path | None] = []

    def write(made: Assessment) -> None:
        if None not in written:  # said once that there is no page
            written.append(_write_page(made))

    found = assess(
        model, data, time_s=time_s, environment=here, out=place, began=began,
        workers=cores() if workers is None else workers, on_phase=None if as_json else print_note,
        on_found=write, **given,
    )  # fmt: skip
    if as_json:
        print_json(found.document())
        return
    _print(found)
    if written and written[-1] is not None:
        click.echo(f"wrote {written[-1]}")


def _write_page(found: Assessment) -> Path | None:
    """Write the page where the extra `report` is installed; None with a note where it is not."""
    from onnxfi.analysis.assess import write_assessment
    from onnxfi.errors import OutputError

    try:
        return write_assessment(found, found.folder / "index.html")
    except OutputError as error:
        print_note(f"no page: {error}")
        return None


def _print(found: Assessment) -> None:
    """Print the verdict, the worst faults and the commands."""
    if found.stopped:
        print_line("stopped before the time was over; this is what there is")
    for line in found.verdict.sentences:
        print_line(f"- {line}")
    _print_worst(found)
    if found.budget is not None:
        from onnxfi.cli.fit import print_fit

        print_fit(found.budget)
    print_line("Next:")
    for line in found.verdict.commands:
        print_line(f"  {line}")
    print_line(f"{found.seconds:.0f} s; stores in {found.folder}")


def _print_worst(found: Assessment) -> None:
    from onnxfi.campaign.report.html_page import harmful
    from onnxfi.campaign.report.page_data import harm_metrics

    if found.ranking is None:
        return
    metrics = harm_metrics(found.ranking.task)
    rows = []
    for harm in harmful(found.ranking, _WORST):
        first = harm.rows[0] if harm.rows else {}
        site = f"{first['target']}[{first['index']}]:{','.join(map(str, first['bits']))}" if first else "-"
        value = harm.values[0] if harm.values else None
        share = "-" if value is None else metrics[0].text(value)
        rows.append((harm.trial, harm.outcome.upper(), share, site, value_change(first) if first else ""))
    if rows:
        table("Worst single flips found", (">Trial", "Outcome", f">{metrics[0].label}", "Site", "Value"), rows)
