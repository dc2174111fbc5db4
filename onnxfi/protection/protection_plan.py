"""The plan of a protection: which tensors and layers get which protection or memory code; a file with a version.

docs/reference/protection-plan.md describes the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfi.errors import InputError, SpecError
from onnxfi.file_fields import Fields
from onnxfi.graph.write.output_file import atomic_files, check_output_files
from onnxfi.protection.memory_codes import CodeAssignment, parse_code_assignment, parse_memory_code
from onnxfi.protection.protections import parse_protection
from onnxfi.runtime.data.untrusted_yaml import load_fields

VERSION = 1
_FIELDS = ("version", "model", "graph", "memory", "cost", "budget", "forecast", "layers")
_MOST_ENTRIES = 10_000


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
    given = load_fields(path, "protection plan", _FIELDS, SpecError)
    digest = given.take(
        "model",
        lambda value: isinstance(value, str) and len(value) == 64,
        "the SHA-256 of a model, 64 hexadecimal digits",
    )
    try:
        graph = tuple(
            GraphEntry(str(parse_protection(text)), tuple(_exact(name) for name in names))
            for text, names in _entries(given, "graph", ("protection", "include"))
        )
        memory = tuple(
            MemoryEntry(str(parse_code_assignment(text).parts[0][0]), names)
            for text, names in _entries(given, "memory", ("code", "tensors"))
        )
    except InputError as error:
        raise given.fail(str(error).removeprefix(f"{given.where}: ")) from None
    if not graph and not memory:
        raise given.fail("the plan protects nothing; graph or memory names what")
    return ProtectionPlan(digest, graph, memory, {k: given.values[k] for k in _FIELDS[4:] if k in given})


def _entries(given: Fields, name: str, fields: tuple[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the pairs of a text and a list of names that a list of mappings holds."""
    text, names = fields
    return [
        (one.text(text, "a text"), one.texts(names, "a list of names, each a text"))
        for one in (given.each(name, fields, _MOST_ENTRIES) if given.required(name) != [] else ())
    ]


def _exact(pattern: str) -> str:
    if not pattern.startswith("="):
        raise SpecError(f"graph: include takes exact names, as '=conv1.weight'; got {pattern[:60]!r}")
    return pattern[1:]
