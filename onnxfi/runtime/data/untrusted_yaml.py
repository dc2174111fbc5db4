"""Untrusted YAML: plain values within limits. All YAML files are read here.

Refused before any cost: more than 1 MB, too many values (an alias counts as the values that it
represents), deep nesting, recursive aliases, numbers of very many digits, tags of other types. A date
is the text that it is written as; `1e-3` is a number, as in YAML 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from onnxfi.errors import InputError
from onnxfi.file_fields import Fields, read_bytes
from onnxfi.numbers import vanishes

LARGEST_FILE = 1 << 20
#: Values in a file, and lists and mappings around one.
_MOST_VALUES, _DEEPEST = 20_000, 50
_LONGEST_NUMBER = 100
_TAG = "tag:yaml.org,2002:"
_TEXTS = ("str", "timestamp", "value", "merge")
_NUMBERS = ("int", "float", "bool", "null")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def load_yaml(path: str | Path, what: str, error: type[InputError] = InputError) -> Any:
    """Return the content of a YAML file as plain values; `error` says in one line what is wrong with it.

    Parameters
    ----------
    path
        The file, of at most 1 MB.
    what
        The noun for it in messages: a "campaign", a "preprocessing".
    error
        The kind of error to raise.

    Returns
    -------
    Any
        Mappings as dicts, lists, and values of type str, int, float, bool or None.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "p.yaml")
    ...     _ = file.write_text("scale: 1e-3\\ndate: 2001-02-03\\nsize: &s [4, 5]\\nalso: *s\\n")
    ...     load_yaml(file, "preprocessing")
    {'scale': 0.001, 'date': '2001-02-03', 'size': [4, 5], 'also': [4, 5]}
    """
    return parse_yaml(read_bytes(path, LARGEST_FILE, error), str(path), what, error)


def load_fields(
    path: str | Path, what: str, known: Collection[str], error: type[InputError] = InputError, *, version: int = 1
) -> Fields:
    """Return the fields of a YAML file of this version; see `load_yaml`."""
    return Fields.of(load_yaml(path, what, error), known, f"{what} {str(path)!r}", error, version=version)


def parse_yaml(text: bytes, file: str, what: str, error: type[InputError] = InputError) -> Any:
    """Return the plain values that YAML text holds; as `load_yaml`, of the text of `file`.

    >>> parse_yaml(b"seed: 1", "s.yaml", "campaign")
    {'seed': 1}
    """
    root = compose_yaml(text, file, what, error)
    try:
        return None if root is None else _values(root)
    except ValueError as why:
        raise error(f"{file!r} is not a readable YAML file: {why}") from None


def compose_yaml(text: bytes, file: str, what: str, error: type[InputError] = InputError) -> yaml.Node | None:
    """Return YAML text as yaml's nodes, within the limits; None if it is empty.

    `file` and `what` name it in messages. Nodes have line and column; `scalar` reads one.

    >>> compose_yaml(b"a: [1, 2]", "p.yaml", "page").value[0][0].value
    'a'
    """
    try:
        decoded = text.decode("utf-8")
        _bounded(decoded, what)
        return yaml.compose(decoded, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as why:
        raise error(f"{file!r} is not a readable YAML file: {' '.join(str(why).split())[:200]}") from None


def _bounded(text: str, what: str) -> None:
    """Raise ValueError if the values, aliases written out, are too many, too deep or without end."""
    sizes: dict[str, int | None] = {}  # by anchor; None while that is being read
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), 1)  # an unknown one is refused when it is composed
            if size is None:
                raise ValueError(f"line {_line(event)}: *{str(event.anchor)[:60]} stands within itself")
            total += size
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, total))
            if event.anchor is not None:
                sizes[event.anchor] = 1 if isinstance(event, yaml.ScalarEvent) else None
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        if total > _MOST_VALUES or len(open_) > _DEEPEST:
            many = f"{_MOST_VALUES:,} values, aliases written out, and {_DEEPEST} lists in each other"
            raise ValueError(f"line {_line(event)}: a {what} holds at most {many}")


def _line(place: yaml.Event | yaml.Node) -> int:
    """Return the line, counted from 1, on which a node starts."""
    return place.start_mark.line + 1 if place.start_mark is not None else 1


def scalar(node: yaml.Node) -> str | int | float | bool | None:
    """Return the value of a node that is not a list or mapping; ValueError if it has none that is allowed.

    >>> scalar(yaml.compose("0x10")), scalar(yaml.compose("2001-13-45"))
    (16, '2001-13-45')
    >>> scalar(yaml.compose("0x" + "f" * 5000))
    Traceback (most recent call last):
    ValueError: a number of 5,002 characters; at most 100 are read
    >>> scalar(yaml.compose("1:30"))
    Traceback (most recent call last):
    ValueError: '1:30' is read as one number or another; write it in decimal, or in quotes
    """
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("a list or mapping where a plain value is expected")
    tag, text = node.tag.removeprefix(_TAG), str(node.value)
    if tag in _TEXTS:
        plain = tag == "str" and node.style is None and len(text) <= _LONGEST_NUMBER
        return _not_vanished(float(text), text) if plain and _EXPONENT.fullmatch(text) else text
    if tag not in _NUMBERS:
        raise ValueError(f"the tag {node.tag[:60]!r} is not allowed; give a plain value")
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text):,} characters; at most {_LONGEST_NUMBER} are read")
    if tag in ("int", "float") and (":" in text or _OCTAL.fullmatch(text)):  # 90 and 8 in YAML 1.1
        raise ValueError(f"{text[:60]!r} is read as one number or another; write it in decimal, or in quotes")
    try:
        value: int | float | bool | None = yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, LookupError, OverflowError, yaml.YAMLError):
        raise ValueError(f"{text[:60]!r} is not a value of YAML") from None
    return _not_vanished(value, text) if isinstance(value, float) else value


def _not_vanished(value: float, text: str) -> float:
    """Return the value; ValueError where the text is that of another number than 0 and the value 0."""
    if value == 0 and vanishes(text.replace("_", "")):
        raise ValueError(f"{text[:60]!r} is so small that it would be taken as 0; give 0, or 1e-300 or more")
    return value


def _values(node: yaml.Node) -> Any:
    """Return a node as plain values; ValueError begins with the line."""
    if isinstance(node, yaml.ScalarNode):
        try:
            return scalar(node)
        except ValueError as why:
            raise ValueError(f"line {_line(node)}: {why}") from None
    if node.tag not in (f"{_TAG}seq", f"{_TAG}map"):
        raise ValueError(f"line {_line(node)}: the tag {node.tag[:60]!r} is not allowed; leave it out")
    if isinstance(node, yaml.SequenceNode):
        return [_values(item) for item in node.value]
    found: dict[Any, Any] = {}
    for key, value in node.value:
        name = _values(key) if isinstance(key, yaml.ScalarNode) else None
        if name is None or name in found:
            problem = "a key is not a plain value" if name is None else f"{str(name)[:60]!r} is given twice"
            raise ValueError(f"line {_line(key)}: {problem}")
        found[name] = _values(value)
    return found
