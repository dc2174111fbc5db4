"""Models without their large tensors, which are given to a session separately."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxfi.graph.model.byte_source import StoredArray
from onnxfi.graph.model.loading import Model
from onnxfi.graph.model.protobuf_scan import record_number, varint
from onnxfi.graph.write.byte_edits import ByteSplice

if TYPE_CHECKING:
    import onnx

#: Size from which tensors are given to a session separately.
LARGE_BYTES = 1 << 12
#: TensorProto's numbers of the types that numpy has: float32, integers to 64 bits, float16, float64.
_NATIVE = frozenset((1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13))
#: TensorProto's field of numbers as bytes.
_RAW = 9


def stored_location(model: Model, tensor: onnx.TensorProto) -> tuple[StoredArray, list[ByteSplice]] | None:
    """Return the location of a tensor's numbers, and the edits that remove them from the model file.

    None for a small tensor, or one that is stored in another layout than in memory.
    """
    from onnx import helper

    number = record_number(tensor.doc_string)
    place = model.by_record.get(number)
    if place is None or len(place.runs) != 1 or place.varint or tensor.data_type not in _NATIVE:
        return None
    (start, end, lead), dtype = place.runs[0], helper.tensor_dtype_to_np_dtype(tensor.data_type)
    found = StoredArray(model.sources[place.file], start, dtype, tuple(tensor.dims))
    if lead or not end - start == found.nbytes >= LARGE_BYTES:
        return None
    if tensor.data_location == 1:
        return (found, []) if place.file else None
    record, length = model.records[number], varint(end - start)
    if place.file or record.fields != {_RAW: [(start, end, 0)]}:
        return None
    begin = start - len(length)
    with model.source.reading() as read:
        plain = read(begin, start) == length  # a varint may be longer than needed
    return (found, [((*record.frames, (begin, start, end)), start, end, b"")]) if plain else None


def strip_numbers(tensor: onnx.TensorProto, nbytes: int) -> None:
    """Keep only name, type and shape of a tensor; its numbers, `nbytes` bytes, are given when a session is made."""
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = 1  # type: ignore[assignment]
    for key, value in (("location", "given"), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
