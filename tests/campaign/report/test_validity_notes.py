"""Notes on validity: what the numbers of a report hold for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_campaigns import ran

from onnxfi.campaign.report.report import report
from onnxfi.campaign.report.validity_notes import notes, too_few
from onnxfi.campaign.spec.campaign import Campaign


def campaign(**fields: Any) -> Campaign:
    return Campaign(**{"model": "m.onnx", "data": "d.npz", "provider": "cpu", **fields})


def test_notes_say_what_the_numbers_hold_for(here: Path) -> None:
    ran(campaign(single=True, trials=60, bits="30"), here / "s.db")
    found = report(here / "s.db")
    first, *few, second = notes(found)
    assert few == [note for note in [too_few(found)] if note]
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


def test_trials_that_say_nothing_say_how_many_would(here: Path) -> None:
    ran(campaign(ber=(1e-6, 3e-3), repeat=4), here / "few.db")
    few = report(here / "few.db")
    said = too_few(few)
    top1 = [fold.rate("top1") for fold in few.by_rate]
    assert said.startswith("4 trials at a rate say little: top-1 at ") and said in list(notes(few))
    assert all(i is not None and i.half_width > 0.1 for i in top1)
    needed = int(said.partition("--repeat ")[2].split()[0])
    ran(campaign(ber=(1e-6, 3e-3), repeat=needed), here / "few.db")
    enough = report(here / "few.db")
    widths = [i.half_width for fold in enough.by_rate if (i := fold.rate("top1")) is not None]
    assert too_few(enough) == "" and max(widths) < 0.1, "the spread of four trials is only a guess of it"
    ran(campaign(single=True, trials=6, bits="30"), here / "single.db")
    assert "--trials " in too_few(report(here / "single.db"))
