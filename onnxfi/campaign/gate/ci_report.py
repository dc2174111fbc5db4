"""A checked model for CI servers and pull requests: JUnit XML and Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

from onnxfi.campaign.gate.check import FAIL, PASS, UNDECIDED, CheckResult
from onnxfi.errors import OutputError
from onnxfi.graph.model.byte_source import printable
from onnxfi.graph.write.output_file import atomic_files, check_output_files

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~&])")
_SIGNS = {PASS: "✅", FAIL: "❌", UNDECIDED: "❔"}


def junit(checked: CheckResult) -> bytes:
    """JUnit XML: a test case for each limit; failed where it failed, skipped where it is not decided."""
    counts = {
        "tests": str(len(checked.findings)), "failures": str(checked.count(FAIL)), "errors": "0",
        "skipped": str(checked.count(UNDECIDED)),
    }  # fmt: skip
    root = ElementTree.Element("testsuites", {"name": "onnxfi check", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _xml(f"onnxfi check {checked.model}"), **counts})
    properties = ElementTree.SubElement(suite, "properties")
    attributes = {
        "model": checked.model, "sha256": checked.measured.digest, "verdict": checked.verdict,
        "conditions": checked.conditions(), "baseline": checked.baseline or "",
    }  # fmt: skip
    for name, value in attributes.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    for finding in checked.findings:
        given = {"classname": _xml(f"onnxfi.{Path(checked.model).stem}"), "name": _xml(str(finding.limit)), "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", given)
        if finding.verdict == FAIL:
            failure = ElementTree.SubElement(case, "failure", {"message": _xml(str(finding)), "type": "limit"})
            failure.text = _xml(f"{finding}\n{checked.conditions()}")
        elif finding.verdict == UNDECIDED:
            ElementTree.SubElement(case, "skipped", {"message": _xml(str(finding))})
        ElementTree.SubElement(case, "system-out").text = _xml(str(finding))
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold or that steer what shows it; those are written out."""
    return "\n".join(map(printable, text.split("\n")))


def markdown(checked: CheckResult) -> str:
    """Return a summary for a pull request."""
    rows = [
        "| Limit | Measured | Interval | Allowed | Verdict |",
        "|---|---:|---:|---|---|",
        *(
            f"| {_plain(f.limit.what)} | {_plain(f.measured)} | {_plain(f.ends)} | {_plain(f.limit.allowed)} "
            f"| {_SIGNS[f.verdict]} {f.verdict}{': ' + _plain(f.reason) if f.reason else ''} |"
            for f in checked.findings
        ),
    ]
    title = f"### {_SIGNS[checked.verdict]} Resilience of {_plain(Path(checked.model).name)}: {checked.summary()}"
    against = f"\n\nChange against {_plain(checked.baseline)}." if checked.baseline else ""
    return "\n".join([title, "", *rows, "", _plain(checked.conditions()) + "."]) + against + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_xml(text).split()))


def writer(path: str | Path, inputs: Iterable[str | Path] = ()) -> Callable[[str | bytes], None]:
    """Return a function that writes a file in one go; OutputError at once where that is impossible."""
    place = Path(path)
    if place.resolve() in [Path(one).resolve() for one in inputs]:
        raise OutputError(f"the output {str(place)!r} is an input as well; name another file")
    check_output_files(None, [place])

    def write(content: str | bytes) -> None:
        with atomic_files([place]) as (stream,):
            stream.write(content.encode() if isinstance(content, str) else content)

    return write
