"""Hooks of mkdocs: links out of docs/, the command line's reference, and examples without fences.

The pages are read in the repository first, so they link to files beside docs/ (CONTRIBUTING.md, an example). The site
has those files under project/, and every link is made to lead there.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File, Files

from onnxfi.cli.commands import COMMANDS, group

ROOT = Path(__file__).resolve().parent.parent
#: Pages beside docs/ that the site has too.
PROJECT = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
PROJECT += [f"models/{page.name}" for page in sorted((ROOT / "models").glob("*.md"))]
#: Marks the place of the reference of all commands in a page.
PLACEHOLDER = "<!-- commands -->"
_LINK = re.compile(r"\[([^][]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)


def at_site(file: str) -> str | None:
    """Return the place of a file of the repository on the site, None where the site does not have it."""
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if (ROOT / file).is_dir():
        return at_site(f"{file}/README.md")
    return f"project/{file}" if (ROOT / file).is_file() else None


def target(link: re.Match[str], file: str) -> str | None:
    """Return the file of the repository that a link in another one leads to, None for an address."""
    if "://" in link[2] or link[2].startswith("mailto:"):
        return None
    return os.path.normpath(os.path.join(os.path.dirname(file), link[2]))


def on_config(config: Any) -> Any:
    """Add the extension that fences examples."""
    config.markdown_extensions.append(Examples())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the project, and what any page links to beside docs/."""
    wanted = dict.fromkeys(PROJECT)
    for page in [*(f"docs/{file.src_uri}" for file in files.documentation_pages()), *PROJECT]:
        text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        wanted |= dict.fromkeys(file for link in _LINK.finditer(text) if (file := target(link, page)))
    for file in wanted:
        place = at_site(file)
        if place is not None and place.startswith("project/"):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return the page with the commands, and with links that lead to where the site has their targets."""
    here = page.file.src_uri
    file = here.removeprefix("project/") if here.startswith("project/") else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        wanted = target(link, file)
        if wanted is None:
            return link[0]
        place = at_site(wanted)
        if place is None or files.get_file_from_path(place) is None:
            return link[1] if (ROOT / wanted).is_dir() else link[0]
        return f"[{link[1]}]({os.path.relpath(place, os.path.dirname(here) or '.')}{link[3] or ''})"

    parts = _FENCE.split(markdown)
    text = "".join(part if k % 2 else _LINK.sub(moved, part) for k, part in enumerate(parts))
    return text.replace(PLACEHOLDER, "\n".join(commands())) if PLACEHOLDER in text else text


def commands() -> Iterator[str]:
    """Yield the lines of the reference of all commands, from what `--help` prints."""
    top = click.Context(group, info_name="onnxfi")
    for verb in COMMANDS:
        command = group.get_command(top, verb)
        assert command is not None
        context = click.Context(command, info_name=verb, parent=top)
        yield from (f"## {verb}", "", "```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
        yield from (*_help(command.help or ""), "", "| option | meaning |", "|---|---|")
        for option in command.params:
            record = option.get_help_record(context) if isinstance(option, click.Option) else None
            if record is not None:
                names, text = (" ".join(cell.split()).replace("|", "\\|") for cell in record)
                text = text.replace("[", "\\[").replace("<", "&lt;").replace("*", "\\*")
                yield f"| `{names}` | {text} |"
        yield ""


def _help(text: str) -> Iterator[str]:
    """Yield the lines of a help text; blocks that click does not wrap become code."""
    first, _, rest = text.partition("\n")
    margin = min((len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()), default=0)
    text = "\n".join([first.strip(), *(line[margin:] for line in rest.splitlines())])
    for block in text.strip().split("\n\n"):
        fixed = block.strip().startswith("\b")
        yield from ("```sh", block.strip().removeprefix("\b\n"), "```", "") if fixed else (block, "")


class Examples(Extension):
    """Markdown in which an example of the interpreter needs no fence, as in a docstring."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Add the step before that of fenced code."""
        md.preprocessors.register(_Fences(md), "examples", 27)


class _Fences(Preprocessor):
    """The step that puts fences around examples."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines with fences."""
        done: list[str] = []
        fenced = example = False
        for line in lines:
            if example and not line.strip():
                done.append("```")
                example = False
            if line.lstrip().startswith("```"):
                fenced = not fenced
            if line.startswith(">>> ") and not fenced and not example:
                done += ["", "```pycon"]
                example = True
            done.append(line)
        return [*done, "```"] if example else done
