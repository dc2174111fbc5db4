"""`onnxfi attack MODEL --data DATA`: the few flips that harm a classifier most, beside random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxfi.cli import options
from onnxfi.cli.options import JSON, LINKS, MODEL, PATH, RUN, SELECT, selector_of, verb
from onnxfi.cli.streams import OUTPUT
from onnxfi.cli.terminal import count, cut_front, print_json, print_line, print_note, table

if TYPE_CHECKING:
    from onnxfi.attacks.attack import Attack, Defended, Search
    from onnxfi.attacks.flip_trials import Harm
    from onnxfi.attacks.goals import Goal

#: The least width at which a site is cut in a table.
_LONGEST_SITE = 36


_OPTIONS = (
    click.option("--method", default="search", show_default=True, metavar="METHOD", help="search: run candidates of every tensor, keep the best, one flip after the other; gradient: the same with candidates from --gradients; sign, exponent: that bit of the largest words of the first tensors, nothing is run."),
    click.option("--flips", type=int, default=10, show_default=True, metavar="K", help="The most flips."),
    click.option("--source-class", type=int, metavar="CLASS", help="With --target-class: the class whose samples are attacked (default: all others), as the place of its score, from 0."),
    click.option("--target-class", type=int, metavar="CLASS", help="Class as which the attacked samples are to be answered, the other samples as before (default: any wrong class)."),
    click.option("--attack-samples", type=int, default=64, show_default=True, metavar="N", help="Samples, at random, that flips are tried on; all others are scored."),
    click.option("--candidates", type=int, default=32, show_default=True, metavar="N", help="Flips of each tensor that are run in each round."),
    click.option("--first-tensors", type=int, default=3, show_default=True, metavar="N", help="Tensors, from the first on, that sign and exponent take."),
    click.option("--screen", type=int, default=0, show_default=True, metavar="N", help="Run all candidates on the first N attack samples, and only the best --candidates of them on all; 0: all on all."),
    click.option("--gradients", type=PATH, metavar="NPZ", help="Gradient of the loss by tensor, for --method gradient."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the attack batch."),
    click.option("--seeds", type=int, default=1, show_default=True, metavar="N", help="Searches, each with an attack batch of its own."),
    click.option("--random-trials", type=int, default=20, show_default=True, metavar="N", help="Trials of 1, 10, 100, … random flips to compare with; 0 for none."),
    click.option("--also", type=PATH, multiple=True, metavar="MODEL", help="Score the flips on this model too, as on a protected one: it has the same tensors. Repeatable."),
    click.option("-o", "--out", type=OUTPUT, metavar="FILE", help="Fault list to write; trial k has the first k flips."),
)  # fmt: skip


@verb("attack", "Search the few flips that harm MODEL most.", MODEL, *SELECT, *RUN, *_OPTIONS, LINKS, JSON)
def command(
    model: Path, data: str | None, out: Path | None, gradients: Path | None, also: tuple[Path, ...], as_json: bool,
    allow_links: bool, **flags: Any,
) -> None:  # fmt: skip
    """Search the few bit flips in stored weights that harm a classifier most: the worst case beside the average one.

    Flips are tried on an attack batch, and scored on other samples, beside random flips in the same tensors. The result
    is the worst that the search found, not the worst there is. The fault list is an ordinary one: onnxfi run --faults
    scores it again, also with a memory code; --also scores it on protected models.

    \b
    onnxfi attack model.onnx --data images.npz -o attack.jsonl
    onnxfi attack model.onnx --data images.npz --source-class 3 --target-class 5
    onnxfi attack model.onnx --data images.npz --method sign --flips 2
    onnxfi attack model.onnx --data images.npz --also protected.onnx
    """  # fmt: skip
    from onnxfi.attacks.attack import attack
    from onnxfi.graph.model.loading import load
    from onnxfi.runtime.data.npz import read_npz

    if data in (None, "synthetic"):
        raise click.UsageError("an attack lowers an accuracy; give --data with labelled samples")
    options.refuse_flags(("elements",), "as whole tensors are searched")
    options.refuse_flags(("dim",), "on labelled samples")
    given = options.given_flags(flags, options.RUN_PARAMETERS)
    rest = {n: flags[n] for n in ("method", "flips", "source_class", "target_class", "attack_samples", "candidates", "first_tensors", "screen", "seed", "seeds", "random_trials")}  # fmt: skip
    found = attack(
        load(model, allow_links=allow_links), data, out, gradients=None if gradients is None else read_npz(gradients),
        selector=selector_of(flags) if any(flags[name] for name in options.SELECTION) else None,
        also=[load(path, allow_links=allow_links) for path in also],
        progress=None if as_json else lambda seed, flip: print_note(f"seed {seed}: {flip.site}"), **rest, **given,
    )  # fmt: skip
    if as_json:
        print_json(found.document())
        return
    _print(found)
    if out is not None:
        print_line(f"wrote {out}")


def _print(found: Attack) -> None:
    """Print the rules, the flips of the first search with their harm, random flips, and the flips to guessing."""
    print_line(f"{found.model}, words of {', '.join(found.formats)}")
    rules = found.rules
    how = f"{count(rules.candidates, 'candidate')} of each tensor" if rules.method in ("search", "gradient") else f"first {count(rules.first_tensors, 'tensor')}"  # fmt: skip
    how += f", first on {count(rules.screen, 'sample')}" if rules.screen else ""
    print_line(f"method {rules.method}, {how}; {_goal_text(found.goal)}")
    print_line(f"attack batch of {found.attack_samples:,} samples; scored on {found.scored_samples:,} others")
    first = found.searches[0]
    columns = (">Top-1", ">SDC-1", ">DUE", *_success_columns(found.goal))
    table(f"Chosen flips, seed {first.seed}", (">k", "Flip", *columns), list(_rows(first)))
    if not first.flips:
        print_line("no candidate serves the goal; give more --candidates or --attack-samples")
    for other in found.defended:
        rows = [("0", *_unharmed(other)), *((str(k), *_shares(one)) for k, one in enumerate(other.harm, 1))]
        table(f"The same flips in {other.model}", (">k", *columns), rows)
    if found.random:
        lines = [(f"{r.flips:,}", _percent(r.median), _percent(r.low), _percent(r.high)) for r in found.random]
        title = f"Random flips in the same tensors, {count(found.random_trials, 'trial')} each"
        table(title, (">Flips", ">Top-1 median", ">least", ">most"), lines)
    print_line(_conclusion(found))


def _goal_text(goal: Goal) -> str:
    if goal.target is None:
        return "untargeted"
    return f"class {'any other' if goal.source is None else goal.source} to be answered as {goal.target}"


def _rows(search: Search) -> list[tuple[str, ...]]:

    rows: list[tuple[str, ...]] = [("0", "", *_unharmed(search))]
    for k, (flip, harm) in enumerate(zip(search.flips, search.harm, strict=True), 1):
        rows.append((str(k), cut_front(flip.site, _LONGEST_SITE), *_shares(harm)))
    return rows


def _success_columns(goal: Goal) -> tuple[str, ...]:
    """Return the columns of a targeted attack: what is reached, and the others that stay right."""
    if goal.target is None:
        return ()
    return f">{'others' if goal.source is None else goal.source} as {goal.target}", ">Rest right"


def _unharmed(one: Search | Defended) -> tuple[str, ...]:
    """Return the row without faults."""
    return (_percent(one.golden), "", "", *map(_percent, one.success or ()))


def _shares(harm: Harm) -> tuple[str, ...]:
    success = (one for one in (harm.reached, harm.kept) if one is not None)
    return (_percent(harm.accuracy), _percent(harm.sdc1), _percent(harm.due), *map(_percent, success))


def _conclusion(found: Attack) -> str:
    """Return how many flips it takes until the network guesses, over the seeds; of a targeted attack its success."""
    first = found.searches[0]
    if first.success is not None:
        return _success(found.goal, first, first.success)
    level, steps = f"guessing (top-1 at most {_percent(found.chance)})", [k for k in found.to_chance if k is not None]
    searches = len(found.searches)
    if not steps:
        return f"{level} is not reached with {count(found.rules.flips, 'flip')}"
    if searches == 1:
        return f"{level} takes {count(steps[0], 'flip')}; more attack batches: --seeds"
    median = found.median_to_chance
    middle = f"median {median:g}" if median is not None else "in fewer than half of the searches"
    return f"{level}: {middle}, {min(steps)} to {max(steps)} flips, in {len(steps)} of {searches} searches"


def _success(goal: Goal, search: Search, without: tuple[float, float]) -> str:
    """Return what the flips of a targeted attack reach, and what stays right."""
    last = search.harm[-1] if search.harm else None
    reached, kept = (last.reached, last.kept) if last else without
    after = f"{_percent(reached or 0.0)} after {count(len(search.flips), 'flip')}, {_percent(without[0])} without"
    rest = f"of the rest {_percent(kept or 0.0)} are right, {_percent(without[1])} without"
    return f"{_goal_text(goal)}: {after}; {rest}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
