"""A campaign as a YAML file: reading is safe, and says line and column of what is wrong."""

from __future__ import annotations

from pathlib import Path

from onnxfi.campaign.fields import built, compose, plain, read_fields, read_part, read_yaml
from onnxfi.campaign.spec import Campaign, Part

VERSION = 1


def load_spec(path: str | Path) -> Campaign:
    """Read a campaign from a YAML file; every field is checked by name, type and range, with line and column.

    Loading is safe: no tags but those of plain values, nothing that grows, no more than 1 MB. Paths are taken as they
    stand there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "campaign.yaml")
    ...     _ = file.write_text("model: m.onnx\\nber: 1e-7:1e-5\\nrepeat: 3\\n")
    ...     load_spec(file).ber
    (1e-07, 1e-06, 1e-05)
    """
    whole = read_yaml(path, "campaign")
    given, places = read_fields(whole, Campaign, extra=("version",), parts={"Part": read_part})
    version = given.pop("version", VERSION)
    if version is True or version != VERSION:
        raise places["version"].error(f"version {version} of a campaign; this onnxfi reads version {VERSION}")
    if "model" not in given:
        raise whole.error("a campaign names its model; add model: FILE.onnx")
    campaign: Campaign = built(Campaign, given, places, whole)
    return campaign


def parse_part(text: str) -> Part:
    """Read a part of a mix from one line of YAML, as `--mix` takes it.

    >>> parse_part("fault: stuck-at-1, count: 2, include: conv1")
    Part(fault='stuck-at-1', ber=None, count=2, include=('conv1',), exclude=(), op=(), dtype=(), bits='', elements='')
    """
    whole = f"{{{text}}}"
    return read_part(compose(whole.encode(), f"--mix {whole[:80]}", "part"))


def print_spec(campaign: Campaign) -> str:
    """The campaign as a YAML file that `load_spec` reads back: every field that is not at its default.

    >>> print(print_spec(Campaign(model="m.onnx", ber=(1e-6,))), end="")
    version: 1
    model: m.onnx
    ber:
    - 1.0e-06
    """
    import yaml

    return yaml.safe_dump({"version": VERSION, **plain(campaign)}, sort_keys=False, allow_unicode=True)
