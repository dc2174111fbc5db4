"""Fields read from YAML: loading is safe, and an error says line and column. Campaigns and budgets are read so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from onnxfi.campaign.spec.designs import FaultMixPart
from onnxfi.campaign.spec.flat_fields import brief, build, flat_fields, given_fields, parse_rates
from onnxfi.errors import SpecError, closest
from onnxfi.file_fields import read_bytes
from onnxfi.runtime.data.untrusted_yaml import LARGEST_FILE, compose_yaml, scalar

T = TypeVar("T")

#: Types that stand for a text where one is wanted; a null is none.
_WRITTEN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "timestamp", "value", "merge"))
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class YamlNode:
    """A value in a file: what it holds, and where it stands."""

    file: str
    node: Any = field(repr=False)

    def error(self, text: str) -> SpecError:
        """Return an error with the line and column of the value."""
        mark = self.node.start_mark
        return SpecError(f"{self.file}, line {mark.line + 1}, column {mark.column + 1}: {text}")

    def entries(self) -> Iterator[tuple[str, YamlNode, YamlNode]]:
        """Name, key and value of each field of a mapping; SpecError if it is none."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error("takes field names and their values, as ber: 1e-6")
        for key, value in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            yield name, YamlNode(self.file, key), YamlNode(self.file, value)

    def items(self) -> list[YamlNode]:
        """Return the items of a list; anything else is a list of one."""
        listed = self.node.value if isinstance(self.node, yaml.SequenceNode) else [self.node]
        return [YamlNode(self.file, node) for node in listed]

    def scalar(self, name: str, kind: Any) -> Any:
        """Return a plain value: texts as they are written, the rest as YAML reads it."""
        node = self.node
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(f"{name} takes a plain value, not a list or mapping")
        if node.tag not in (*_WRITTEN, _NULL):
            raise self.error(f"the tag {node.tag[:60]!r} is not allowed; give a plain value")
        try:
            return node.value if _is_text(kind) and node.tag != _NULL else scalar(node)
        except ValueError as why:
            raise self.error(f"{name}: {why}") from None


def _is_text(kind: Any) -> bool:
    return kind is str or get_origin(kind) is Literal or str in get_args(kind)


Parts = Mapping[type, Callable[[YamlNode], Any]]


def read_yaml(path: str | Path, what: str) -> YamlNode:
    """Return a YAML file whose fields make `what` it is, read within limits (`onnxfi.runtime.data.untrusted_yaml`)."""
    return compose(read_bytes(path, LARGEST_FILE, SpecError), str(path), what)


def check_version(given: dict[str, Any], places: Mapping[str, YamlNode], what: str, version: int) -> None:
    """Drop the version from the fields of a file of this kind; SpecError for another version."""
    found = given.pop("version", version)
    if found is True or found != version:
        newer = "; update onnxfi, or write it anew" if isinstance(found, int) and found > version else ""
        raise places["version"].error(
            f"version {brief(found)[:20]} of a {what}; this onnxfi reads version {version}{newer}"
        )


def compose(text: bytes, file: str, what: str) -> YamlNode:
    """Return YAML text as a place; SpecError if it is none, or maps no names to values."""
    root = compose_yaml(text, file, what, SpecError)
    if not isinstance(root, yaml.MappingNode):
        document = "spec" if what == "campaign" else what
        raise SpecError(
            f"{file} holds no {what}; a {what} maps field names to values, as version: 1 (docs/reference/{document}.md)"
        )
    return YamlNode(file, root)


def read_fields(
    whole: YamlNode, known: Mapping[str, Any], *, extra: tuple[str, ...] = (), parts: Parts | None = None
) -> tuple[dict[str, Any], dict[str, YamlNode]]:
    """Return the fields that a mapping gives, by name, and the node of each.

    `known` are their types, `extra` are whole numbers that it may hold besides; `parts` read what is of a type of its
    own. An item of a list stands at `name[number]`.
    """
    known = {**known, **dict.fromkeys(extra, int)}
    given: dict[str, Any] = {}
    places: dict[str, YamlNode] = {}
    for name, key, value in whole.entries():
        if name not in known:
            raise key.error(f"unknown field {name[:60]!r}{closest(name[:60], known)}")
        if name in given:
            raise key.error(f"{name} is given twice")
        places[name] = value
        places |= {f"{name}[{number}]": item for number, item in enumerate(value.items())}
        given[name] = _value(value, known[name], name, parts or {})
    return given, places


def _value(place: YamlNode, kind: Any, name: str, parts: Parts) -> Any:
    listed = get_origin(kind) is tuple
    inner = get_args(kind)[0] if listed else kind
    read = parts.get(inner) or (lambda item: item.scalar(name, inner))
    if not listed:
        return read(place)
    if inner is float and isinstance(place.node, yaml.ScalarNode):
        try:
            return parse_rates(place.node.value, name)
        except SpecError as error:
            raise place.error(str(error)) from None
    return tuple(read(item) for item in place.items())


def built(
    make: Callable[[Mapping[str, Any]], T], given: Mapping[str, Any], places: Mapping[str, YamlNode], whole: YamlNode
) -> T:
    """Return what is made of these fields; an error names the place of the field."""
    try:
        return make(given)
    except SpecError as error:
        raise places.get(error.field, whole).error(str(error)) from None


def flat_types(kind: Any) -> dict[str, Any]:
    """Return the types of the flat fields of a value that a file may hold, by name."""
    return {name: one.kind for name, one in flat_fields(kind).items() if not one.metadata.get("unwritten")}


def read_mix_part(place: YamlNode) -> FaultMixPart:
    """Return a part of a mix."""
    part: FaultMixPart = built(partial(build, FaultMixPart), *read_fields(place, flat_types(FaultMixPart)), place)
    return part


def plain_values(value: Any) -> Any:
    """Return a dataclass as plain values for YAML: every flat field that is not at its default."""
    if dataclasses.is_dataclass(value):
        known = flat_types(type(value))
        return {name: plain_values(one) for name, one in given_fields(value).items() if name in known}
    return [plain_values(one) for one in value] if isinstance(value, tuple) else value
