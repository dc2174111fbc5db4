"""Entry subgraphs: one that rounds another way than the whole model gives way to the next longer route."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from campaign_networks import two_convolutions
from tiny_campaigns import chance

from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.plan.plan import make_plan
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SegmentMismatchError
from onnxfi.runtime.partial.entry_subgraph import EntrySession
from onnxfi.runtime.partial.golden_cache import SegmentSessions
from onnxfi.runtime.partial.segmented_model import SampleRows


def test_a_route_that_rounds_otherwise_gives_way_to_the_next_longer_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(two_convolutions(), "net.onnx")
    np.savez("x.npz", x=chance(6, 16, 4, 4, seed=7))
    campaign = Campaign("net.onnx", "x.npz", single=True, trials=20, batch=4)
    routes = list[set[str]]()
    held, prepared = EntrySession.check_golden, SegmentSessions.prepare

    def unlike(self: EntrySession, rows: SampleRows) -> None:
        if not self.whole:
            raise SegmentMismatchError("rounds another way")
        held(self, rows)

    def nudged(self: SegmentSessions, part: Any) -> Any:
        session = prepared(self, part)
        run = session.run
        return SimpleNamespace(
            inputs=session.inputs, outputs=session.outputs,
            run=lambda feeds, names=None: {k: v * np.float32(1 + 2e-7) for k, v in run(feeds, names).items()},
        )  # fmt: skip

    for patch in ((EntrySession, "check_golden", unlike), (SegmentSessions, "prepare", nudged)):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            bench = TrialExecutor.open(campaign)
            golden, _ = bench.golden_runs.run()
            plan = make_plan(campaign, bench.opened.fault_targets)
            lines = [planned.lines.splitlines() for planned in plan.trials()]
            routes.append({bench.trial(plan.header, golden, one).route for one in lines})
    assert routes[0] <= {"channel-delta", "rebuilt"} and "rebuilt" in routes[0] and routes[1] == {"full"}
