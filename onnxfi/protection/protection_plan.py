"""The plan of a protection: which tensors and layers get which protection or memory code; a file with a version.

docs/reference/protection-plan.md describes the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfi.errors import InputError, SpecError, closest
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.protection.memory_codes import CodeAssignment, parse_code_assignment, parse_memory_code
from onnxfi.protection.protections import parse_protection
from onnxfi.runtime.data.untrusted_yaml import load_yaml

VERSION = 1
_FIELDS = ("version", "model", "graph", "memory", "cost", "budget", "forecast", "layers")
_REQUIRED = ("version", "model", "graph", "memory")


@dataclass(frozen=True)
class GraphEntry:
    """A protection of the graph, and the activations or weights that it covers, by name."""

    protection: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class MemoryEntry:
    """A memory code, and the weights that it covers, by name."""

    code: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class ProtectionPlan:
    """Protections by layer, to be put into a model by `protect`, and memory codes, for `memory_code` of a campaign.

    Attributes
    ----------
    model : str
        SHA-256 of the model that it is for.
    graph : tuple of GraphEntry
        Protections of the graph.
    memory : tuple of MemoryEntry
        Codes of the memory.
    remarks : dict
        Cost, budget, forecast and a list of the layers, for people and programs; nothing is computed from them.

    Examples
    --------
    >>> plan = ProtectionPlan("0" * 64, (), (MemoryEntry("secded", ("conv1.weight", "conv1.bias")),))
    >>> plan.memory_code
    'secded@=conv1.weight,=conv1.bias'
    """

    model: str
    graph: tuple[GraphEntry, ...] = ()
    memory: tuple[MemoryEntry, ...] = ()
    remarks: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def memory_code(self) -> str | None:
        """The text that `memory_code` of a campaign takes; None without a code."""
        parts = tuple(
            (parse_memory_code(one.code), tuple("=" + tensor for tensor in one.tensors)) for one in self.memory
        )
        return str(CodeAssignment(parts)) if parts else None

    def document(self) -> dict[str, Any]:
        """Return the plan as plain values, as the file holds them."""
        return {
            "version": VERSION, "model": self.model,
            "graph": [
                {"protection": one.protection, "include": ["=" + name for name in one.names]} for one in self.graph
            ],
            "memory": [{"code": one.code, "tensors": list(one.tensors)} for one in self.memory],
            **self.remarks,
        }  # fmt: skip


def write_protection_plan(plan: ProtectionPlan, out: str | Path) -> None:
    """Write a plan as YAML; OutputError if the place cannot be written.

    Parameters
    ----------
    plan : ProtectionPlan
        The plan.
    out : str or Path
        The file.
    """
    import yaml

    file = Path(out)
    check_output_files(None, [file], copy=False)
    text = yaml.safe_dump(plan.document(), sort_keys=False, allow_unicode=False, width=120)
    with atomic_files([file]) as (stream,):
        stream.write(text.encode())


def load_protection_plan(path: str | Path) -> ProtectionPlan:
    """Read a plan from its file.

    Parameters
    ----------
    path : str or Path
        The file; docs/reference/protection-plan.md describes it.

    Returns
    -------
    ProtectionPlan
        The plan, whose protections and codes exist.

    Raises
    ------
    SpecError
        For an unknown or missing field, protection or code, or another version.

    Examples
    --------
    >>> import tempfile
    >>> plan = ProtectionPlan("0" * 64, (GraphEntry("clip-weights", ("fc1.weight",)),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_protection_plan(plan, folder + "/plan.yaml")
    ...     load_protection_plan(folder + "/plan.yaml") == plan
    True
    """
    given = load_yaml(path, "protection plan", SpecError)

    def fail(text: str) -> SpecError:
        return SpecError(f"{path}: {text}")

    if not isinstance(given, dict):
        raise fail(f"a protection plan has the fields {', '.join(_REQUIRED)}")
    for name in given:
        if name not in _FIELDS:
            raise fail(f"unknown field {str(name)[:60]!r}{closest(str(name), _FIELDS)}")
    for name in _REQUIRED:
        if name not in given:
            raise fail(f"{name} is missing")
    if given["version"] is True or given["version"] != VERSION:
        raise fail(f"version {str(given['version'])[:20]} of a protection plan; this onnxfi reads version {VERSION}")
    digest = given["model"]
    if not isinstance(digest, str) or len(digest) != 64:
        raise fail("model is no SHA-256 of a model: 64 hexadecimal digits")
    try:
        graph = tuple(
            GraphEntry(str(parse_protection(text)), tuple(_exact(name) for name in names))
            for text, names in _entries(given["graph"], "graph", ("protection", "include"))
        )
        memory = tuple(
            MemoryEntry(str(parse_code_assignment(text).parts[0][0]), names)
            for text, names in _entries(given["memory"], "memory", ("code", "tensors"))
        )
    except InputError as error:
        raise fail(str(error)) from None
    if not graph and not memory:
        raise fail("the plan protects nothing; graph or memory names what")
    return ProtectionPlan(digest, graph, memory, {k: given[k] for k in _FIELDS[4:] if k in given})


def _entries(given: Any, where: str, fields: tuple[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the pairs of a text and a list of names that a list of mappings holds."""
    if not isinstance(given, list):
        raise SpecError(f"{where} takes a list, each with {' and '.join(fields)}")
    found = []
    for k, one in enumerate(given):
        if not isinstance(one, dict) or set(one) != set(fields):
            raise SpecError(f"{where}[{k}] takes {' and '.join(fields)}, and no other field")
        text, names = (one[name] for name in fields)
        if not isinstance(text, str) or not isinstance(names, list) or not names:
            raise SpecError(f"{where}[{k}]: {fields[0]} takes a text, {fields[1]} a list of names")
        if not all(isinstance(name, str) and name for name in names):
            raise SpecError(f"{where}[{k}]: {fields[1]} takes names, each a text")
        found.append((text, tuple(names)))
    return found


def _exact(pattern: str) -> str:
    if not pattern.startswith("="):
        raise SpecError(f"graph: include takes exact names, as '=conv1.weight'; got {pattern[:60]!r}")
    return pattern[1:]
