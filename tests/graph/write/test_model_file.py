"""Models that were rewritten as a whole: saved with their external data, under new names, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfi.errors import OutputError
from onnxfi.graph.model.loading import load, parse
from onnxfi.graph.write.model_file import save_model

TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[N,3] x) => (float[N,3] y) { a = Add(x, v) y = Add(a, w) }'
ARRAYS = {name: np.arange(3, dtype=np.float32) + k for k, name in enumerate("vw")}


def saved(folder: Path, locations: dict[str, str]) -> Path:
    """A model whose tensors lie in these files beside it."""
    model = parser.parse_model(TEXT)
    for name, array in ARRAYS.items():
        tensor = numpy_helper.from_array(array, name)
        if place := locations.get(name):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with (folder / place).open("ab") as stream:
                onnx.external_data_helper.set_external_data(tensor, place, offset=stream.tell(), length=array.nbytes)
                stream.write(array.tobytes())
            tensor.ClearField("raw_data")
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def renamed(file: Path, name: str = "changed") -> onnx.ModelProto:
    proto = parse(load(file))
    proto.graph.name = name
    return proto


@pytest.mark.parametrize(
    ("locations", "files"),
    [
        ({}, ["out.onnx"]),
        ({"w": "w.bin"}, ["out.onnx", "out.onnx.data"]),
        ({"v": "one.bin", "w": "one.bin"}, ["out.onnx", "out.onnx.data"]),
        ({"v": "deep/v.bin", "w": "w.bin"}, ["out.onnx", "out.onnx.data", "out.onnx.data.1"]),
    ],
)
def test_what_is_saved_is_the_change_and_the_same_tensors(
    tmp_path: Path, locations: dict[str, str], files: list[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    file = saved(tmp_path / "a", locations)
    save_model(load(file), renamed(file), tmp_path / "b" / "out.onnx")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == files
    back = onnx.load(tmp_path / "b" / "out.onnx")
    assert back.graph.name == "changed"
    for tensor in back.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), ARRAYS[tensor.name])
    assert load(file).digest != load(tmp_path / "b" / "out.onnx").digest


def test_data_that_the_model_was_not_opened_with_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": "w.bin"})
    proto = renamed(file)
    (tmp_path / "other.bin").write_bytes(bytes(12))
    proto.graph.initializer[1].external_data[0].value = "other.bin"
    with pytest.raises(
        OutputError, match=r"external data 'other\.bin' is none of the files that the model was opened with"
    ):
        save_model(load(file), proto, tmp_path / "out.onnx")
    assert not list(tmp_path.glob("out*")), "nothing is written"


def test_the_model_itself_is_no_place(tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": "w.bin"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for place in (file, tmp_path / "none" / "out.onnx", tmp_path):
        with pytest.raises(OutputError):
            save_model(load(file), renamed(file), place)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
