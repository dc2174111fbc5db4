"""`onnxfi check`: exit codes, the table, files for CI servers, the JSON, and what is refused before anything runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator

Run = Callable[..., Any]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
SCHEMA = next(
    schema
    for schema in map(json.loads, re.findall(r"```json\n(.*?)\n```", DOCUMENT, re.S))
    if schema["title"] == "onnxfi check"
)
GRAPH = """g (float[N,4] x) => (float[N,3] y)
    <float[4,3] w = {1.0, -0.5, 0.25, 0.5, 1.5, -1.0, -0.75, 0.5, 2.0, 0.1, 0.2, 0.3}, float[3] b = {0.1, 0.0, -0.1}>
    { a = MatMul(x, w) y = Add(a, b) }"""
CAMPAIGN = {"data": "d.npz", "ber": 0.01, "repeat": 30}


@pytest.fixture(autouse=True)
def place(here: Path, save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.onnx, d.npz and a budget that passes."""
    monkeypatch.setenv("ONNXFI_CACHE", str(here / "cache"))
    save("m.onnx", GRAPH)
    x = ((np.random.Philox(1).random_raw(40) >> 40).astype(np.float64) / 2**23 - 1).astype(np.float32).reshape(10, 4)
    np.savez(here / "d.npz", x=x, labels=np.arange(10) % 3)
    budget("b.yaml", {"rate": "sdc1", "max": 1}, {"rate": "top1", "golden": True, "min": 0})
    return here


def budget(name: str, *limits: dict[str, Any], **more: Any) -> str:
    Path(name).write_text(yaml.safe_dump({"version": 1, "campaign": CAMPAIGN, "limits": [*limits], **more}))
    return name


def test_exit_codes_give_the_verdict(run: Run) -> None:
    ran = run("check", "m.onnx", "--budget", "b.yaml", "--workers", 0)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("m.onnx against b.yaml: PASS\n")
    failing = budget("f.yaml", {"rate": "sdc1", "max": 0}, {"rate": "due", "max": 1})
    ran = run("check", "m.onnx", "--budget", failing, "--workers", 0)
    assert ran.code == 1
    assert ran.out.startswith("m.onnx against f.yaml: FAIL, 1 of 2 limits\n")
    value = run("check", "m.onnx", "--budget", "b.yaml", "--workers", 0, "--json").json["limits"][0]["value"]
    ran = run("check", "m.onnx", "--budget", budget("n.yaml", {"rate": "sdc1", "max": value}), "--workers", 0)
    assert ran.code == 3
    assert "NOT DECIDED, 1 of 1 limits" in ran.out
    assert "not decided: the interval lies across the limit\n" in ran.out
    assert run("check", "m.onnx", "--budget", "none.yaml").code == 2


def test_the_table_says_measured_interval_limit_and_verdict(run: Run) -> None:
    wanted = budget("t.yaml", {"rate": "sdc1", "max": 0}, {"rate": "top1", "golden": True, "min": 0.05})
    lines = run("check", "m.onnx", "--budget", wanted, "--workers", 0).out.splitlines()
    assert lines[2].split() == ["Limit", "Measured", "Interval", "Allowed", "Verdict"]
    assert re.fullmatch(r" sdc1 at 0\.01 +\d+\.\d\d % +\[\d+\.\d\d, \d+\.\d\d\] % +at most 0 % +fail *", lines[4])
    assert re.fullmatch(r" golden top1 +\d+\.\d\d % +exact +at least 5 % +pass *", lines[5])
    assert lines[-1] == (
        "30 trials on 10 labelled samples of 'd.npz'; each interval holds with 0.99, all together with 0.99"
    )


@pytest.mark.parametrize(
    ("most", "drop", "code"),
    [(1, 0, 3), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((1, 1, 0), (0, 1, 1)))],
)
def test_the_json_fits_its_schema(run: Run, most: float, drop: float, code: int) -> None:
    wanted = budget(
        "j.yaml", {"rate": "sdc1", "max": most}, {"rate": "due", "max": 1}, {"rate": "top1", "golden": True, "min": 0},
        {"rate": "top1", "max_drop": drop},
    )  # fmt: skip
    base = run("check", "m.onnx", "--budget", "b.yaml", "--seed", 9, "-o", "base.db", "--json").json
    ran = run("check", "m.onnx", "--budget", wanted, "--baseline", "base.db", "--json", "--workers", 0)
    assert (ran.code, ran.err) == (code, "")
    for found in (base, json.loads(ran.out)):
        Draft202012Validator(SCHEMA).validate(found)
    found = json.loads(ran.out)
    assert ran.out.isascii()
    assert found["verdict"] == {0: "pass", 1: "fail", 3: "not decided"}[code]
    assert found["baseline"] == "base.db"
    assert found["limits"][2]["name"] == "golden top1: at least 0 %"
    assert found["limits"][3]["name"] == f"top1 at 0.01: drops by at most {100 * drop} points"
    assert {(rate["ber"], rate["layer"]) for rate in found["rates"]} == {(0.01, None)}


def test_the_json_of_one_check_is_the_baseline_of_the_next(run: Run) -> None:
    ran = run("check", "m.onnx", "--budget", "b.yaml", "--json", "--workers", 0)
    Path("base.json").write_text(ran.out)
    wanted = budget("c.yaml", {"rate": "sdc1", "max_rise": 1})
    assert run("check", "m.onnx", "--budget", wanted, "--baseline", "base.json", "--workers", 0).code == 0
    np.savez("d.npz", x=np.ones((10, 4), np.float32), labels=np.arange(10) % 3)
    ran = run("check", "m.onnx", "--budget", wanted, "--baseline", "base.json", "--workers", 0)
    assert ran.code == 2
    assert "the baseline 'base.json' cannot be compared: the data (SHA-256): " in ran.err


def test_files_for_servers_and_people(run: Run) -> None:
    wanted = budget("f.yaml", {"rate": "sdc1", "max": 0}, {"rate": "due", "max": 1})
    ran = run("check", "m.onnx", "--budget", wanted, "--junit", "j.xml", "--markdown", "s.md", "--workers", 0)
    assert ran.code == 1
    suite = ElementTree.parse("j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    text = Path("s.md").read_text(encoding="utf-8")
    assert text.startswith("### ❌ Resilience of m.onnx: FAIL, 1 of 2 limits\n")
    assert text.count("\n|") == 4


@pytest.mark.slow
def test_the_same_commit_gives_the_same_verdict_byte_for_byte(run: Run) -> None:
    words = ("check", "m.onnx", "--budget", "b.yaml", "--json")
    first = run(*words, "--workers", 2)
    again = run(*words, "--workers", 0)
    shutil.rmtree("cache")
    cold = run(*words, "--workers", 0)
    assert first.out == again.out == cold.out
    assert run(*words, "--workers", 0, "--seed", 1).json["campaign"]["seed"] == 1


def test_a_time_box_on_the_command_line(run: Run) -> None:
    ran = run("check", "m.onnx", "--budget", "b.yaml", "--time", 1e-6, "--workers", 0)
    assert ran.code == 3
    assert "not decided: 30 of 30 trials have no outcome: time ran out\n" in ran.out
    assert re.findall(r"^ (\w+ \w+).* pass *$", ran.out, re.M) == ["golden top1"]
    assert "0 of 30 trials on 10 labelled samples" in ran.out


def test_a_kept_store_is_one_of_onnxfis(run: Run) -> None:
    assert run("check", "m.onnx", "--budget", "b.yaml", "-o", "kept.db", "--workers", 0).code == 0
    assert run("report", "kept.db", "--json").json["trials"] == 30
    assert not list(Path().glob("*.onnxfi.db")), "nothing but what was asked for"


# ---------------------------------------------------------------------- writing


@pytest.mark.slow
def test_a_budget_is_written_and_passed(run: Run) -> None:
    ran = run(
        "check", "m.onnx", "--data", "d.npz", "--budget", "new.yaml", "--write-budget", "--seed", 3, "--workers", 0
    )
    assert ran.code == 0
    assert "wrote new.yaml\n" in ran.out
    whole = yaml.safe_load(Path("new.yaml").read_text())
    assert (whole["version"], whole["confidence"]) == (1, 0.99)
    assert whole["campaign"] == {"data": "d.npz", "ber": [0.01], "repeat": 200, "seed": 3, "samples": 200}
    assert run("check", "m.onnx", "--budget", "new.yaml", "--workers", 0).code == 0
    before = Path("new.yaml").read_bytes()
    ran = run("check", "m.onnx", "--budget", "new.yaml", "--write-budget")
    assert (ran.code, ran.err) == (
        2, "onnxfi: error: the budget 'new.yaml' exists; --force measures its limits anew, or name another file\n",
    )  # fmt: skip
    assert Path("new.yaml").read_bytes() == before
    ran = run("check", "m.onnx", "--budget", "new.yaml", "--write-budget", "--force", "--workers", 0)
    assert ran.code == 0
    assert Path("new.yaml").read_bytes() == before, "the same model, the same limits"


def test_writing_says_what_it_left_out(run: Run) -> None:
    wanted = budget("w.yaml", {"rate": "sdc", "max": 0}, {"rate": "due", "max": 0})
    ran = run("check", "m.onnx", "--budget", wanted, "--write-budget", "--force", "--workers", 0, "--json")
    assert ran.json["notes"] == ["wrote w.yaml", "left out, as it would allow everything: max of sdc at 0.01"]
    Draft202012Validator(SCHEMA).validate(ran.json)
    assert [limit["rate"] for limit in yaml.safe_load(Path("w.yaml").read_text())["limits"]] == ["due"]


# ---------------------------------------------------------------------- refused before anything runs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing option '--budget'"),
        (["--budget", "b.yaml", "--force"], "--force requires --write-budget"),
        (["--budget", "n.yaml", "--write-budget", "--time", 3], "--time has no effect with --write-budget; leave"),
        (["--budget", "n.yaml", "--write-budget", "--baseline", "x"], "--baseline has no effect with --write-budget"),
        (["--budget", "b.yaml", "--time", 0], "Invalid value for '--time'"),
        (["--budget", "b.yaml", "--seed", -1], "Invalid value for '--seed'"),
        (["--budget", "none/b.yaml", "--write-budget"], "no folder 'none' to write 'b.yaml' into; make it first"),
        (["--budget", "b.yaml", "--junit", "none/j.xml"], "no folder 'none' to write 'j.xml' into; make it first"),
        (["--budget", "b.yaml", "--markdown", "."], "the output '.' is a directory; give a file name"),
        (["--budget", "b.yaml", "--junit", "m.onnx"], "the output 'm.onnx' is an input as well; name another file"),
        (["--budget", "b.yaml", "--markdown", "b.yaml"], "the output 'b.yaml' is an input as well; name another file"),
        (["--budget", "b.yaml", "--junit", "x", "--markdown", "x"], "both outputs are 'x'; name another file"),
        (["--budget", "d.npz"], "'d.npz' is not a readable YAML"),
        (["--budget", "b.yaml", "--baseline", "m.onnx"], "'m.onnx' is not a baseline"),
        (["--budget", "b.yaml", "--data", "none.npz"], "none.npz"),
        (["--budget", "b.yaml", "-o", "m.onnx"], "m.onnx"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(
    run: Run, place: Path, words: list[Any], message: str
) -> None:
    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()}

    before = contents()
    ran = run("check", "m.onnx", *words, "--workers", 0)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err and ran.err.startswith("onnxfi: error: ") and ran.err.count("\n") == 1
    assert contents() == before


def test_a_newer_budget_and_unknown_keys(run: Run) -> None:
    Path("v.yaml").write_text("version: 2\ncampaign: {ber: 0.01}\n")
    ran = run("check", "m.onnx", "--budget", "v.yaml")
    assert (ran.code, ran.err) == (
        2,
        "onnxfi: error: v.yaml, line 1, column 10: version 2 of a budget; this onnxfi reads version 1; update onnxfi, "
        "or write it anew\n",
    )
    Path("v.yaml").write_text("version: 1\ncampaign: {ber: 0.01}\nlimits:\n- {rate: sdc1, maxx: 1}\n")
    ran = run("check", "m.onnx", "--budget", "v.yaml")
    assert (ran.code, ran.err[:80]) == (
        2,
        "onnxfi: error: v.yaml, line 4, column 16: unknown field 'maxx'; closest: 'max', "[:80],
    )


def test_help_is_enough_to_begin(run: Run) -> None:
    text = run("check", "--help").out
    for word in (
        "--write-budget",
        "--force",
        "--baseline",
        "--junit",
        "--markdown",
        "--time",
        "--json",
        "Exit code 0: pass",
    ):
        assert word in text
    assert "onnxfi check model.onnx --data images.npz --budget budget.yaml --write-budget" in text
