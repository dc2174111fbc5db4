"""A campaign as a YAML file: reading is safe, and says line and column of what is wrong."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import FaultMixPart
from onnxfi.campaign.spec.flat_fields import given_fields
from onnxfi.campaign.spec.yaml_fields import (
    YamlNode,
    built,
    check_version,
    compose,
    flat_types,
    plain_values,
    read_fields,
    read_mix_part,
    read_yaml,
)  # fmt: skip
from onnxfi.extensions import names_function
from onnxfi.tasks.registry import runs_code

VERSION = 1
#: Words in the name of a provider's option that loads a library or an engine, or takes an address in memory.
_LOADS = re.compile(r"path|lib|plugin|alloc|free|stream|backend|context|cache|engine|file|dir", re.I)


def load_spec(path: str | Path, *, allow_code: bool = False, instead: Collection[str] = ()) -> Campaign:
    r"""Read a campaign from a YAML file.

    The file holds plain values only: at most 1 MB, no tags that run code, no aliases that expand. Relative paths in it
    start from the current folder.

    Parameters
    ----------
    path : str or Path
        The file.
    allow_code : bool
        Let the campaign run code that it names (data as ``module:function``, `custom_ops`).
    instead : collection of str
        Fields that the caller replaces, and that are therefore not refused for naming code.

    Returns
    -------
    Campaign
        The campaign, every field checked.

    Raises
    ------
    SpecError
        For a field of a wrong name, type or range, with line and column, and for code without `allow_code`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "campaign.yaml")
    ...     _ = file.write_text("model: m.onnx\nber: 1e-7:1e-5\nrepeat: 3\n")
    ...     load_spec(file).design.rates
    (1e-07, 1e-06, 1e-05)
    """
    found = _campaign(read_yaml(path, "campaign"), None if allow_code else instead)
    return found.with_fields(allow_code=True) if allow_code else found


def _campaign(whole: YamlNode, instead: Collection[str] | None) -> Campaign:
    """Return the campaign of a file; it may name code where `instead` is None."""
    given, places = read_campaign_fields(whole, instead, extra=("version",))
    check_version(given, places, "campaign", VERSION)
    if "model" not in given:
        raise whole.error("a campaign names its model; add model: FILE.onnx")
    return built(lambda fields: Campaign(**fields), given, places, whole)


def read_campaign_fields(
    whole: YamlNode, instead: Collection[str] | None, *, extra: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, YamlNode]]:
    """Return the fields of a campaign in a file, and the node of each; they may name code where `instead` is None."""
    given, places = read_fields(whole, flat_types(Campaign), extra=extra, parts={FaultMixPart: read_mix_part})
    if instead is not None:
        refuse_code(given, places, instead)
    return given, places


def parse_mix_part(text: str) -> FaultMixPart:
    """Read a part of a mix from one line of YAML, as `--mix` takes it.

    >>> part = parse_mix_part("fault: stuck-at-1, count: 2, include: conv1")
    >>> part.draw.fault, part.count, part.draw.selector.include
    ('stuck-at-1', 2, ('conv1',))
    """
    whole = f"{{{text}}}"
    return read_mix_part(compose(whole.encode(), f"--mix {whole[:80]}", "part"))


def print_spec(campaign: Campaign) -> str:
    """Return a campaign as YAML that `load_spec` reads back: every field that is not at its default.

    >>> print(print_spec(Campaign(model="m.onnx", ber=(1e-6,))), end="")
    version: 1
    model: m.onnx
    ber:
    - 1.0e-06
    """
    return _dumped({"version": VERSION, **plain_values(campaign)})


def _dumped(values: dict[str, Any], **how: Any) -> str:
    """YAML in plain letters, unless there are line breaks among them that YAML would fold."""
    import yaml

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, **how)
    if any(c in text for c in "\x85\u2028\u2029\ufeff"):
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False, **how)
    return text


def command_line(campaign: Campaign, store: str = "") -> str:
    """Return the shell command that runs a campaign.

    >>> print(command_line(Campaign(model="my net.onnx", data="d.npz", ber=(1e-7, 1e-6), include=("conv",)), "s.db"))
    onnxfi run 'my net.onnx' --ber 1e-07,1e-06 --include conv --data d.npz -o s.db
    >>> print(command_line(Campaign(model="m.onnx", ber=(1e-7, 1e-6, 1e-5), added=(1e-6, 1e-5))))
    onnxfi run m.onnx --ber 1e-07,1e-06,1e-05 --added 1e-06 --added 1e-05
    """
    words = ["onnxfi", "run", campaign.model]
    for name, value in given_fields(campaign).items():
        flag = "--" + name.replace("_", "-")
        if name == "model":
            continue
        if name == "due" or (name != "added" and isinstance(value, tuple) and isinstance(value[0], float)):
            words += [flag, ",".join(one if name == "due" else f"{one!r}" for one in value)]
        elif name == "mix":
            words += [word for part in value for word in (flag, _on_one_line(part))]
        elif isinstance(value, tuple):
            words += [word for one in value for word in (flag, str(one))]
        else:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join([*words, *(("-o", store) if store else ())])


def _on_one_line(part: FaultMixPart) -> str:
    text = _dumped(plain_values(part), default_flow_style=True, width=1 << 20)
    return text.strip().removeprefix("{").removesuffix("}")


def parse_spec(text: str, name: str = "the spec", instead: Collection[str] | None = None) -> Campaign:
    """Read a campaign from the text of a spec, as a store keeps it; to run it, give `instead` as in `load_spec`."""
    return _campaign(compose(text.encode(), name, "campaign"), instead)


# Code that a file names: an untrusted campaign or budget runs none unless the caller allows it. Code that the caller
# names (a flag, an argument) is allowed. SECURITY.md says what is trusted.


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
