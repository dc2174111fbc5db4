"""Command lines of campaigns, and their documents held against the schemas of docs/reference/json.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

Run = Callable[..., Any]
DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
SCHEMAS = {
    schema["title"].removeprefix("onnxfi "): schema
    for schema in map(json.loads, re.findall(r"```json\n(.*?)\n```", DOCUMENT.read_text(encoding="utf-8"), re.S))
}
DATA = ("--data", "d.npz", "--provider", "cpu", "--workers", 0)
SINGLE = ("--single", "--trials", 25)


def checked(ran: Any, verb: str) -> Any:
    """The document of a command, held against its schema."""
    Draft202012Validator(SCHEMAS[verb]).validate(ran.json)
    return ran.json
