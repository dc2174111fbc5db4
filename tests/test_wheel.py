"""The wheel: what is built imports alone, from an empty folder, and holds the package and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy, so that no build folder is left in the checkout or taken from it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("onnxfi", "converters", "tests", "scripts", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", ".", *options]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "onnxfi").rglob("*.py")} | {"onnxfi/py.typed"}
    expected |= {f"onnxfi/campaign/page.{end}" for end in ("css", "html", "js")}
    expected |= {f"onnxfi/{p.relative_to(ROOT)}" for p in (ROOT / "converters").rglob("*.py")}
    assert files == {name.replace("\\", "/") for name in expected}


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
sys.argv = ["onnxfi", "--version"]
onnxfi.cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=empty, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == wheel.name.split("-")[1]
    assert "version" in done.stdout
    assert not list(empty.iterdir())
