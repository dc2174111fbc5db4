"""Options of campaigns: every field has a flag with its default, and a spec with flags is one campaign."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from campaign_commands import DATA, Run
from click.testing import CliRunner
from tiny_campaigns import tables

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.flat_fields import flat_fields
from onnxfi.cli.campaign_options import CAMPAIGN
from onnxfi.cli.commands import COMMANDS
from onnxfi.cli.options import verb


def test_a_spec_and_its_flags_are_the_same_campaign(run: Run, tiny: Path) -> None:
    words = ("m.onnx", *DATA[:4], "--single", "--margin", 0.3, "--include", "fc1", "--seed", 4)
    spec = run("plan", *words, "--print-spec")
    assert (spec.code, spec.err) == (0, "")
    Path("c.yaml").write_text(spec.out)
    run("run", "c.yaml", "--workers", 0, "-o", "1.db")
    run("run", *words, "--workers", 0, "-o", "2.db")
    assert tables(Path("1.db")) == tables(Path("2.db"))
    assert run("plan", "c.yaml", "--print-spec").out == spec.out


def test_a_mix_by_flags_and_by_spec(run: Run, tiny: Path) -> None:
    parts = ("--mix", "fault: stuck-at-1, count: 2, include: fc1", "--mix", "ber: 1e-2")
    assert run("run", "m.onnx", *DATA, *parts, "--repeat", 4, "-o", "1.db").code == 0
    Path("c.yaml").write_text(
        "model: m.onnx\ndata: d.npz\nprovider: cpu\nrepeat: 4\nmix:\n"
        "- {fault: stuck-at-1, count: 2, include: fc1}\n- ber: 1e-2\n"
    )
    assert run("run", "c.yaml", "--workers", 0, "-o", "2.db").code == 0
    assert tables(Path("1.db")) == tables(Path("2.db"))
    assert "stuck-at-1" in run("show", "1.db", 1).out


def test_help_lists_every_field_and_verb(run: Run) -> None:
    texts = run("run", "--help").out
    for word in ("--ber", "--single", "--margin", "--per", "--mix", "--shard", "--fresh", "--workers", "--due"):
        assert word in texts
    assert texts.index("--ber") < texts.index("--include") < texts.index("--workers"), (
        "what is asked first stands first"
    )
    whole = run("--help").out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", whole, re.M)


def test_flags_have_the_defaults_of_the_fields() -> None:
    @verb("campaign", "", *CAMPAIGN)
    def command(**given: Any) -> None:
        found.update(given)

    found: dict[str, Any] = {}
    assert CliRunner().invoke(command, []).exit_code == 0
    known = {name: field.default for name, field in flat_fields(Campaign).items()}
    words = {name: ",".join(known[name]) for name in ("due", "target")}
    # --allow-code is of the command alone: no file can allow itself to run code.
    shorthands = dict.fromkeys(("voltage", "temperature", "fault_map", "memory_layout", "array"))  # of a fault
    base = (
        known | shorthands | {"ber": None, "per_sample": None, "mix": (), "faults": None, "allow_code": False} | words
    )
    assert found == {name: base[name] for name in found}
    assert set(known) - set(found) == {"model"}
