"""onnxfi merge: shards become one store."""

from __future__ import annotations

from pathlib import Path

from campaign_commands import DATA, SINGLE, Run
from tiny_campaigns import tables


def test_shards_and_merge(run: Run, tiny: Path) -> None:
    for k in (1, 2):
        ran = run("run", "m.onnx", *DATA, *SINGLE, "-o", f"{k}.db", "--shard", f"{k}/2")
        assert f"{k}.db: {13 if k == 1 else 12} of 25 trials" in ran.out
    merged = run("merge", "all.db", "1.db", "2.db")
    assert (merged.code, merged.out, merged.err) == (0, "all.db: 25 of 25 trials, from 2 stores\n", "")
    run("run", "m.onnx", *DATA, *SINGLE, "-o", "whole.db")
    assert tables(Path("all.db")) == tables(Path("whole.db"))
