"""Make the README of a source tree a page for a package index, where relative links lead nowhere.

    python scripts/index_page.py SOURCE https://host/owner/onnxfi

Links and pictures become those of the published tag of this version, and pyproject.toml names the addresses. Without an
address nothing is changed. `scripts/release.sh` does this to the copy that it builds from.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

#: A link or picture of Markdown with a relative target, and its anchor.
_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


def absolute(text: str, repository: str, tag: str, folders: frozenset[str]) -> str:
    """The text with absolute links: pictures raw, folders as trees, files as pages of the tag.

    >>> absolute("[a](docs/a.md#b) ![](c.svg) [d](d) [e](#e)", "https://h/o/n", "v1", frozenset({"d"}))
    '[a](https://h/o/n/blob/v1/docs/a.md#b) ![](https://h/o/n/raw/v1/c.svg) [d](https://h/o/n/tree/v1/d) [e](#e)'
    """

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "tree" if found[3] in folders else "blob"
        return f"{found[1]}{found[2]}({repository}/{kind}/{tag}/{found[3]}{found[4] or ''})"

    return _LINK.sub(link, text)


def main(source: Path, repository: str) -> None:
    repository = repository.rstrip("/")
    if not repository:
        return
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+", repository):
        raise SystemExit(f"{repository!r} is no address of a repository, as https://host/owner/onnxfi")
    project, readme = source / "pyproject.toml", source / "README.md"
    text = project.read_text(encoding="utf-8")
    tag = "v" + tomllib.loads(text)["project"]["version"]
    page = readme.read_text(encoding="utf-8")
    folders = frozenset(target for target in (m[3] for m in _LINK.finditer(page)) if (source / target).is_dir())
    readme.write_text(absolute(page, repository, tag, folders), encoding="utf-8")
    addresses = {
        "Homepage": repository,
        "Documentation": f"{repository}/blob/{tag}/docs/index.md",
        "Source": f"{repository}/tree/{tag}",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in addresses.items())
    project.write_text(
        text.replace("[project.scripts]", f"[project.urls]\n{lines}\n[project.scripts]"), encoding="utf-8"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="root of the source tree")
    parser.add_argument("repository", metavar="ADDRESS", help="address of the repository; empty: nothing is changed")
    given = parser.parse_args()
    main(given.source, given.repository)
