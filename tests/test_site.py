"""The site: mkdocs builds it without a warning, and it has every verb, public name and figure with its source."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxfi
from onnxfi.cli.commands import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="the site is built with the extra docs")
    out = tmp_path_factory.mktemp("site")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_it_has_every_option_of_every_verb(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert [verb for verb in COMMANDS if f'id="{verb}"' not in page] == []
    assert "<code>--save-faults FILE</code>" in page and "Sentinel" not in page


@pytest.mark.slow
def test_it_documents_every_public_name(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert [name for name in onnxfi.__all__ if f'id="onnxfi.{name}"' not in page] == []
    assert "&gt;&gt;&gt; " not in re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", page, flags=re.S), (
        "an unfenced example"
    )


@pytest.mark.slow
def test_its_links_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in re.findall(r'(?:href|src)="([^"#]+)', page.read_text(encoding="utf-8")):
            if not link.startswith(("http://", "https://", "mailto:", "data:")):
                assert (page.parent / link).exists(), f"{page.relative_to(site)}: {link}"


@pytest.mark.slow
def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//[^"]*"|<link[^>]*href="https?:[^"]*"', text)
        assert not [tag for tag in loaded if 'rel="canonical"' not in tag], page.name


def test_the_references_list_every_verb_and_public_name() -> None:
    assert re.findall(
        r"^\| `onnxfi ([\w-]+)", (DOCS / "reference" / "cli.md").read_text(encoding="utf-8"), re.M
    ) == list(COMMANDS)
    listed = re.findall(r"^::: onnxfi\.(\w+)$", (DOCS / "reference" / "python.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(onnxfi.__all__)


def claims() -> list[list[str]]:
    """The rows of the table of claims: claim, pages, commands."""
    lines = [line for line in (DOCS / "claims.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[1:] if not line.startswith("|---")
    ]


def test_every_claim_has_a_page_and_a_command_that_are_there() -> None:
    for claim, pages, commands in claims():
        assert all((ROOT / page).is_file() for page in pages.split(", ")), claim
        assert "`" in commands, claim
        for command in re.findall(r"`([^`]+)`", commands):
            words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
            if words[0] == "onnxfi":
                assert words[1] in COMMANDS, command
            else:
                assert words[0] in ("python", "bash", "pytest") and (ROOT / words[1]).exists(), command


def test_every_measurement_and_figure_is_a_claim() -> None:
    table = " ".join(commands for _, _, commands in claims())
    assert [p.name for p in (ROOT / "scripts" / "bench").glob("*.py") if f"scripts/bench/{p.name}" not in table] == []
    pages = {page for _, pages, _ in claims() for page in pages.split(", ")}
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        if (
            re.search(r"python (scripts|examples)/(?!docs_site|fetch|notebooks|setup_events)|!\[", text)
            and page != DOCS / "claims.md"
        ):
            assert page.relative_to(ROOT).as_posix() in pages, f"{page.name} prints figures that are no claim"


def test_files_that_pages_name_are_there() -> None:
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md"), *(ROOT / "scripts").glob("*.sh")]:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w/.])((?:tests|onnxfi|scripts|examples|converters)/[\w/.-]+\.(?:py|sh|yaml))", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], page.name
