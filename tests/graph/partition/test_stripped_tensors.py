"""Models without their large tensors: what is taken out lies where it is said to, and the rest is the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxfi.graph.model.loading import load
from onnxfi.graph.partition.stripped_tensors import LARGE_BYTES, stored_location, strip_numbers
from onnxfi.graph.partition.subgraph import partition_graph

TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
LEAST = LARGE_BYTES // 4
ARRAYS = {
    "large": np.arange(LEAST, dtype=np.float32).reshape(2, -1),
    "small": np.arange(LEAST - 1, dtype=np.float32),
    "half": np.arange(2 * LEAST, dtype=np.float16),
    "whole": np.arange(LEAST, dtype=np.int64),
}


def saved(folder: Path, *, beside: bool, tensors: dict[str, np.ndarray] = ARRAYS) -> Path:
    model = parser.parse_model(TEXT)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    onnx.save(model, folder / "m.onnx", save_as_external_data=beside, location="m.data", size_threshold=0)
    return folder / "m.onnx"


@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside it"])
def test_large_tensors_are_found_where_they_lie(tmp_path: Path, beside: bool) -> None:
    file = saved(tmp_path, beside=beside)
    model = load(file)
    found = {t.name: stored_location(model, t) for t in model.proto.graph.initializer}
    assert found["small"] is None, "it stays in the model"
    for name in ("large", "half", "whole"):
        place = found[name]
        assert place is not None
        stored, splices = place
        assert np.array_equal(stored.read(), ARRAYS[name]) and stored.read().dtype == ARRAYS[name].dtype
        assert bool(splices) != beside, "bytes leave the model file where they are in it"


def test_numbers_that_are_not_in_memory_as_they_are_in_the_file_stay(tmp_path: Path) -> None:
    model = parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.helper.make_tensor("list", 1, [LEAST], np.ones(LEAST)))
    model.graph.initializer.append(onnx.helper.make_tensor("bfloat16", 16, [4 * LEAST], bytes(8 * LEAST), raw=True))
    onnx.save(model, tmp_path / "m.onnx")
    held = load(tmp_path / "m.onnx")
    assert [stored_location(held, t) for t in held.proto.graph.initializer][1] is None


def test_a_tensor_is_left_its_name_its_type_and_its_shape() -> None:
    tensor = numpy_helper.from_array(ARRAYS["large"], "large")
    strip_numbers(tensor, ARRAYS["large"].nbytes)
    assert (tensor.name, list(tensor.dims), tensor.data_type) == ("large", [2, LEAST // 2], 1)
    assert not tensor.raw_data and tensor.data_location == 1 and tensor.ByteSize() < 100
    assert {entry.key: entry.value for entry in tensor.external_data}["length"] == str(LARGE_BYTES)


def test_what_a_part_is_given_and_what_it_holds_is_the_model(tmp_path: Path) -> None:
    net = partition_graph(load(saved(tmp_path, beside=False)))
    assert {*net.weights} == {"large", "half", "whole"} and net.proto.ByteSize() < 2 * LARGE_BYTES
    held = {t.name: t for t in net.proto.graph.initializer}
    assert np.array_equal(numpy_helper.to_array(held["small"]), ARRAYS["small"])
