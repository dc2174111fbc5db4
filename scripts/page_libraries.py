"""Get the libraries of the report's page from npm, unchanged; with --check say whether those in the package are they.

    python scripts/page_libraries.py [--check]

Needs npm. `npm pack` holds each archive against the registry's SHA-512. A new version is a new line of LIBRARIES, and a
look at the page: tests/campaign/report/test_html_page.py drives it in a browser (`pytest -m slow`).
"""

import argparse
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "onnxfi" / "campaign" / "report" / "libraries"
#: Package with its version: its file, and the name of its licence here.
LIBRARIES = {
    "d3@7.9.2": ("d3.min.js", "d3.LICENSE"),
    "@observablehq/plot@0.6.17": ("plot.umd.min.js", "plot.LICENSE"),
}


def packed(package: str, folder: str) -> tuple[bytes, bytes]:
    """The script and the licence of a package."""
    done = subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True, text=True)
    script, _ = LIBRARIES[package]
    with tarfile.open(Path(folder, done.stdout.split()[-1])) as archive:
        parts = [archive.extractfile(f"package/{name}") for name in (f"dist/{script}", "LICENSE")]
        found = [part.read() for part in parts if part is not None]
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where they differ")
    check = parser.parse_args().check
    for package, names in LIBRARIES.items():
        with tempfile.TemporaryDirectory() as scratch:
            contents = packed(package, scratch)
        for name, content in zip(names, contents, strict=True):
            file = FOLDER / name
            if not check:
                FOLDER.mkdir(exist_ok=True)
                file.write_bytes(content)
            elif file.read_bytes() != content:
                raise SystemExit(f"{file} is not that of {package}; run python scripts/page_libraries.py")
        print(package, "ok" if check else "written")


if __name__ == "__main__":
    main()
