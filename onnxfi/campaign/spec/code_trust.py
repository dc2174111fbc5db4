"""Code named in files: an untrusted campaign or budget runs none unless the caller allows it.

Code that the caller names (a flag, an argument) is allowed. SECURITY.md says what is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from onnxfi.campaign.spec.yaml_fields import YamlNode
from onnxfi.extensions import names_function
from onnxfi.tasks.registry import runs_code

#: Words in the name of a provider's option that loads a library or an engine, or takes an address in memory.
_LOADS = re.compile(r"path|lib|plugin|alloc|free|stream|backend|context|cache|engine|file|dir", re.I)


def refuse_code(given: Mapping[str, Any], places: Mapping[str, YamlNode], instead: Collection[str]) -> None:
    """Raise SpecError for a field that has code run, as a file gives it; fields in `instead` get other values."""
    for name, item, what in _code(given):
        if name not in instead:
            flag = "--" + name.replace("_", "-")
            raise places.get(item, places[name]).error(
                f"{name} has code run that this file names ({what[:80]!r}); if you trust it, add --allow-code (in "
                f"Python allow_code=True), or name it yourself with {flag}"
            )


def _code(given: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the fields that run code, the place of the item, and its value."""
    found = []
    for name, is_code in (("data", names_function), ("task", runs_code)):
        text = given.get(name)
        if isinstance(text, str) and is_code(text):
            found.append((name, name, text))
    for name, loads in (
        ("metric", names_function), ("custom_ops", lambda _: True), ("provider_option", _is_loaded),
    ):  # fmt: skip
        items = given.get(name) or ()
        found += [(name, f"{name}[{k}]", str(text)) for k, text in enumerate(items) if loads(str(text))]
    return found


def _is_loaded(option: str) -> bool:
    key, _, value = option.partition("=")
    return bool(_LOADS.search(key)) or "/" in value or "\\" in value
