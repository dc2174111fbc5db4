"""Reports for CI: JUnit and Markdown that say what failed, and names from strangers that break neither."""

from __future__ import annotations

from xml.etree import ElementTree

from onnxfi.campaign.gate.budget import BudgetLimit
from onnxfi.campaign.gate.check import CheckResult, Finding
from onnxfi.campaign.gate.ci_report import junit, markdown
from onnxfi.campaign.gate.measurement import Measured
from onnxfi.statistics.intervals import Interval
from onnxfi.tasks.kinds.classification import CLASSIFICATION


def interval(low: float, high: float) -> Interval:
    return Interval(low, high, (low + high) / 2, "", 0.99)


def checked_with(*findings: tuple[str, str], model: str = "models/m.onnx", reason: str = "") -> CheckResult:
    measured = Measured(
        "s.db", model, "0" * 64, {}, 100, "bit", {}, 5, "5 samples of 'a|b'", 10, 10, 0, 0.995, (), CLASSIFICATION
    )  # fmt: skip
    rows = tuple(
        Finding(BudgetLimit("sdc1", layer=layer, max=0.1), interval(0.02, 0.2), verdict, reason)
        for layer, verdict in findings
    )
    return CheckResult(model, rows, measured, 0.99)


def test_junit_says_what_failed_and_what_is_open() -> None:
    root = ElementTree.fromstring(
        junit(checked_with(("a", "pass"), ("b", "fail"), ("c", "not decided"), reason="too few"))
    )
    assert root.tag == "testsuites"
    (suite,) = root
    for element in (root, suite):
        counts = {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {"tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [f"sdc1 in {layer}: at most 10 %" for layer in "abc"]
    assert {case.get("classname") for case in cases} == {"onnxfi.m"}
    assert [[child.tag for child in case] for case in cases] == [
        ["system-out"], ["failure", "system-out"], ["skipped", "system-out"],
    ]  # fmt: skip
    failure = cases[1].find("failure")
    assert failure is not None
    text = "sdc1 in b: measured 11.00 % [2.00, 20.00] %, allowed at most 10 %: fail (too few)"
    assert failure.get("message") == text
    assert failure.text is not None and failure.text.startswith(text + "\n10 trials on 5 samples")
    skipped = cases[2].find("skipped")
    assert skipped is not None and str(skipped.get("message")).endswith("not decided (too few)")


NASTY = "<b>&\"'\x00\x1b[31m|`*_\n\ud800é\uffff"


def test_names_from_strangers_break_no_file() -> None:
    checked = checked_with((NASTY, "fail"), model=f"models/{NASTY[:5]}.onnx")
    root = ElementTree.fromstring(junit(checked))
    assert "\\x00\\x1b[31m" in str(root[0].findall("testcase")[0].get("name"))
    rows = [line for line in markdown(checked).splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert rows[2].replace("\\|", "").count("|") == 6, "no cell more than there are columns"
    assert "<b>" not in markdown(checked).replace("\\<", "")
    markdown(checked).encode("utf-8")


def test_names_that_steer_what_shows_them_are_written_out() -> None:
    checked = checked_with(("a\x1b[2J\x9b31m\u202eb\u2028c", "fail"))
    for text in (junit(checked).decode(), markdown(checked)):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "x1b[2J" in text.replace("\\[", "[")


def test_markdown_is_a_table_under_the_verdict() -> None:
    lines = markdown(checked_with(("conv", "fail"), ("fc", "not decided"), reason="too few")).splitlines()
    assert lines[0] == "### ❌ Resilience of m.onnx: FAIL, 1 of 2 limits"
    assert lines[2:5] == [
        "| Limit | Measured | Interval | Allowed | Verdict |",
        "|---|---:|---:|---|---|",
        "| sdc1 in conv | 11.00 % | \\[2.00, 20.00\\] % | at most 10 % | ❌ fail: too few |",
    ]
    assert lines[-1].startswith("10 trials on 5 samples of 'a\\|b'; each interval holds with 0.995")
