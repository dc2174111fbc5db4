r"""Telling file types by their bytes (magika): what its model is fed, and files whose type is known.

    python scripts/fetch_models.py --only magika
    onnxfi run examples.pipelines.file_types:pipeline --stage magika \
        --data examples.pipelines.file_types:files --ber 1e-6

Run it in the folder of the repository, whose files these are.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxfi import Pipeline, Stage

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("ONNXFI_MODELS", ROOT / "fetched"))
#: Bytes that are kept of a file, of which the model sees the first and the last; and what stands for none.
KEPT, ENDS, NONE = 4096, 1024, 256
#: Files of a type, and its place among the 214 of the model (standard_v3_3, config.min.json).
TYPES = {
    "onnxfi/*/*.py": 143, "docs/*/*.md": 100, "examples/ci/*.y*ml": 209, "*.toml": 181, "scripts/*.sh": 161,
    "docs/figures/*.svg": 172, "models/*.npz": 111, "examples/*/*.ipynb": 78,
}  # fmt: skip
MOST = 8
Arrays = Mapping[str, NDArray[np.generic]]


def files() -> Arrays:
    """Return the ends of files of the repository, and the places of their types."""
    found, labels = [], []
    for pattern, place in TYPES.items():
        for file in sorted(ROOT.glob(pattern))[:MOST]:
            data = np.frombuffer(file.read_bytes().strip(), np.uint8).astype(np.int32)
            if len(data) < 64:
                continue
            found.append(np.stack([end(data[:KEPT], first=True), end(data[-KEPT:], first=False)]))
            labels.append(place)
    return {"ends": np.array(found), "labels": np.array(labels)}


def end(data: NDArray[np.int32], *, first: bool) -> NDArray[np.int32]:
    """Return the first or the last bytes of a file, filled up behind or in front."""
    kept = data[:ENDS] if first else data[-ENDS:]
    padding = (0, ENDS - len(kept)) if first else (ENDS - len(kept), 0)
    return np.pad(kept, padding, constant_values=NONE)


def joined(ends: NDArray[np.int32]) -> Arrays:
    """Return both ends of a file in one row, as the model takes them."""
    return {"bytes": ends.reshape(1, 2 * ENDS)}


def pipeline() -> Pipeline:
    """Return the pipeline."""
    return Pipeline(
        [
            Stage("joined", function=joined, inputs={"ends": "data.ends"}),
            Stage("magika", model=str(MODELS / "magika.onnx"), inputs={"bytes": "joined.bytes"}),
        ],
        data={"ends": f"int32 [N,2,{ENDS}]"},
    )
