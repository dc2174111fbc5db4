"""The distributions: the wheel imports alone and holds the package and nothing else; both are fit to be published."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is made from it, from a copy that leaves nothing in the checkout."""
    pytest.importorskip("build", reason="distributions are built with the extra test")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("distributions are built from a checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    """The wheel."""
    (built,) = distributions.glob("*.whl")
    return built


@pytest.mark.slow
def test_an_index_would_take_both(distributions: Path) -> None:
    pytest.importorskip("twine", reason="distributions are checked with the extra test")
    files = sorted(str(path) for path in distributions.iterdir())
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_sdist_holds_documents_tests_and_models(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "SECURITY.md",
        "models/fashion_cnn.onnx",
        "tests/conftest.py",
    } <= files
    assert not [name for name in files if name.startswith(("fetched", ".venv", "site/")) or name.endswith(".pyc")]


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "what the format requires"
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_every_folder_of_code_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = set(project["tool"]["setuptools"]["packages"]) - {"onnxfi.converters", "onnxfi.models"}
    assert named == {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "onnxfi").rglob("*.py")}


@pytest.mark.slow
def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "onnxfi").rglob("*.py")} | {
        "onnxfi/py.typed",
        "onnxfi/__init__.pyi",
    }
    expected |= {f"onnxfi/campaign/report/page.{end}" for end in ("css", "html", "js")}
    libraries = ROOT / "onnxfi" / "campaign" / "report" / "libraries"
    expected |= {str(p.relative_to(ROOT)) for p in libraries.iterdir()}
    expected |= {f"onnxfi/{p.relative_to(ROOT)}" for p in (ROOT / "converters").rglob("*.py")}
    shipped = (p for p in (ROOT / "models").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    expected |= {f"onnxfi/{p.relative_to(ROOT)}" for p in shipped}
    assert files == {name.replace("\\", "/") for name in expected}


@pytest.mark.slow
def test_it_is_imported_from_an_archive(wheel: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import onnxfi; print(onnxfi.__file__, onnxfi.parse_fault('flip'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wheel / "onnxfi" / "__init__.py"), "flip"]


@pytest.mark.slow
def test_it_works_alone(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    empty = tmp_path / "empty"
    empty.mkdir()
    # Without `site` the checkout that is installed editable cannot be found, only the wheel and what it depends on.
    program = f"""
import sys
sys.path[:0] = [{str(installed)!r}]
sys.path += {[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]!r}
import onnxfi, onnxfi.converters, onnxfi.cli
from importlib.metadata import version
for name in onnxfi.__all__:
    getattr(onnxfi, name)
assert all(m.__file__.startswith({str(installed)!r}) for n, m in sys.modules.items() if n.split(".")[0] == "onnxfi")
print(version("onnxfi"), len(onnxfi.load({str(ROOT / "models" / "fashion_cnn.onnx")!r}).targets))
sys.argv = ["onnxfi", "demo"]
onnxfi.cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=empty, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == wheel.name.split("-")[1]
    assert "80 of 80 trials" in done.stdout and str(installed / "onnxfi" / "models") in done.stdout
    assert not list(empty.iterdir())
