"""Fields read from YAML: loading is safe, and an error says line and column. Campaigns and budgets are read so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxfi.campaign.spec import Part
from onnxfi.campaign.values import SpecError, differs, parse_rates
from onnxfi.errors import closest

_LARGEST_FILE = 1 << 20
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "value", "merge")


@dataclass(frozen=True)
class Place:
    """A value in a file: what it holds, and where it stands."""

    file: str
    node: Any = field(repr=False)

    def error(self, text: str) -> SpecError:
        """What is wrong with it, with line and column."""
        mark = self.node.start_mark
        return SpecError(f"{self.file}, line {mark.line + 1}, column {mark.column + 1}: {text}")

    def entries(self) -> Iterator[tuple[str, Place, Place]]:
        """Name, key and value of each field of a mapping; SpecError where it is none."""
        import yaml

        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("takes field names and their values, as ber: 1e-6")
        for key, value in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            yield name, Place(self.file, key), Place(self.file, value)

    def items(self) -> list[Place]:
        """The items of a list; anything else is a list of one."""
        import yaml

        listed = self.node.value if isinstance(self.node, yaml.SequenceNode) else [self.node]
        return [Place(self.file, node) for node in listed]

    def scalar(self, name: str, kind: str) -> Any:
        """A plain value: texts as they are written, the rest as YAML reads it (and 1e-6 as the number that it is)."""
        import yaml

        node = self.node
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(f"{name} takes a plain value, not a list or mapping")
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag not in _TAGS:
            raise self.error(f"the tag {node.tag[:60]!r} is not allowed; give a plain value")
        if kind.startswith("str") and tag != "null":
            return node.value
        if kind.startswith("float") and tag == "str" and node.style is None:
            try:
                return float(node.value)
            except ValueError:
                return node.value  # refused by its type
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (ValueError, yaml.YAMLError):
            raise self.error(f"{name}: {node.value[:60]!r} is no value of YAML") from None


Parts = Mapping[str, Callable[[Place], Any]]


def read_yaml(path: str | Path, what: str) -> Place:
    """A YAML file whose fields make `what` it is: no tags but those of plain values, no more than 1 MB."""
    try:
        with Path(path).open("rb") as stream:
            text = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise SpecError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if len(text) > _LARGEST_FILE:
        raise SpecError(f"{path} has more than {_LARGEST_FILE:,} bytes; a {what} is a page")
    return compose(text, str(path), what)


def compose(text: bytes, file: str, what: str) -> Place:
    """YAML text as a place; SpecError where it is none, or maps no names to values."""
    import yaml

    try:
        root = yaml.compose(text.decode("utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SpecError(f"{file} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise SpecError(f"{file} holds no {what}; a {what} maps field names to values, as version: 1")
    return Place(file, root)


def read_fields(
    whole: Place, kind: type, *, extra: tuple[str, ...] = (), parts: Parts | None = None
) -> tuple[dict[str, Any], dict[str, Place]]:
    """The fields of a dataclass that a mapping gives, by name, and where each stands.

    `extra` are whole numbers that it may hold besides; `parts` read what is of a type of its own. An item of a list
    stands at `name[number]`.
    """
    known = {f.name: str(f.type) for f in dataclasses.fields(kind)} | dict.fromkeys(extra, "int")
    given: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name, key, value in whole.entries():
        if name not in known:
            raise key.error(f"unknown field {name[:60]!r}{closest(name[:60], known)}")
        if name in given:
            raise key.error(f"{name} is given twice")
        places[name] = value
        places |= {f"{name}[{number}]": item for number, item in enumerate(value.items())}
        given[name] = _value(value, known[name], name, parts or {})
    return given, places


def _value(place: Place, kind: str, name: str, parts: Parts) -> Any:
    import yaml

    inner = kind.removeprefix("tuple[").partition(",")[0]
    read = parts.get(inner) or (lambda item: item.scalar(name, inner))
    if inner == kind:
        return read(place)
    if inner == "float" and isinstance(place.node, yaml.ScalarNode):
        try:
            return parse_rates(place.node.value, name)
        except SpecError as error:
            raise place.error(str(error)) from None
    return tuple(read(item) for item in place.items())


def built(kind: type, given: Mapping[str, Any], places: Mapping[str, Place], whole: Place) -> Any:
    """The value of these fields; what it has against one of them is told with that field's place."""
    try:
        return kind(**given)
    except SpecError as error:
        raise places.get(error.field, whole).error(str(error)) from None


def read_part(place: Place) -> Part:
    """A part of a mix."""
    part: Part = built(Part, *read_fields(place, Part), place)
    return part


def plain(value: Any) -> Any:
    """A dataclass as plain values for YAML: every field that is not at its default."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if differs(value, f)}
    return [plain(one) for one in value] if isinstance(value, tuple) else value
