"""Notes on validity: what the numbers of a report hold for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_campaigns import ran

from onnxfi.campaign.report.report import report
from onnxfi.campaign.report.validity_notes import notes
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.statistics.sample_size import sample_size


def campaign(**fields: Any) -> Campaign:
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **fields})


def test_a_sweep_that_says_little_says_how_many_trials_would(here: Path) -> None:
    ran(campaign(ber=(1e-2, 1e-1), repeat=3), here / "s.db")
    found = report(here / "s.db")
    widest = max(fold.rate("top1").half_width for fold in found.by_rate)
    first = next(iter(notes(found)))
    assert first.startswith(
        f"3 trials at a rate leave top-1 uncertain by up to ±{100 * widest:.0f} points; some 664 leave"
    )
    assert widest > 0.1 and sample_size(1 << 62, 0.05, 0.99) == 664


def test_notes_say_what_the_numbers_hold_for(here: Path) -> None:
    ran(campaign(single=True, trials=60, bits="30"), here / "s.db")
    found = report(here / "s.db")
    first, second = notes(found)
    assert first.startswith("masked, sdc, due and any_sdc1 count trials by the gravest of their 12 samples")
    assert found.samples is not None and found.others is not None
    assert found.others.half_width > found.samples.half_width or found.others.low == 0
    assert (
        f"12 again, would put SDC-1 between {100 * found.others.low:.3f} % and {100 * found.others.high:.3f} %"
        in second
    )
    assert f"together between {100 * found.samples.low:.3f} % and" in second and second.endswith("(99 %)")
    ran(campaign(single=True, trials=3, bits="0", include=("w1",)), here / "quiet.db")
    quiet = report(here / "quiet.db")
    assert quiet.others is None and quiet.document()["other_samples"] is None
    assert "all 12 samples fared alike" in list(notes(quiet))[-1]
