"""Merging of stores of one campaign: an idempotent set union."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from onnxfi.campaign.results.store import STRATA, Store, identity_differences, remove
from onnxfi.errors import StoreError


def merge(out: str | Path, stores: Sequence[str | Path]) -> int:
    """Write the union of several stores of one campaign.

    Parameters
    ----------
    out : str or Path
        The store to write; one that is there gains the results.
    stores : sequence of str or Path
        The stores, as shards of one campaign make them.

    Returns
    -------
    int
        The number of results in `out`.

    Raises
    ------
    StoreError
        For different campaigns (the fields are named), or different results of one trial; `out` is then unchanged.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     halves = [folder + "/1.db", folder + "/2.db"]
    ...     done = [list(run(campaign, half, shard=(k, 2))) for k, half in enumerate(halves, 1)]
    ...     merge(folder + "/all.db", halves)
    4
    """
    for source in stores:
        if os.path.realpath(source) == os.path.realpath(out):
            raise StoreError(f"the output {str(out)!r} is one of the inputs; give another name")
    with ExitStack() as stack:
        ones = [stack.enter_context(Store.open(source)) for source in stores]
        for one in ones:
            if one.get("identity") is None or one.get("golden") is None:
                raise StoreError(f"{str(one.path)!r} holds no campaign yet; run it first")
            if one.get("identity").get("adaptive"):
                raise StoreError(
                    f"{str(one.path)!r} is of an adaptive campaign, whose rounds rest on those before them: it has one "
                    f"store and no shards; take that with the most trials"
                )
            _alike(ones[0], one)
        existed = Path(out).exists()
        try:
            with Store.open(out, create=True) as target:
                if target.get("identity") is None:
                    target.bind(ones[0].get("identity"))
                _alike(target, ones[0])
                with target.db:
                    for one in ones:
                        _copy(one, target)
                return target.count("results")
        except BaseException:
            if not existed:
                remove(Path(out))
            raise


def _alike(one: Store, other: Store) -> None:
    """Refuse stores of different campaigns, naming the fields that differ (StoreError)."""
    if changes := identity_differences(one.get("identity"), other.get("identity"), "{} and {}"):
        raise StoreError(
            f"{one.path} and {other.path} are of different campaigns: {changes}; merge takes stores of one campaign, "
            f"as runs with --shard make them"
        )


def _copy(one: Store, target: Store) -> None:
    """Add what one store holds to the other, within a transaction of the caller."""
    kept = target.get("golden")
    if kept is not None and kept["scores"] != one.get("golden")["scores"]:
        raise StoreError(f"{str(one.path)!r} has another golden run than the others; the engines differ")
    # Where two stores differ, that with more trials is right; of equal ones always the same.
    query = "SELECT * FROM meta WHERE key NOT IN ('identity', 'campaign') ORDER BY key"
    given, held = ((s.count("plan"), s.db.execute(query).fetchall()) for s in (one, target))
    if given > held:
        target.copy("meta", given[1], "REPLACE")
    try:
        target.strata_of(one.db.execute(f"SELECT {STRATA} FROM strata"))
        target.trials_of(one.db.execute("SELECT * FROM plan"))
    except StoreError as error:
        raise StoreError(f"{str(one.path)!r} does not go with the others: {error}") from None
    for table in ("results", "errors"):
        target.copy(table, one.db.execute(f"SELECT * FROM {table}"), "IGNORE")
    target.db.execute("DELETE FROM errors WHERE trial IN (SELECT trial FROM results)")
    same = "SELECT trial, outcome, cause, metrics, changed, route, words FROM results"
    for row in one.db.execute(same):
        if target.db.execute(f"{same} WHERE trial = ?", row[:1]).fetchone() != row:
            raise StoreError(f"trial {row[0]} has another result in {one.path} than in the others; the engines differ")
