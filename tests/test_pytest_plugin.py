"""The pytest plugin, as pytest runs it: in a process of its own, with no other plugin but this one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

ROOT = Path(__file__).parents[1]
GRAPH = """<ir_version: 10, opset_import: ["": 21]> g (float[N,4] x) => (float[N,3] y)
    <float[4,3] w = {1.0, -0.5, 0.25, 0.5, 1.5, -1.0, -0.75, 0.5, 2.0, 0.1, 0.2, 0.3}> { y = MatMul(x, w) }"""
BUDGET = """
version: 1
campaign: {data: d.npz, ber: 0.01, repeat: 20}
limits:
- {rate: due, max: 1}
- {rate: sdc1, max: MOST}
"""


@pytest.fixture
def place(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with a model, data, a budget that passes (good.yaml) and one that fails (bad.yaml)."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ONNXFI_CACHE", str(pytester.path / "cache"))
    onnx.save(parser.parse_model(GRAPH), pytester.path / "m.onnx")
    x = ((np.random.Philox(1).random_raw(40) >> 40).astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(10, 4)
    np.savez(pytester.path / "d.npz", x=x, labels=np.arange(10) % 3)
    for name, most in (("good", "1"), ("bad", "0")):
        (pytester.path / f"{name}.yaml").write_text(BUDGET.replace("MOST", most))
    return pytester


def ran(place: pytest.Pytester, test: str, *words: str) -> pytest.RunResult:
    place.makepyfile(test)
    return place.runpytest_subprocess("-p", "onnxfi.pytest_plugin", *words)


def test_it_is_found_by_pytest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"onnxfi": "onnxfi.pytest_plugin"}


@pytest.mark.slow
def test_nothing_heavy_is_loaded_until_a_test_uses_it(place: pytest.Pytester) -> None:
    place.makeconftest(
        """
        import sys

        HEAVY = ("onnx", "onnxruntime", "numpy", "scipy", "yaml", "onnxfi.campaign", "onnxfi.graph", "onnxfi.faults")

        def loaded():
            return [name for name in HEAVY if name in sys.modules]

        def pytest_collection_finish(session):
            assert "onnxfi.pytest_plugin" in sys.modules
            assert loaded() == [] and len(session.items) == 2

        def pytest_runtest_teardown(item):
            print(item.name, "loaded", loaded())
        """
    )
    done = ran(
        place,
        """
        def test_first_of_all_something_else():
            import sys
            assert "numpy" not in sys.modules

        def test_model(onnxfi_check):
            assert onnxfi_check("m.onnx", "good.yaml")
        """,
        "-s",
    )
    done.assert_outcomes(passed=2)
    done.stdout.re_match_lines([r".*test_first_of_all_something_else loaded \[\]", r".*test_model loaded \['onnx',.*"])


@pytest.mark.slow
def test_a_failing_assertion_reads_well_without_the_source(place: pytest.Pytester) -> None:
    done = ran(place, "def test_model(onnxfi_check):\n    assert onnxfi_check('m.onnx', 'bad.yaml')\n", "--tb=short")
    done.assert_outcomes(failed=1)
    text = done.stdout.str()
    measured = r"measured [\d.]+ % \[[\d.]+, [\d.]+\] %, allowed at most 0 %: fail"
    shown = rf"<onnxfi check FAIL, 1 of 2 limits: sdc1 at 0\.01: {measured}>"
    assert re.search(rf"^E +AssertionError: assert {shown}", text, re.M)
    assert re.search(rf"where {shown} = <function onnxfi_check at \w+>\('m.onnx', 'bad.yaml'\)$", text, re.M)
    assert re.search(r"^-+ Captured onnxfi call -+$", text, re.M)
    assert re.search(r"^m\.onnx: FAIL, 1 of 2 limits$", text, re.M)
    assert re.search(
        r"^due at 0\.01: measured 0\.00 % \[0\.00, \d+\.\d\d\] %, allowed at most 100 %: pass$", text, re.M
    )
    assert re.search(r"^20 trials on 10 labelled samples of 'd\.npz'; each interval holds with 0\.995", text, re.M)
    assert "onnxfi/campaign" not in text, "no traceback of ours"
    summary = ran(
        place, "def test_model(onnxfi_check):\n    assert onnxfi_check('m.onnx', 'bad.yaml')\n", "--tb=no", "-vv"
    )
    summary.stdout.re_match_lines(
        [r"FAILED .*::test_model - AssertionError: assert <onnxfi check FAIL, 1 of 2 limits: sdc1 at 0\.01.*"]
    )


@pytest.mark.slow
def test_what_is_not_decided_is_no_pass_and_says_why(place: pytest.Pytester) -> None:
    done = ran(
        place,
        """
        def test_model(onnxfi_check):
            found = onnxfi_check("m.onnx", "good.yaml")
            assert found.verdict == "not decided"
            assert not found
            assert {f.reason for f in found.findings} == {"20 of 20 trials have no outcome: time ran out"}
            assert found
        """,
        "--onnxfi-time=1e-6",
        "--tb=line",
    )
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["*assert <onnxfi check NOT DECIDED, 2 of 2 limits: due at 0.01: *(20 of 20 trials have*"]
    )


@pytest.mark.slow
def test_seeds_keywords_and_the_markers_defaults(place: pytest.Pytester) -> None:
    done = ran(
        place,
        """
        import pytest

        def seed_and_samples(found):
            campaign = found.document()["campaign"]
            return campaign["seed"], campaign["samples"]

        def test_plain(onnxfi_check):
            assert seed_and_samples(onnxfi_check("m.onnx", "good.yaml")) == (7, None)

        @pytest.mark.onnxfi(samples=5, repeat=3)
        def test_marked(onnxfi_check):
            found = onnxfi_check("m.onnx", "good.yaml")
            assert seed_and_samples(found) == (7, 5)
            assert found.document()["trials"] == 3
            assert seed_and_samples(onnxfi_check("m.onnx", "good.yaml", samples=4, seed=1)) == (7, 4)

        def test_baseline_and_store(onnxfi_check, tmp_path):
            from onnxfi.campaign.gate.budget import BudgetLimit, load_budget
            from dataclasses import replace

            assert onnxfi_check("m.onnx", "good.yaml", store=tmp_path / "base.db")
            budget = replace(load_budget("good.yaml"), limits=(BudgetLimit("sdc1", max_rise=1.0),))
            assert onnxfi_check("m.onnx", budget, baseline=tmp_path / "base.db")
        """,
        "--onnxfi-seed=7",
        "--strict-markers",
    )
    done.assert_outcomes(passed=3)


@pytest.mark.slow
def test_the_marker_chooses_tests_that_use_the_fixture(place: pytest.Pytester) -> None:
    test = """
    def test_other(): pass
    def test_model(onnxfi_check): pass
    """
    ran(place, test, "-m", "not onnxfi").assert_outcomes(passed=1, deselected=1)
    ran(place, test, "-m", "onnxfi", "-v").stdout.fnmatch_lines(["*::test_model PASSED*", "*1 passed, 1 deselected*"])
    place.runpytest_subprocess("-p", "onnxfi.pytest_plugin", "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.onnxfi(**defaults): checks a model against a budget; *"]
    )
    place.runpytest_subprocess("-p", "onnxfi.pytest_plugin", "--help").stdout.fnmatch_lines(
        ["*--onnxfi-seed=N*", "*--onnxfi-time=S*"]
    )


@pytest.mark.slow
def test_bad_input_is_one_line(place: pytest.Pytester) -> None:
    done = ran(
        place,
        """
        def test_none(onnxfi_check):
            onnxfi_check("m.onnx", "none.yaml")

        def test_field(onnxfi_check):
            onnxfi_check("m.onnx", "good.yaml", repeat=0)

        def test_unknown(onnxfi_check):
            onnxfi_check("m.onnx", "good.yaml", sample=5)
        """,
    )
    done.assert_outcomes(failed=3)
    done.stdout.fnmatch_lines(
        [
            "onnxfi: error: cannot read 'none.yaml': No such file or directory",
            "onnxfi: error: repeat 0 is out of range; give 1 to *",
            "onnxfi: error: unknown field 'sample'; closest: 'samples'*",
        ]
    )
    assert "Traceback" not in done.stdout.str()
    wrong = place.runpytest_subprocess("-p", "onnxfi.pytest_plugin", "--onnxfi-seed=x")
    wrong.stderr.fnmatch_lines(["*--onnxfi-seed: invalid int value: 'x'*"])
