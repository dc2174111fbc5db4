"""Inputs and outputs of a model: their types and shapes, and arrays that fit them.

Shared by the engines, which feed arrays, and by the data, which has to fit before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import DataError, EngineError, closest

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

# ONNX Runtime's word for an element type, ours, and TensorProto's number where numpy lacks the type.
ORT_TYPES: Mapping[str, tuple[str, int | None]] = MappingProxyType(
    {
        "float": ("float32", None),
        "double": ("float64", None),
        "float16": ("float16", None),
        "bfloat16": ("bfloat16", 16),
        "float8e4m3fn": ("float8_e4m3fn", 17),
        "float8e4m3fnuz": ("float8_e4m3fnuz", 18),
        "float8e5m2": ("float8_e5m2", 19),
        "float8e5m2fnuz": ("float8_e5m2fnuz", 20),
        **{f"{sign}int{bits}": (f"{sign}int{bits}", None) for sign in ("", "u") for bits in (8, 16, 32, 64)},
        "bool": ("bool", None),
        "string": ("string", None),
    }
)
ONNX_NUMBER = {name: number for name, number in ORT_TYPES.values() if number is not None}
#: Words that are compared first, and at a time.
GLANCE, LOOK = 1 << 10, 1 << 16


@dataclass(frozen=True)
class Port:
    """One input or output of a model.

    Attributes
    ----------
    name : str
        Its name.
    dtype : str
        The numpy or ml_dtypes name (`float32`, `bfloat16`, `int64`, `bool`), `string`, or the runtime's own text for
        other types (`seq(tensor(float))`).
    shape : tuple of (int, str or None), or None
        Sizes; a symbol or None for an open dimension. None if the rank is open, and for scalars, which ONNX Runtime
        does not distinguish from that.

    Examples
    --------
    >>> str(Port("image", "float32", ("N", 1, 28, 28)))
    "'image' (float32 [N,1,28,28])"
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def is_tensor(self) -> bool:
        """True if numpy arrays can hold it."""
        return "(" not in self.dtype

    def __str__(self) -> str:
        return f"{self.name!r} ({self.dtype} {shape_text(self.shape)})"


def ports_of(values: Iterable[onnx.ValueInfoProto]) -> tuple[Port, ...]:
    """Return the ports that a model file declares.

    >>> from onnx import helper
    >>> ports_of([helper.make_tensor_value_info("x", 1, ["N", 3]), helper.make_tensor_value_info("s", 8, None)])
    (Port(name='x', dtype='float32', shape=('N', 3)), Port(name='s', dtype='string', shape=None))
    """
    return tuple(_declared_port(value) for value in values)


def inputs_of(model: onnx.ModelProto) -> tuple[Port, ...]:
    """Return the inputs of a model that must be fed: those without a default."""
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return ports_of(value for value in model.graph.input if value.name not in given)


def _declared_port(value: onnx.ValueInfoProto) -> Port:
    from onnx import TensorProto

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return Port(value.name, f"{(kind or 'value of no').removesuffix('_type')}(…)", None)
    declared = value.type.tensor_type
    word = TensorProto.DataType.Name(declared.elem_type).lower()
    known = ORT_TYPES.get(word)
    shape = None
    if declared.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in declared.shape.dim
        )
    return Port(value.name, known[0] if known else f"tensor({word})", shape or None)


def shape_text(shape: Sequence[int | str | None] | None) -> str:
    """Return a shape as messages show it.

    >>> shape_text(("N", None, 3)), shape_text(None)
    ('[N,?,3]', '[any shape]')
    """
    if shape is None:
        return "[any shape]"
    return "[" + ",".join("?" if dim is None else str(dim) for dim in shape) + "]"


def element_type(name: str) -> np.dtype[Any]:
    """Return the numpy type of a tensor port's `dtype`.

    >>> element_type("bfloat16").itemsize, element_type("string")
    (2, dtype('O'))
    """
    if name == "string":
        return np.dtype(object)
    return np.dtype(getattr(ml_dtypes, name) if name in ONNX_NUMBER else name)


def type_name(array: Array) -> str:
    """Return the `dtype` that a port must have to take this array.

    >>> type_name(np.array(["a"])), type_name(np.zeros(1, ">f4"))
    ('string', 'float32')
    """
    return "string" if array.dtype.kind in "USOT" else _name(array.dtype)


@cache
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # numpy makes it each time


def one_line(text: object, *, limit: int = 300) -> str:
    """Return a foreign message as one printable line: without ONNX Runtime's source paths, signatures and stack.

    >>> one_line("[ONNXRuntimeError] : 1 : FAIL : /s/model.cc:256 ort::Model::Model(int&&, F(*)()) Bad\\tIR")
    'Bad IR'
    """
    line = re.split(r"\n\s*(?:Stack ?trace|#0 )", str(text), maxsplit=1, flags=re.IGNORECASE)[0]
    line = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_ ]+ : ", "", line)
    while match := re.search(r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ ", line):
        line = line[: match.start()] + _after_signature(line[match.end() :])
    line = " ".join(line.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _after_signature(text: str) -> str:
    """Return what follows a C++ signature, which ends with the first balanced pair of parentheses before a space."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth <= 0 and text[position + 1 : position + 2] in ("", " "):
            return re.sub(r"^(?: const| noexcept| \[with [^\]]*\])+", "", text[position + 1 :]).lstrip()
    return text


def fits(given: Sequence[int], port: Port, *, free: int | None = None) -> bool:
    """Return True if an array of this shape fits the port; the dimension `free` may have any size.

    >>> image = Port("image", "float32", (1, 3, "H", None))
    >>> fits((8, 3, 5, 7), image), fits((8, 3, 5, 7), image, free=0), fits((8, 3, 5), image, free=0)
    (False, True, False)
    """
    if port.shape is None:
        return True
    if len(given) != len(port.shape):
        return False
    for axis, dim in enumerate(port.shape):  # no generator: it costs more than what it does, at each run
        if dim != given[axis] and isinstance(dim, int) and axis != free:
            return False
    return True


def native(array: Array) -> Array:
    """Return the same values as runtimes take them: native byte order, row-major, aligned, text as objects.

    ONNX Runtime reads the bytes of other orders, and of fixed-width text, as if they were its own.

    >>> native(np.zeros((1, 2), ">f4").T).dtype
    dtype('float32')
    """
    if array.dtype.kind == "S":
        return np.strings.decode(array, "utf-8").astype(object)
    if array.dtype.kind in "UOT":
        return array.astype(object)
    if array.flags.carray and array.dtype.isnative:
        return array
    return np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "A"])


def words_of(array: Array) -> Array:
    """Return an array's bits as unsigned integers of its shape (bytes of wide words along a last axis); text as is.

    >>> words_of(np.float32([-0.0, 1.0]))
    array([2147483648, 1065353216], dtype=uint32)
    """
    if array.dtype.kind == "O":
        return array
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.itemsize in (1, 2, 4, 8):
        return array.view(f"u{array.itemsize}")
    return array.reshape(*array.shape, 1).view(np.uint8)


def same_bytes(one: Array, other: Array) -> bool:
    """Return True if two arrays have the same type, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one is other or _equal(words_of(one).reshape(-1), words_of(other).reshape(-1))


def largest_difference(one: Array, other: Array) -> float:
    """Return the largest difference as a share of the reference's range; infinite for another shape or type.

    >>> largest_difference(np.array([1.0, 4.5]), np.array([1.0, 5.0]))
    0.1
    """
    if one.dtype != other.dtype or one.shape != other.shape or one.dtype.kind in "OSU":
        return 0.0 if one.dtype.kind in "OSU" and np.array_equal(one, other) else float("inf")
    with np.errstate(all="ignore"):
        wide = other.astype(np.float64)
        reach = float(np.abs(wide).max(initial=0.0, where=np.isfinite(wide)))
        far = float(np.nanmax(np.abs(one.astype(np.float64) - wide), initial=0.0))
    return far / reach if reach else far


def _equal(ours: Array, theirs: Array) -> bool:
    """Compare rows of words block by block, since differences mostly show at the start."""
    at, step = 0, GLANCE
    while at < len(ours):
        if not (ours[at : at + step] == theirs[at : at + step]).all():
            return False
        at, step = at + step, LOOK
    return True


def same_by(one: Array, other: Array, axis: int) -> NDArray[np.bool_]:
    """For each place along an axis, whether all bits there are equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return np.zeros(one.shape[axis], np.bool_)
    ours, theirs, along = words_of(one), words_of(other), axis % one.ndim
    if along == 0 and one.size > len(one) * GLANCE:
        rows = zip(ours.reshape(len(one), -1), theirs.reshape(len(one), -1), strict=True)
        return np.array([_equal(*row) for row in rows])
    equal = ours == theirs
    return np.asarray(equal.all(axis=tuple(a for a in range(equal.ndim) if a != along)))


def checked_feeds(
    feeds: Mapping[str, Array], inputs: Sequence[Port], overridable: Sequence[Port] = ()
) -> dict[str, Array]:
    """Return the feeds of one run as runtimes take them.

    Parameters
    ----------
    feeds : mapping of str to array
        An array for each input, by its name.
    inputs, overridable : sequence of Port
        The inputs of the model, and initializers that a feed may replace.

    Raises
    ------
    DataError
        If an input is missing, does not exist, or takes another type or shape.
    """
    ports = {port.name: port for port in (*inputs, *overridable)}
    for name in feeds:
        if name not in ports:
            raise DataError(f"the model has no input {name!r}{closest(name, ports)}")
    for port in inputs:
        if port.name not in feeds and not port.dtype.startswith("optional"):
            raise DataError(f"input {port} is not fed; fed are {', '.join(map(repr, feeds)) or 'none'}")
    return {name: _checked_feed(ports[name], np.asarray(array)) for name, array in feeds.items()}


def _checked_feed(port: Port, array: Array) -> Array:
    """Return the array as the runtime takes it; DataError if it does not fit the port."""
    if not port.is_tensor:
        raise DataError(f"input {port.name!r} is a {port.dtype}; only tensors can be fed")
    if type_name(array) != port.dtype or not fits(array.shape, port):
        given = f"{type_name(array)} {shape_text(array.shape)}"
        raise DataError(f"input {port.name!r} takes {port.dtype} {shape_text(port.shape)}, given {given}")
    try:
        return native(array)
    except UnicodeDecodeError as error:
        raise DataError(f"input {port.name!r} has text that is not UTF-8: {error}") from error


def checked_outputs(names: Sequence[str] | None, outputs: Sequence[Port], non_tensors: Mapping[str, str]) -> list[str]:
    """Return the names of the outputs to compute (None: all tensors); EngineError for one that cannot be read."""
    known = [port.name for port in outputs]
    for name in names or ():
        if name in non_tensors:
            raise EngineError(f"output {name!r} is a {non_tensors[name]}; only plain tensors can be read")
        if name not in known:
            raise EngineError(f"the model has no output {name!r}{closest(name, known)}")
    return known if names is None else list(names)
