"""Options that commands share: sizes, names and groups."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from campaign_commands import Run

from onnxfi.cli import options
from onnxfi.cli import run as run_module
from onnxfi.cli.commands import COMMANDS, group
from onnxfi.cli.inject import command as inject_command
from onnxfi.faults.registry import fault_models


@pytest.mark.parametrize(
    ("text", "size"),
    [("800MB", 800_000_000), ("1.5g", 1_500_000_000), ("4GiB", 1 << 32), ("4096", 4096), ("2 kb", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert run_module.parse_size(text) == size and run_module.parse_size(None) is None


def command(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    line = [sys.executable, "-m", "onnxfi", *map(str, words)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("verb", ["inspect", "inject", "eval"])
def test_each_command_has_help_for_each_option(run: Run, verb: str) -> None:
    ran = run(verb, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "INTEGER RANGE" not in ran.out
    assert all(len(line) <= 90 for line in ran.out.splitlines())


def test_the_help_names_every_fault(run: Run) -> None:
    shown = re.sub(r"(?<=-)\s+", "", run("inject", "--help").out)  # lines break behind hyphens too
    own = [model.name for model in fault_models().values() if model.__module__.startswith("onnxfi.")]
    assert len(own) >= 13
    assert [name for name in own if not re.search(rf"\b{name}\b", shown)] == []


def test_each_flag_bears_the_name_of_its_parameter() -> None:
    assert {p.name for p in inject_command.params} >= {*options.SELECTION, *options.RUN_PARAMETERS}
    for parameter in inject_command.params:
        if parameter.param_type_name == "option":
            allowed = {str(parameter.name), str(parameter.name).removesuffix("s"), "json"}
            assert max(parameter.opts, key=len)[2:].replace("-", "_") in allowed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option_once_in_a_group(run: Run, name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    text = re.split(r"^(?=\w+:$)", run(name, "--help").out, maxsplit=1, flags=re.M)[1]
    for option in (o for o in command.params if isinstance(o, click.Option)):
        assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}\b(?!-)", text, re.M)) == 1, option.name
    if name == "run":
        titles = ["Trials", "Faults", "Selection", "Data", "Outcomes", "Engine", "Execution", "Options"]
        assert re.findall(r"^(\w+):$", text, re.M) == titles
