"""Campaigns on a memory with a code: outcomes, causes and counts, on the same raw faults as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxfi import Campaign
from onnxfi.campaign.report.html_page import page
from onnxfi.campaign.report.report import Report, report
from onnxfi.campaign.report.validity_notes import protection_notes
from onnxfi.campaign.run.runner import run
from onnxfi.errors import InputError, SpecError

ROOT = Path(__file__).parents[3]
CNN, TEST = str(ROOT / "models/fashion_cnn.onnx"), str(ROOT / "models/fashion_test.npz")


def found(tmp_path: Path, **fields: Any) -> Report:
    store = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"
    list(run(Campaign(CNN, TEST, samples=40, seed=3, **fields), store))
    return report(store)


def test_secded_corrects_what_destroys_the_bare_network(tmp_path: Path) -> None:
    bare = found(tmp_path, ber=1e-5, repeat=6)
    coded = found(tmp_path, ber=1e-5, repeat=6, memory_code="secded:detected=keep")
    assert coded.blocks() is not None and coded.blocks()["corrected"] > 100 and bare.blocks() is None  # type: ignore[index]
    assert coded.everything.outcomes["masked"] >= 5 > bare.everything.outcomes["masked"]


def test_what_is_detected_is_due(tmp_path: Path) -> None:
    coded = found(tmp_path, ber=1e-3, repeat=3, memory_code="secded")
    assert coded.everything.outcomes == {"masked": 0, "sdc": 0, "due": 3}
    assert coded.causes() == {"memory-code": 3} and coded.document()["causes"] == {"memory-code": 3}
    due, blocks = protection_notes(coded)
    assert due == "DUE trials by cause: memory-code 3; 3 of 3 detected by a protection, the others without one"
    assert blocks.startswith("memory code secded: blocks with errors: ") and due in page([coded])


@pytest.mark.slow
def test_codes_in_the_words_run_on_the_encoded_network(tmp_path: Path) -> None:
    cep, mset = (found(tmp_path, ber=1e-4, repeat=4, memory_code=code) for code in ("cep", "mset"))
    bare = found(tmp_path, ber=1e-4, repeat=4)
    top1 = [one.everything.rate("top1").estimate for one in (bare, mset, cep)]  # type: ignore[union-attr]
    assert top1[0] < top1[1] - 0.2 and top1[0] < top1[2] - 0.2
    assert abs(cep.golden["metrics"]["top1"] - bare.golden["metrics"]["top1"]) <= 0.03


def test_campaigns_without_a_code_keep_their_identity() -> None:
    assert "memory_code" not in Campaign(CNN, ber=1e-5).identity()
    assert Campaign(CNN, ber=1e-5, memory_code="secded").identity()["scrub_interval"] == 1.0


def test_codes_where_they_say_nothing_are_refused(tmp_path: Path) -> None:
    for fields, message in (
        (
            {"single": True, "memory_code": "secded"},
            "memory_code secded says something of sweeps .* alone, not with single",
        ),
        ({"ber": 1e-5, "memory_code": "hamming"}, "memory_code: unknown memory code 'hamming'"),
        ({"ber": 1e-5, "scrub_interval": 0.1}, "scrub_interval says nothing without memory_code"),
        ({"ber": 1e-5, "scrub_interval": 0.0, "memory_code": "secded"}, "scrub_interval 0.0 is out of range"),
    ):
        with pytest.raises(SpecError, match=message):
            Campaign(CNN, **fields)
    with pytest.raises(InputError, match="is computed: inject into weights"):
        found(tmp_path, ber=1e-6, repeat=1, target="activations", memory_code="secded")
