"""Bodies of the fault operators: nodes that compute `(word & keep) ^ flip` on the words of numbers.

Two bodies with the same meaning. *Native* (opset 26 on) reads the words with BitCast. *Portable* (opset 11 on; 13 for
bfloat16, 19 for float8, 21 and 25 for the integers of 4 and 2 bits) is plain arithmetic: it finds the exponent by
comparing with powers of two and the mantissa by scaling, which is exact, splits the word into planes of one bit on a
leading axis, and assembles the number again. Values stay below 2^24 in float32 (2^53 in float64), so nothing rounds.

Armed models, which have many sites, use a shorter portable body: floats of 32 bits and less are
computed in float64, and from opset 18 on with BitwiseAnd and BitwiseXor. Baked models use only what every runtime
computes; OpenVINO computes float64 as float32.

Limits: a NaN in the input counts as the canonical one (quiet, positive), since arithmetic sees neither its sign nor
its payload. Signed numbers never pass through Where, whose kernel in ONNX Runtime
turns -0 into +0, and integers are never summed by ReduceSum, which adds them in floating point there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxfi.errors import ModelError
from onnxfi.faults.words import Word, Words
from onnxfi.graph.passes.node_builder import NUMBER, NodeBuilder

#: First opset of each body; formats that are not listed have none.
_NATIVE = 26
_PORTABLE = {
    **dict.fromkeys(("float16", "float32", "float64", "bool"), 11),
    **{f"{sign}int{bits}": 11 for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 19),
    **{"bfloat16": 13, "int4": 21, "uint4": 21, "int2": 25, "uint2": 25},
}
_REFUSED = {
    "float4_e2m1fn": "no runtime has kernels for it",
    "float8_e8m0fnu": "it is only for scales, which runtimes convert and use for nothing else",
    "complex64": "runtimes have few kernels for complex numbers",
    "complex128": "runtimes have few kernels for complex numbers",
}


def body_for(word: Word, opset: int, body: str = "auto") -> str:
    """Return the body for words of this format at this opset, `native` or `portable`; ModelError if there is none.

    >>> from onnxfi.faults.words import WORDS
    >>> body_for(WORDS["float32"], 26), body_for(WORDS["float32"], 17)
    ('native', 'portable')
    """
    if word.name in _REFUSED:
        raise ModelError(f"no fault in activations of {word.name}: {_REFUSED[word.name]}; inject into weights")
    native = word.name in _PORTABLE and word.bits >= 8 and not word.name.startswith("float8")
    if body == "native" and native and opset < _NATIVE:
        raise ModelError(f"the native body needs opset {_NATIVE}, the model has {opset}; raise it, or use portable")
    if body != "portable" and native and opset >= _NATIVE:
        return "native"
    least = _PORTABLE.get(word.name, _NATIVE + 1)
    if opset < least:
        raise ModelError(
            f"faults in activations of {word.name} need opset {least}, the model has {opset}; raise its opset"
        )
    return "portable"


def apply_mask(g: NodeBuilder, word: Word, body: str, value: str, keep: str, flip: str, *, short: bool = False) -> str:
    """Add the body: `value` [N,K] of this format, masks int64 [S,K] with S 1 or N; returns the faulty numbers [N,K].

    In the portable body of floats and integers `keep` and `flip` are planes (`planes`), bool [bits,S,K], true if the
    bit is 0. Bits of a mask beyond the word are ignored. `short` takes about half the nodes, with operators and
    formats that only ONNX Runtime computes exactly; see `takes_words` for its masks.
    """
    if short and body == "portable" and takes_words(word, g.opset):
        return _words(g, word, value, keep, flip) if word.is_float else _native(g, word, value, keep, flip)
    if body == "native":
        return _native(g, word, value, keep, flip)
    if word.name == "bool":
        return g.add("Xor", g.add("And", value, g.add("Not", _plane(g, keep))), g.add("Not", _plane(g, flip)))
    if not word.is_float:
        return _integer(g, word, value, keep, flip)
    if word.bits == 8:
        return _float8(g, word, value, keep, flip)
    return _float(g, word, value, keep, flip, "float64" if short or word.bits == 64 else "float32")


def takes_words(word: Word, opset: int) -> bool:
    """Return whether the short portable body takes whole masks (from opset 18 on), those of floats cut to the word."""
    return opset >= 18 and (8 < word.bits < 64 if word.is_float else word.bits >= 8 and word.name != "bool")


def _plane(g: NodeBuilder, planes: str) -> str:
    """Return the only plane of a bool."""
    return g.add("Gather", planes, g.constant(0), axis=0)


def planes(g: NodeBuilder, mask: str, bits: int) -> str:
    """Split a mask (int64 [S,K], two's complement) into planes: bool [bits,S,K], true if the bit is 0."""
    if bits < 64:
        low = g.add("Mod", mask, g.constant(1 << bits))
        return _zero_bits(g, low, bits)
    # Division of negative integers rounds towards 0, so the sign is separate: INT64_MIN + its 63 other bits.
    negative = g.add("Less", mask, g.constant(0))
    low = g.add("Where", negative, g.add("Sub", mask, g.constant(-(1 << 63))), mask)
    positive = g.add("Not", negative)
    low = _zero_bits(g, low, 63)
    if g.opset < 13:
        return g.add("Concat", low, g.add("Unsqueeze", positive, axes=[0]), axis=0)
    return g.add("Concat", low, g.add("Unsqueeze", positive, g.constant([0])), axis=0)


def _zero_bits(g: NodeBuilder, number: str, bits: int) -> str:
    """Split non-negative int64 numbers into planes."""
    weights = g.constant(np.array([1 << i for i in range(bits)], np.int64).reshape(-1, 1, 1))
    bit = g.add("Mod", g.add("Div", number, weights), g.constant(2))
    return g.add("Equal", bit, g.constant(0))


def plane_values(masks: Words, bits: int) -> NDArray[np.bool_]:
    """Return what `planes` computes, for baked files: masks (`uint64`, [S,K]) as bool [bits,S,K].

    >>> plane_values(np.array([[6]], np.uint64), 4).ravel().tolist()
    [True, False, False, True]
    """
    places = np.arange(bits, dtype=np.uint64).reshape(-1, 1, 1)
    return np.asarray((masks >> places) & np.uint64(1) == 0)


def _faulty_planes(g: NodeBuilder, zeros: str, keep: str, flip: str) -> str:
    """Return the planes of the faulty word: a bit is 0 if it was, or is not kept, unless it is flipped."""
    return g.add("Equal", g.add("Or", zeros, keep), flip)


def _native(g: NodeBuilder, word: Word, value: str, keep: str, flip: str) -> str:
    """Apply masks to words that BitCast reads."""
    if word.name == "bool":
        one = g.constant(1)
        kept, flipped = (g.cast(g.add("BitwiseAnd", m, one), "bool") for m in (keep, flip))
        return g.add("Xor", g.add("And", value, kept), flipped)
    carrier = f"int{word.bits}" if word.is_float else word.name
    number = g.add("BitCast", value, to=NUMBER[carrier]) if word.is_float else value
    kept, flipped = (m if carrier == "int64" else g.cast(m, carrier) for m in (keep, flip))
    result = g.add("BitwiseXor", g.add("BitwiseAnd", number, kept), flipped)
    return g.add("BitCast", result, to=NUMBER[word.name]) if word.is_float else result


def _weighted(g: NodeBuilder, zeros: str, weights: Sequence[float], word: str) -> str:
    """Return the sum of the weights of the bits that are 1."""
    column = g.constant(np.array(weights).reshape(-1, 1, 1), word)
    return g.reduce("ReduceSum", g.add("Where", zeros, g.constant(0, word), column))


def _integer(g: NodeBuilder, word: Word, value: str, keep: str, flip: str) -> str:
    """Apply planes to integers."""
    bits = word.bits
    zeros = _faulty_planes(g, planes(g, g.cast(value, "int64"), bits), keep, flip)
    low = [float(1 << i) for i in range(min(bits, 32))] + [0.0] * (bits - min(bits, 32))
    high = [0.0] * 32 + [float(1 << i) for i in range(bits - 32)]
    if word.signed or bits == 64:  # a uint64 is computed as the int64 of the same bits
        (high if bits > 32 else low)[-1] *= -1
    number = g.cast(_weighted(g, zeros, low, "float64"), "int64")
    if bits > 32:
        upper = g.cast(_weighted(g, zeros, high, "float64"), "int64")
        number = g.add("Add", g.add("Mul", upper, g.constant(1 << 32)), number)
    return g.cast(number, transport_format(word))


def _sign(g: NodeBuilder, value: str, word: str) -> str:
    """Return where the sign is set: for negative numbers, and -0, whose reciprocal is negative."""
    zero = g.constant(0, word)
    inverse = g.add("Div", g.constant(1, word), value)
    return g.add("Or", g.add("Less", value, zero), g.add("Less", inverse, zero))


def _words(g: NodeBuilder, word: Word, value: str, keep: str, flip: str) -> str:
    """Apply masks to whole words of floats of at most 32 bits, in int64; `flip` has no bits beyond the word."""
    faulty = g.add("BitwiseXor", g.add("BitwiseAnd", _whole(g, word, g.cast(value, "float64"), "float64"), keep), flip)
    m = word.mantissa
    mantissa = g.add("BitwiseAnd", g.add("Mul", faulty, g.constant(4)), g.constant(4 * ((1 << m) - 1)))
    return _number(g, word, g.add("Div", faulty, g.constant(1 << m)), g.cast(mantissa, "float64"))


def _float(g: NodeBuilder, word: Word, value: str, keep: str, flip: str, wide: str) -> str:
    """Apply planes to floats, computed in the format `wide`."""
    number = value if word.name == wide else g.cast(value, wide)
    short = wide == "float64" and word.bits < 64
    split = _whole_planes if short else _float_planes
    zeros = _faulty_planes(g, split(g, word, number, wide), keep, flip)
    m, e = word.mantissa, word.exponent
    half = 1 << e  # exponents 0 … half - 1 of positive numbers, then those of negative ones
    bias = (half >> 1) - 1
    top = _weighted(g, zeros, [0.0] * m + [2.0**i for i in range(e + 1)], wide)
    q = g.cast(top, "int64")
    if short:
        return _number(g, word, q, _weighted(g, zeros, [2.0 ** (i + 2) for i in range(m)] + [0.0] * (e + 1), wide))
    mantissa = _weighted(g, zeros, [2.0**i for i in range(m)] + [0.0] * (e + 1), wide)
    power = np.array([2.0 ** (max(k, 1) - bias - m) if k < half - 1 else np.inf for k in range(half)])
    implicit = np.array([0.0] + [2.0**m] * (half - 1))
    most = np.array([2.0**m] * (half - 1) + [0.0])  # a mantissa beyond it, at the top, is NaN
    powers = g.add("Gather", g.constant(np.concatenate([power, -power]), wide), q)
    whole = g.add("Add", mantissa, g.add("Gather", g.constant(np.concatenate([implicit, implicit]), wide), q))
    nan = g.add("Greater", mantissa, g.add("Gather", g.constant(np.concatenate([most, most]), wide), q))
    result = g.add("Mul", g.add("Where", nan, g.constant(np.nan, wide), whole), powers)
    return result if word.name == wide else g.cast(result, word.name)


def _number(g: NodeBuilder, word: Word, q: str, mantissa: str) -> str:
    """Return floats of at most 32 bits, of signs and exponents (int64) and four times the mantissas (float64)."""
    m, half = word.mantissa, 1 << word.exponent
    bias = (half >> 1) - 1
    # The value is the start of its binade plus a number of steps. At the top the start is infinite and a step would be
    # -2^1025, which overflows: infinity less infinity is NaN, but no step at all leaves infinity.
    step = np.array([2.0 ** (max(k, 1) - bias - m - 2) for k in range(half - 1)] + [-(2.0**1023)])
    start = np.array([0.0, *(2.0 ** (k - bias) for k in range(1, half - 1)), np.inf])
    steps, starts = (g.constant(np.concatenate([t, -t]), "float64") for t in (step, start))
    result = g.add("Add", g.add("Mul", mantissa, g.add("Gather", steps, q)), g.add("Gather", starts, q))
    return g.cast(result, word.name)


def _whole_planes(g: NodeBuilder, word: Word, number: str, wide: str) -> str:
    """Split the words of floats of at most 32 bits, given in float64, into planes."""
    bits = np.array([1 << i for i in range(word.bits)], np.int64).reshape(-1, 1, 1)
    return g.add("Less", g.add("Mod", _whole(g, word, number, wide), g.constant(bits * 2)), g.constant(bits))


def _whole(g: NodeBuilder, word: Word, number: str, wide: str) -> str:
    """Return the words (int64) of floats of at most 32 bits, given in float64, if a whole word is exact.

    The word of a positive number is piecewise linear between powers of two: the sum of the linear parts.
    """
    m, bias, top = word.mantissa, (1 << (word.exponent - 1)) - 1, (1 << word.exponent) - 1
    ends = np.array([0.0, *(2.0 ** (k - bias) for k in range(2, top + 1))]).reshape(-1, 1, 1)
    slopes = np.array([2.0 ** (m - (max(k, 1) - bias)) for k in range(1, top)]).reshape(-1, 1, 1)
    low, high, rise = (g.constant(t, wide) for t in (ends[:-1], ends[1:], slopes))
    parts = g.reduce("ReduceSum", g.add("Mul", g.add("Max", g.add("Min", g.add("Abs", number), high), low), rise))
    base = float(np.sum(ends[:-1] * slopes))
    # -0 is recognised by its reciprocal, -infinity by itself; their sum recognises both.
    minus = g.add("Less", g.add("Add", number, g.add("Reciprocal", number)), g.constant(0, wide))
    sign = (2.0 ** (word.bits - 1) - base, -base)
    signed = g.add("Add", parts, g.add("Where", minus, *(g.constant(s, wide) for s in sign)))
    quiet = g.constant(float((top << m) + (1 << (m - 1))), wide)
    return g.cast(g.add("Where", g.add("IsNaN", number), quiet, signed), "int64")


def _float_planes(g: NodeBuilder, word: Word, number: str, wide: str) -> str:
    """Split the words of floats, given in float32 or float64, into planes."""
    m, e = word.mantissa, word.exponent
    half, bias = 1 << e, (1 << (e - 1)) - 1
    size = g.add("Abs", number)
    thresholds = np.array([2.0 ** (k - bias) for k in range(2, half - 1)]).reshape(-1, 1, 1)
    below = g.add("Less", size, g.constant(thresholds, wide))
    count = g.reduce("ReduceSum", g.add("Where", below, g.constant(0, wide), g.constant(1, wide)))
    # size · 2^m / 2^(count + 1 - bias) in two steps, since that factor alone may be out of range
    factors = [m - (k + 1 - bias) for k in range(half - 2)]
    at = g.cast(count, "int64")
    for part in ([2.0 ** (f // 2) for f in factors], [2.0 ** (f - f // 2) for f in factors]):
        size = g.add("Mul", size, g.add("Gather", g.constant(part, wide), at))
    special = g.add("Not", g.add("Less", g.add("Abs", number), g.constant(np.inf, wide)))
    nan = g.add("IsNaN", number)
    width = min(word.bits, 32 if wide == "float64" else 16)
    split = word.bits > width
    step = 2.0**width
    upper = g.add("Floor", g.add("Mul", size, g.constant(1 / step, wide))) if split else size
    infinity = ((half - 1) << m) >> (width if split else 0)
    quiet = infinity + (1 << (m - 1 - (width if split else 0)))
    high = g.add("Add", upper, g.add("Mul", count, g.constant(2.0 ** (m - (width if split else 0)), wide)))
    non_finite = g.add("Where", nan, g.constant(quiet, wide), g.constant(infinity, wide))
    high = g.add("Where", special, non_finite, high)
    minus = g.add("Where", _sign(g, number, wide), g.constant(2.0 ** (word.bits - 1 - (width if split else 0)), wide),
                  g.constant(0, wide))  # fmt: skip
    planes_ = _bits_of(g, g.add("Add", high, minus), width if split else word.bits, wide)
    if not split:
        return planes_
    low = g.add("Sub", size, g.add("Mul", upper, g.constant(step, wide)))
    low = g.add("Where", special, g.constant(0, wide), low)
    return g.add("Concat", _bits_of(g, low, width, wide), planes_, axis=0)


def _bits_of(g: NodeBuilder, number: str, bits: int, wide: str) -> str:
    """Split whole numbers that are held as floats into planes: a bit is 0 if the fraction is below one half."""
    shifted = g.add("Mul", number, g.constant(np.array([2.0 ** -(i + 1) for i in range(bits)]).reshape(-1, 1, 1), wide))
    fraction = g.add("Sub", shifted, g.add("Floor", shifted))
    return g.add("Less", fraction, g.constant(0.5, wide))


def _float8(g: NodeBuilder, word: Word, value: str, keep: str, flip: str) -> str:
    """Change floats of 8 bits, given in float32: the word of a positive number is its rank among all of them."""
    table = word.values(np.arange(256, dtype=np.uint64)).astype(np.float32)
    positive = table[1:128]
    ranks = positive[~np.isnan(positive)].reshape(-1, 1, 1)
    below = g.add("Less", g.add("Abs", value), g.constant(ranks, "float32"))
    count = g.reduce("ReduceSum", g.add("Where", below, g.constant(0, "float32"), g.constant(1, "float32")))
    minus = g.add("Where", _sign(g, value, "float32"), g.constant(128, "float32"), g.constant(0, "float32"))
    nan = int(word.words(np.array([np.nan]))[0])
    number = g.add("Where", g.add("IsNaN", value), g.constant(nan, "float32"), g.add("Add", count, minus))
    zeros = _faulty_planes(g, _bits_of(g, number, 8, "float32"), keep, flip)
    result = g.cast(_weighted(g, zeros, [2.0**i for i in range(8)], "float32"), "int64")
    return g.add("Gather", g.constant(table, "float32"), result)


def transport_format(word: Word) -> str:
    """Return the format that a tensor has for Gather and Scatter, which have no kernels for narrow ones."""
    if word.is_float and word.bits == 8:
        return "float32"
    if word.bits < 8 and word.name != "bool":
        return "int8" if word.signed else "uint8"
    return word.name


def convert_transport(g: NodeBuilder, word: Word, value: str, *, back: bool = False, name: str = "") -> str:
    """Convert a whole tensor to its format for Gather and Scatter, or back."""
    if transport_format(word) == word.name:
        return value
    exact = {"saturate": 0} if back and word.is_float else {}
    return g.add("Cast", value, to=NUMBER[word.name if back else transport_format(word)], name=name, **exact)


__all__ = [
    "apply_mask",
    "body_for",
    "convert_transport",
    "plane_values",
    "planes",
    "transport_format",
]
