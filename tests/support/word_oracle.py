"""Meaning of words and fault models, one number at a time, from the definitions alone: an oracle for the tests."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from onnxfi.faults import models
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.words import Word


def decode(word: Word, bits: int) -> float | int | bool:
    """The number that bits stand for, from the definition of each format."""
    if word.name == "bool":
        return bool(bits)
    if not word.is_float:
        return bits - (1 << word.bits) if word.signed and bits >> (word.bits - 1) else bits
    fraction = bits & ((1 << word.mantissa) - 1)
    exponent = bits >> word.mantissa & ((1 << word.exponent) - 1)
    sign = -1.0 if word.signed and bits >> (word.bits - 1) else 1.0
    ones = exponent == (1 << word.exponent) - 1
    bias = (1 << (word.exponent - 1)) - 1 + word.name.endswith("fnuz")
    if word.name == "float8_e8m0fnu":
        return math.nan if ones else math.ldexp(1.0, exponent - bias)
    if word.name.endswith("fnuz"):
        if bits == 1 << (word.bits - 1):
            return math.nan
    elif word.name == "float8_e4m3fn":
        if ones and fraction == 7:
            return math.nan
    elif ones and word.name != "float4_e2m1fn":
        return math.nan if fraction else sign * math.inf
    whole = Fraction(fraction, 1 << word.mantissa) + (exponent > 0)
    return sign * float(whole * Fraction(2) ** (max(exponent, 1) - bias))


def encode(word: Word, number: float | Fraction) -> int:
    """The bits of the number of this format that is nearest; NaN without sign or payload."""
    if word.name == "bool":
        return int(bool(number))
    if word.is_float:
        with np.errstate(all="ignore"):
            near = np.array([math.nan if math.isnan(number) else float(number)]).astype(word.dtype)
        return int.from_bytes(near.tobytes(), "little")
    if math.isnan(number):
        return 0
    low, high = (-(1 << (word.bits - 1)), word.full >> 1) if word.signed else (0, word.full)
    held = high if number >= high else low if number <= low else round(number)
    return held % (1 << word.bits)


def exact(word: Word, number: float) -> float | Fraction:
    """A parameter that loses nothing beside whole numbers of 64 bits; narrower ones are exact as floats."""
    return number if word.is_float or word.bits <= 32 or not math.isfinite(number) else Fraction(number)


def faulty(model: FaultModel, word: Word, before: int, bit: int) -> int | None:
    """The word after a fault of onnxfi's own; None where the format cannot have such a fault."""
    match model:
        case models.Flip():
            return before ^ 1 << bit
        case models.Burst(k):
            for each in range(bit, bit + k):
                before ^= 1 << each
            return before
        case models.FlipMask(bits):
            return before ^ bits if bits < 1 << word.bits else None
        case models.StuckAt0():
            return before & ~(1 << bit)
        case models.StuckAt1():
            return before | 1 << bit
        case models.SetWord(new):
            return new if new < 1 << word.bits else None
        case models.Zero():
            return 0
        case models.SignFlip():
            top = 1 << (word.bits - 1)
            return None if not word.signed else before ^ top if word.is_float else -before % (1 << word.bits)
        case models.Set(value):
            held = float(decode(word, encode(word, value)))
            lost = math.isnan(held) != math.isnan(value) or (math.isinf(value) and not math.isinf(held))
            return None if lost else encode(word, value)
        case models.Scale(factor):
            return encode(word, decode(word, before) * exact(word, factor))
        case models.Add(value):
            return encode(word, decode(word, before) + exact(word, value))
    raise NotImplementedError(f"no oracle for {model}")


def effect(word: Word, bits: int, bit: int, zero_point: int = 0) -> str:
    """The class of a bit flip, from its definition in exact numbers."""
    before, after = decode(word, bits), decode(word, bits ^ (1 << bit))
    if word.name == "bool":
        return "sign"
    if math.isnan(before):
        return "collapse" if math.isfinite(after) else "negligible"
    if math.isinf(before):
        return "sign" if math.isinf(after) else "catastrophic" if math.isnan(after) else "collapse"
    if not math.isfinite(after):
        return "catastrophic"
    old, new = Fraction(before) - zero_point, Fraction(after) - zero_point
    least = Fraction(decode(word, 1 << word.mantissa if word.mantissa else 0)) if word.is_float else Fraction(1)
    ratio = max(abs(new), least) / max(abs(old), least)
    turned = math.copysign(1, before) != math.copysign(1, after) if word.is_float else old * new < 0
    if ratio >= 1 << 16:
        return "catastrophic"
    if turned:
        return "sign"
    if ratio * (1 << 16) <= 1:
        return "collapse"
    return "amplification" if ratio >= 2 else "attenuation" if ratio * 2 <= 1 else "negligible"
