"""Evidence: shares by hand from the report, coverage, FIT, and what is said about limits."""

from __future__ import annotations

import csv
from contextlib import chdir
from pathlib import Path

import pytest
from tiny_campaigns import mlp, ran, samples

from onnxfi.analysis.environment import Environment, Memory
from onnxfi.analysis.evidence import write_evidence
from onnxfi.campaign.report.report import report
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import InputError

SRAM = Memory("sram", ("weights",), 1 << 20, (1.0, 1.0, 1.0), "FIT/bit")


def test_the_table_is_that_of_the_report(tmp_path: Path) -> None:
    mlp(tmp_path, hidden=2)
    samples(tmp_path, 12)
    with chdir(tmp_path):
        ran(Campaign("m.onnx", "d.npz", single=True, margin=0.2, per="layer", provider="cpu"), tmp_path / "s.db")
        written = write_evidence("s.db", "e", Environment((SRAM,)))
        layers = report("s.db").by_layer
        each = report("s.db", confidence=1 - 0.01 / 2 / len(layers)).by_layer
        ran(Campaign("m.onnx", "d.npz", ber=1e-3, repeat=2, provider="cpu"), tmp_path / "sweep.db")
        with pytest.raises(InputError, match="a vulnerability comes from trials of one bit fault"):
            write_evidence("sweep.db", "f")
    assert [file.name for file in written] == ["fmeda.csv", "evidence.md"] and not (tmp_path / "f").exists()
    with open(tmp_path / "e" / "fmeda.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row, fold in zip(rows, each, strict=True):
        wrong, due = fold.rate("sdc1"), fold.rate("due_samples")
        assert wrong is not None and due is not None and row["element"] == fold.key
        assert float(row["dangerous_undetected_high"]) == pytest.approx(wrong.high)
        assert float(row["dangerous_detected"]) == pytest.approx(due.estimate)
        total = wrong.estimate + due.estimate
        assert float(row["diagnostic_coverage"]) == pytest.approx(
            due.estimate / total if total else float("nan"), nan_ok=True
        )
        assert float(row["fit_undetected_high"]) == pytest.approx(fold.population * wrong.high)
    text = (tmp_path / "e" / "evidence.md").read_text()
    for part in (
        "diagnostic coverage",
        "## Assumptions",
        "## Limits",
        "No SIL, ASIL, DAL",
        "onnxfi run m.onnx",
        "SHA-256",
    ):
        assert part in text
