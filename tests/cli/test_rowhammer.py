"""`onnxfi rowhammer`: the table, the JSON document, and a list that runs."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from onnxfi.cli.commands import group

MODEL, TEMPLATES = "models/fashion_cnn.onnx", "examples/hardware/rowhammer.json"


def test_flips_are_printed_and_listed(tmp_path: Path) -> None:
    listed = tmp_path / "flips.jsonl"
    found = CliRunner().invoke(group, ["rowhammer", MODEL, TEMPLATES, "--save-faults", str(listed)])
    assert found.exit_code == 0, found.output
    assert "372 flips of 620 bits under them" in found.output
    assert len(listed.read_text().splitlines()) == 373
    none = tmp_path / "none.jsonl"
    layout = ["--memory-layout", "examples/hardware/dimm.json", "--save-faults", str(none)]
    assert f"no flip, so {none} is not written" in " ".join(
        CliRunner().invoke(group, ["rowhammer", MODEL, TEMPLATES, *layout]).output.split()
    )
    document = json.loads(CliRunner().invoke(group, ["rowhammer", MODEL, TEMPLATES, "--json"]).output)
    assert (document["templates"], document["candidates"], len(document["matches"])) == (6, 620, 372)
    assert {"template", "page", "target", "index", "bits", "fault", "before", "after"} <= set(document["matches"][0])
