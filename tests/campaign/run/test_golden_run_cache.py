"""The cache of golden runs: it may cost time, never an answer, and it is bounded."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_campaigns import mlp, samples

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.gate.budget import Budget, BudgetLimit
from onnxfi.campaign.gate.check import CheckResult, check
from onnxfi.campaign.run import golden_run_cache
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.runtime.data.sample_outputs import Outputs, as_run, stacked

TRIALS = 16
SWEEP = Campaign("", data="d.npz", ber=0.01, repeat=TRIALS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Golden runs are kept in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONNXFI_CACHE", str(folder))
    return folder


def only(campaign: Campaign, *limits: BudgetLimit, **more: Any) -> Budget:
    return Budget(campaign, limits, **more)


def found(checked: CheckResult) -> list[tuple[str, str]]:
    return [(finding.limit.what, finding.verdict) for finding in checked.findings]


PASSING, FAILING = BudgetLimit("sdc1", max=1), BudgetLimit("sdc1", max=0)


def cached(folder: Path) -> Path:
    (file,) = folder.glob("golden-*.npz")
    return file


def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count runs of the whole model over all samples: the golden runs, as no trial here takes the full route."""
    asked: list[int] = []
    run = OpenCampaign.run

    def counted(self: OpenCampaign, session: Any, *, batches: int | None = None) -> Any:
        asked.extend([1] if batches is None else [])
        return run(self, session, batches=batches)

    monkeypatch.setattr(OpenCampaign, "run", counted)
    return asked


def test_golden_is_run_once_where_it_is_known(here: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = only(replace(SWEEP, provider="cpu"), PASSING)
    asked = runs(monkeypatch)
    first = check("m.onnx", campaign).document()
    cold = len(asked)
    kept = cached(own_cache)
    stamp = kept.read_bytes()
    assert check("m.onnx", campaign).document() == first
    assert len(asked) - cold == cold - 1, "one run less"
    assert cached(own_cache).read_bytes() == stamp
    with np.load(kept, allow_pickle=False) as held:
        assert json.loads(str(held["layout"])) == [[[0, 12], [["y", "float32", [12, 3]]]]]


def test_a_damaged_file_is_made_anew(here: Path, own_cache: Path) -> None:
    first = check("m.onnx", only(SWEEP, PASSING)).document()
    file = cached(own_cache)
    whole = file.read_bytes()
    other = bytearray(whole)
    other[whole.index(b"data.npy") + 200] ^= 1
    for damaged in (b"", whole[:100], b"no archive", bytes(other)):
        file.write_bytes(damaged)
        assert check("m.onnx", only(SWEEP, PASSING)).document() == first
        assert cached(own_cache).read_bytes() == whole


def test_scores_of_another_machine_are_not_believed(here: Path, own_cache: Path) -> None:
    first = check("m.onnx", only(SWEEP, PASSING)).document()
    file = cached(own_cache)
    whole = file.read_bytes()
    golden_run_cache.keep_outputs(file, as_run(np.full((12, 3), 0.5, np.float32)))
    assert file.read_bytes() != whole
    assert check("m.onnx", only(SWEEP, PASSING)).document() == first
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_all_that_fixes_the_scores_is_in_the_name(here: Path, own_cache: Path) -> None:
    samples(here, n=13, name="e.npz")
    mlp(here, name="n.onnx", seed=9)
    for number, other in enumerate(({}, {"data": "e.npz"}, {"samples": 5}, {"batch": 4}, {"optimization": "off"}), 1):
        check("m.onnx", only(replace(SWEEP, **other), PASSING))  # type: ignore[arg-type]
        assert len(list(own_cache.iterdir())) == number
    check("n.onnx", only(SWEEP, PASSING))
    assert len(list(own_cache.iterdir())) == 6
    check("m.onnx", only(replace(SWEEP, seed=4, repeat=3, fault="zero"), PASSING))
    assert len(list(own_cache.iterdir())) == 6, "faults do not change the golden run"


def test_the_cache_is_bounded_and_the_oldest_goes(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_run_cache, "LARGEST_FILE_BYTES", 4000)
    for number in range(5):
        file = own_cache / f"golden-{number}.npz"
        golden_run_cache.keep_outputs(file, as_run(np.zeros(500, np.float32)))
        os.utime(file, (number, number))
        monkeypatch.setattr(golden_run_cache, "LARGEST_CACHE_BYTES", 3 * file.stat().st_size + 1)
    assert sorted(file.stem for file in own_cache.iterdir()) == ["golden-2", "golden-3", "golden-4"]
    golden_run_cache.keep_outputs(own_cache / "golden-large.npz", as_run(np.zeros(1001, np.float32)))
    assert not (own_cache / "golden-large.npz").exists()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8"])
def test_scores_of_any_type_come_back(own_cache: Path, kind: str) -> None:
    scores = np.arange(12).astype(kind).reshape(4, 3)
    golden_run_cache.keep_outputs(own_cache / "golden-x.npz", as_run(scores))
    found = golden_run_cache.read_outputs(own_cache / "golden-x.npz")
    assert found is not None
    back = stacked(found)
    assert (back.dtype, back.shape, back.tobytes()) == (scores.dtype, scores.shape, scores.tobytes())


def test_alarms_of_the_golden_run_come_back(own_cache: Path) -> None:
    """A false alarm of the golden run must not count in a trial."""
    run = (Outputs(np.arange(3), {"y": np.ones((3, 2), np.float32)}, {}, np.array([False, True, False])),)
    golden_run_cache.keep_outputs(own_cache / "golden-a.npz", run)
    (found,) = golden_run_cache.read_outputs(own_cache / "golden-a.npz") or ()
    assert found.arrays.keys() == {"y"} and found.alarms is not None and found.alarms.tolist() == [False, True, False]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Path) -> None:
    for name in ("ONNXFI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, place in (("linux", ".cache/onnxfi"), ("darwin", "Library/Caches/onnxfi")):
        monkeypatch.setattr("sys.platform", platform)
        assert golden_run_cache.cache_folder() == tmp_path / place
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert golden_run_cache.cache_folder() == tmp_path / "xdg" / "onnxfi"
    monkeypatch.setenv("ONNXFI_CACHE", "off")
    assert golden_run_cache.cache_folder() is None
    assert check("m.onnx", only(SWEEP, PASSING)).verdict == "pass"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXFI_CACHE", str(tmp_path / "file" / "inside"))
    assert check("m.onnx", only(SWEEP, PASSING)).verdict == "pass", "a cache that cannot be written costs time only"
