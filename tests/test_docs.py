"""The documents cannot drift: what they show runs, what they list exists, what they link to is there.

Every ```console block of README.md and, among the slow tests, of docs/ is run line by line in a folder that has the
models, and what it prints is compared with what the block shows: line by line, blanks apart, where

- a line `...` stands for any number of lines, and `...` inside a line for anything;
- a number with a point or a percent sign may be off by a little, since another processor may round otherwise.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import shutil
import sys
import tomllib
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import pytest
from documents import blocks, code, commands, lines_of, read, same, shell, table

import onnxfi
from onnxfi.cli.commands import COMMANDS, group
from onnxfi.faults.registry import fault_models, parse_fault
from onnxfi.faults.words import WORDS
from onnxfi.tasks.kinds.classification import CLASSIFICATION

ROOT = Path(__file__).parents[1]
#: The guides whose console blocks are run; those of converters and of other tools need frameworks.
GUIDES = (
    "inject",
    "census",
    "evaluate",
    "detection",
    "segmentation",
    "language-models",
    "generation",
    "replay",
    "integrity",
    "scripting",
    "campaigns",
    "pipelines",
    "quantised",
    "spiking",
    "from-spikefi",
    "from-spikingjet",
)
SHOWN = ("README.md", "docs/tutorial/first-campaign.md", *(f"docs/how-to/{name}.md" for name in GUIDES))
OURS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [*OURS, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "models").glob("*.md"))]
#: The README's two commands make environments and run these tests: here stand what they do in the end.
STAND_INS = {
    "bash scripts/demo.sh": "python examples/accuracy_over_ber.py models/fashion_cnn.onnx models/fashion_test.npz",
    "bash scripts/test.sh": "test -f scripts/test.sh",
}


def test_the_comparison_distinguishes() -> None:
    assert same(["a", "...", "d"], ["a", "b", "c", "d"])
    assert same(["top1 91.15 % 48.80 %"], ["top1 91.15 % 48.75 %"])
    assert same(["wrote ..., sha256 2a61"], ["wrote x.onnx, sha256 2a61"])
    assert not same(["top1 91.15 % 48.80 %"], ["top1 91.15 % 47.80 %"])
    assert not same(["drawn 32"], ["drawn 33"])
    assert not same(["a", "..."], ["b"])
    assert not same(["a"], ["a", "b"])


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with what the documents use, and `onnxfi` and `python` that are this environment's."""
    for name in ("models", "examples", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bin").mkdir()
    for name, arguments in (("python", ""), ("onnxfi", "-m onnxfi ")):
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        file.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[] if page == "README.md" else pytest.mark.slow) for page in SHOWN]
)
def test_console_blocks_print_what_they_show(page: str, work: Path) -> None:
    ran = list(commands(read(page)))
    assert ran, f"{page} shows no command"
    for command, shown in ran:
        printed = lines_of(shell(STAND_INS.get(command, command), work))
        if command in STAND_INS and not shown:
            continue
        expected = lines_of("\n".join(shown))
        assert same(expected, printed), "\n".join((f"{page}: $ {command}", *printed))


@pytest.mark.slow
@pytest.mark.fetched
def test_the_photo_tutorial_prints_what_it_shows(work: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures are drawn with the extra report")
    if not (ROOT / "fetched" / "photos").is_dir() or not (ROOT / "fetched" / "open_nsfw.onnx").is_file():
        pytest.skip("python scripts/fetch_models.py --only open_nsfw --only photos")
    (work / "fetched").symlink_to(ROOT / "fetched")
    for command, shown in commands(read("docs/tutorial/photo-classifier.md")):
        printed = lines_of(shell(command, work))
        assert same(lines_of("\n".join(shown)), printed), "\n".join((f"$ {command}", *printed))


def test_the_readmes_commands_are_what_is_run_in_their_place() -> None:
    assert [c for c, _ in commands(read("README.md"))][:2] == list(STAND_INS)
    assert read("scripts/demo.sh").splitlines()[-1] == f".venv/bin/{STAND_INS['bash scripts/demo.sh']}"


def figure_lines(file: Path) -> list[str]:
    """The text of a figure, line by line from the top."""
    rows: dict[float, list[tuple[float, str]]] = {}
    for text in ET.parse(file).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" in text.attrib:  # the title is not of the run
            rows.setdefault(float(text.attrib["y"]), []).append((float(text.attrib["x"]), text.text or ""))
    return [" ".join(part for _, part in sorted(rows[y])).replace("\u00a0", " ") for y in sorted(rows)]


def figures() -> Any:
    """The script that draws them."""
    spec = importlib.util.spec_from_file_location("figure", ROOT / "scripts" / "figure.py")
    assert spec is not None and spec.loader is not None
    figure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figure)
    return figure


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="figures are drawn in a pseudo-terminal")
def test_figures_are_of_today(work: Path) -> None:
    figure = figures()
    assert {f.name for f in (ROOT / "docs" / "figures").iterdir()} == {
        *figure.FIGURES,
        *figure.CURVES,
        *figure.MAPS,
        *figure.TRAINED,
        *figure.STUDIES,
    }
    for name, command in figure.FIGURES.items():
        drawn = lines_of("\n".join(figure_lines(ROOT / "docs" / "figures" / name)))
        printed = lines_of(f"$ {command}\n{shell(command, work)}")
        assert same(drawn, printed), f"{name} is old: python scripts/figure.py\n" + "\n".join(printed)
        assert "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", read(f"docs/figures/{name}")), "it loads a font"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the script needs a pseudo-terminal")
def test_curves_are_of_today(work: Path) -> None:
    pytest.importorskip("matplotlib", reason="curves are drawn with the extra report")
    tag = "{http://purl.org/dc/elements/1.1/}description"
    for name, (file, *commands_) in figures().CURVES.items():
        if name in ("segmentation.svg", "detection.svg"):  # whose campaigns take minutes
            continue
        for command in commands_:
            shell(command, work)
        shown, drawn = (
            next(ET.parse(path).iter(tag)).text or ""
            for path in (ROOT / "docs" / "figures" / name, work / "figures" / file)
        )
        assert "[" in shown and same(shown.split("; "), drawn.split("; ")), f"{name} is old: python scripts/figure.py"
        assert any(f"figures/{name}" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.slow
def test_the_readmes_verbs_do_the_same_on_both_sides(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(work / "models" / "fashion_cnn.onnx", work / "model.onnx")
    shutil.copy(work / "models" / "fashion_test.npz", work / "images.npz")
    rows = table(read("README.md"), "verb")
    monkeypatch.chdir(work)
    outputs = ("bad.onnx", "f.jsonl", "again.onnx", "good.onnx")
    for _, cell, _ in rows:
        for command in code(cell):
            shell(command, work)
    by_command = {name: (work / name).read_bytes() for name in outputs}
    for name in outputs:
        (work / name).unlink()
    scope: dict[str, Any] = {"onnxfi": onnxfi}
    for _, _, cell in rows:
        for statement in code(cell):
            exec(statement, scope)
    assert by_command == {name: (work / name).read_bytes() for name in outputs}
    assert by_command["bad.onnx"] == by_command["again.onnx"] != by_command["good.onnx"]
    assert by_command["good.onnx"] == (work / "model.onnx").read_bytes()


# What the pages list


def guides() -> str:
    """The how-to guides and the tables that they point to."""
    pages = [
        *(ROOT / "docs" / "how-to").glob("*.md"),
        *(ROOT / "docs" / "reference" / f"{n}.md" for n in ("faults", "metrics")),
    ]
    return "\n".join(map(read, sorted(pages)))


NEED_A_FILE = {"pattern", "distribution", "fault-map", "memory"}


def test_the_reference_lists_every_fault_model_with_its_unit_and_defaults() -> None:
    listed = {}
    for cell, unit, _ in table(read("docs/reference/faults.md"), "fault"):
        (text,) = code(cell)
        model = parse_fault(text)
        if "=" in text and "…" not in text:
            assert model == type(model)(), f"{text} shows other defaults than {type(model)()!r}"
        listed[model.name] = unit
    own = {name: m.unit for name, m in fault_models().items() if m.__module__.startswith("onnxfi.")}
    assert {name: unit for name, unit in own.items() if name not in NEED_A_FILE} == listed


def test_the_reference_lists_every_number_format() -> None:
    rows = {code(row[0])[0]: row[1:] for row in table(read("docs/reference/faults.md"), "format")}

    def span(word: Any, name: str) -> str:
        bits = word.field(name)
        return "" if not bits else f"{bits[0]}" if len(bits) == 1 else f"{bits[0]}-{bits[-1]}"

    fields = ("sign", "exponent", "mantissa")
    assert rows == {w.name: [str(w.bits), *(span(w, f) or "–" for f in fields)] for w in WORDS.values()}


def test_the_reference_lists_every_metric() -> None:
    assert [code(row[0])[0] for row in table(read("docs/reference/metrics.md"), "metric")] == list(
        CLASSIFICATION.evaluated
    )


@pytest.mark.parametrize("verb", ["inspect", "inject", "eval"])
def test_the_guides_name_every_option(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None and verb in COMMANDS
    usage = guides()
    options = [o for p in command.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")]
    assert not [o for o in options if not re.search(rf"`[^`]*{o}\b[^`]*`", usage)]


def test_the_guides_name_every_public_name_of_the_verbs() -> None:
    usage = guides()
    names = [name for name in onnxfi.__all__ if not getattr(onnxfi, name).__module__.startswith("onnxfi.campaign.")]
    assert not [name for name in names if not re.search(rf"\b{name}\b", usage)]


def test_contributing_shows_the_fault_model_that_the_tests_run() -> None:
    example = read("tests/support/own_fault_model.py")
    assert example in blocks(read("CONTRIBUTING.md"), "python")
    tree = ast.parse(example)
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert model.end_lineno is not None and model.end_lineno - model.lineno < 15


@pytest.mark.parametrize("name", ["own_metric.py", "own_task.py"])
def test_contributing_shows_the_metric_and_the_task_that_the_tests_run(name: str) -> None:
    example = read(f"examples/{name}")
    assert example in blocks(read("CONTRIBUTING.md"), "python")
    assert example in blocks(read("docs/reference/metrics.md"), "python")
    assert example.count("\n") <= 25


def test_the_guide_shows_the_boxes_that_the_tests_run() -> None:
    assert read("examples/own_boxes.py") in blocks(read("docs/how-to/detection.md"), "python")


def test_contributing_shows_the_engine_that_the_tests_run() -> None:
    assert read("tests/support/own_engine.py") in blocks(read("CONTRIBUTING.md"), "python")


def test_contributing_draws_folders_that_are_there() -> None:
    (picture,) = (b for b in blocks(read("CONTRIBUTING.md"), "text") if b.startswith("onnxfi/\n"))
    names: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in picture.splitlines():
        indent, words = len(line) - len(line.lstrip()), line.split()
        while folders and folders[-1][0] >= indent:
            folders.pop()
        if words[:1] and words[0].endswith("/"):
            folders.append((indent, words[0]))
            names.append("".join(name for _, name in folders))
        names += ["".join(name for _, name in folders) + w for w in words if re.fullmatch(r"\w+\.(py|sh)", w)]
    assert not [name for name in names if not (ROOT / name).exists()]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "onnxfi").rglob("*.py") if "__" not in path.name}
    assert {name for name in modules if "/cli/" not in name} <= set(names), "a module is missing in the picture"


def test_contributing_says_what_each_dependency_is_for() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    names = {re.split(r"[<>=; \[]", d)[0] for d in wanted}
    documented = {name for row in table(read("CONTRIBUTING.md"), "package") for name in code(row[0])}
    assert documented == names


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert re.findall(r"^## \[([\d.]+)\]", read("CHANGELOG.md"), re.M)[0] == version


def test_the_index_lists_every_document() -> None:
    listed = set(re.findall(r"\]\(([\w/-]+\.md)\)", read("docs/index.md")))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert listed >= pages - {"index.md"} and {page for page in listed if not page.startswith("../")} <= pages


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)), target


def test_the_figure_in_the_readme_is_true() -> None:
    # "Thirty of these 32 flips hardly matter": all but those of bit 30.
    model = onnxfi.load(ROOT / "models" / "fashion_cnn.onnx")
    sites = [str(fault.site) for fault in onnxfi.sample(model, ber=1e-5, seed=1).faults]
    rest = [site for site in sites if not site.endswith(":30")]
    assert (len(sites), len(rest)) == (32, 30)
    engine = onnxfi.OrtEngine(provider="cpu")
    data = onnxfi.open_data(ROOT / "models" / "fashion_test.npz", engine.prepare(model.path or b"").inputs)
    faulty = onnxfi.inject(model, onnxfi.sample(model, sites=rest)).data
    assert faulty is not None
    with redirect_stdout(io.StringIO()):
        answers = onnxfi.evaluate(faulty, data, engine=engine)
    assert answers.metrics["top1"] == pytest.approx(0.9115, abs=0.003)
