"""The fault operators, bit for bit against numpy: every format, body, form, and both runtimes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from identity_models import LEVELS, identity, run_words, target
from onnx.reference import ReferenceEvaluator

from onnxfi.faults.models import Add, Scale
from onnxfi.faults.words import WORDS, Mask, Word, Words
from onnxfi.graph.passes.fault_inputs import columns
from onnxfi.graph.passes.instrument import ActivationFault, arm, bake

WIDE = ("float64", "float32", "float16", "bfloat16")
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
#: (format, opset, body): every body at its lowest opset and at the newest.
CASES: list[Any] = [
    *[(n, opset, "portable") for n in ("float16", "float32", "int64", "uint8") for opset in (11, 26)],
    *[(n, 11, "portable") for n in ("float64", "int8", "int16", "int32", "uint16", "uint32", "uint64", "bool")],
    *[("bfloat16", opset, "portable") for opset in (13, 18)],
    *[(n, opset, "portable") for n in FLOAT8 for opset in (19, 26)],
    *[(n, 26, "native") for n in (*WIDE, *INTEGERS, "bool")],
]
#: And at opsets between.
BETWEEN = [
    *[(n, 17, "portable") for n in ("float16", "float32", "int64", "uint8", "int32", "uint64", "bool", "bfloat16")],
    *[(n, 18, "portable") for n in ("float32", "float64", "int16", "uint64", "bool")],
]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in BETWEEN]
SAMPLES = 2


def corners(word: Word) -> Words:
    """Every exponent with the least, the next and the largest mantissa and both signs; and random words."""
    raw = np.random.default_rng(1).integers(0, 2**64, 300, dtype=np.uint64)
    random = raw >> np.uint64(64 - word.bits)
    if not word.is_float:
        return np.concatenate([random, np.array([0, 1, word.full, word.full >> 1], np.uint64)])
    mantissas = (0, 1, (1 << word.mantissa) - 1) if word.bits < 64 else (1,)
    fields = [e << word.mantissa | m for e in range(1 << word.exponent) for m in mantissas]
    signs = (0, 1 << (word.bits - 1))
    return np.concatenate([random, np.array([f | s for f in fields for s in signs], np.uint64)])


def masks(word: Word, count: int) -> tuple[Words, Words]:
    """Flips, stuck-at-0, stuck-at-1 of one bit, and any masks: keep and flip [1,count]."""
    rng = np.random.default_rng(2)
    bit = np.uint64(1) << rng.integers(0, word.bits, count).astype(np.uint64)
    keep, flip = (rng.integers(0, 2**64, count, dtype=np.uint64) & np.uint64(word.full) for _ in range(2))
    kind = rng.integers(0, 4, count)
    keep = np.select([kind == 0, kind > 2], [np.uint64(word.full), keep], ~bit & np.uint64(word.full))
    flip = np.select([kind == 1, kind > 2], [np.uint64(0), flip], bit)
    return keep[None], flip[None]


def wanted(word: Word, before: Words, keep: Words, flip: Words, body: str) -> Words:
    """Return numpy's result; in the portable body a NaN that comes in counts as the canonical one."""
    if word.is_float and body == "portable":
        canonical = int(word.words(np.array([np.nan]))[0])
        with np.errstate(invalid="ignore"):
            nan = np.isnan(word.values(before).astype(np.float64))
        before = np.where(nan, np.uint64(canonical), before)
    return (before & keep) ^ flip


def differing(word: Word, found: Words, expected: Words, body: str) -> int:
    """Words that differ; in the portable body NaN is NaN, payload free."""
    differ = found != expected
    if word.is_float and body == "portable":
        with np.errstate(invalid="ignore"):
            both = [np.isnan(word.values(w.copy()).astype(np.float64)) for w in (found, expected)]
        differ &= ~(both[0] & both[1])
    return int(np.count_nonzero(differ))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "opset", "body"), CASES)
def test_every_faulty_word_is_that_of_numpy(name: str, opset: int, body: str) -> None:
    word = WORDS[name]
    words = corners(word)
    before = np.stack([np.roll(words, k) for k in range(SAMPLES)])
    x = word.values(before)
    keep, flip = masks(word, len(words))
    expected = wanted(word, before, keep, flip, body)
    plain = identity(word, opset, ["N", len(words)])
    site = target(plain)
    armed = arm(plain, [site], body=body)
    onnx.checker.check_model(armed.proto)
    columns = {"site": np.zeros(len(words), np.int64), "element": np.arange(len(words))[None]}
    fed = {f"onnxfi.{n}": v for n, v in (columns | {"keep": keep.view(np.int64), "flip": flip.view(np.int64)}).items()}
    for level in LEVELS:
        assert differing(word, run_words(armed.proto, {"x": x} | fed, word, level), expected.ravel(), body) == 0
        disarmed = run_words(armed.proto, {"x": x}, word, level)
        assert differing(word, disarmed, before.ravel(), "portable" if name in FLOAT8 else "native") == 0
    faults = [ActivationFault(site, k, Mask(int(keep[0, k]), int(flip[0, k]))) for k in range(len(words))]
    baked = bake(plain, faults, body=body)
    onnx.checker.check_model(baked)
    assert differing(word, run_words(baked, {"x": x}, word), expected.ravel(), body) == 0
    with np.errstate(all="ignore"):
        reference = word.words(ReferenceEvaluator(baked).run(None, {"x": x})[0])
    assert differing(word, reference.ravel(), expected.ravel(), body) == 0


@pytest.mark.parametrize(("name", "body"), [("float32", "portable"), ("float32", "native"), ("int8", "native")])
def test_faults_in_one_sample_each(name: str, body: str) -> None:
    word = WORDS[name]
    plain = identity(word, 26, ["N", 5])
    words = corners(word)[:15].reshape(3, 5)
    faults = [ActivationFault(target(plain), k, Mask(word.full, 1 << k), sample=k % 3) for k in range(5)]
    expected = words.copy()
    for k in range(5):
        expected[k % 3, k] ^= np.uint64(1 << k)
    baked = bake(plain, faults, body=body)
    assert differing(word, run_words(baked, {"x": word.values(words)}, word), expected.ravel(), body) == 0
    with pytest.raises(Exception, match="index"):  # a sample beyond the batch is loud
        run_words(baked, {"x": word.values(words[:2])}, word)
    armed = arm(plain, [target(plain)], body=body).proto
    element = np.array([[0, 3], [1, 4], [2, 2]])  # a row for each sample; an element with two faults is given twice
    flip = np.int64(1) << element
    fed = {"onnxfi.site": np.zeros(2, np.int64), "onnxfi.element": element, "onnxfi.flip": flip}
    fed["onnxfi.keep"] = np.full((3, 2), -1)
    assert differing(word, run_words(armed, {"x": word.values(words)} | fed, word), expected.ravel(), body) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float64", "int8", "uint32", "int64"])
@pytest.mark.parametrize("axes", [[], [1], [4], [2, 3], [1, 2, 3, 1, 2], [2, 0], [0, 3]])
def test_ranks_and_empty_tensors(name: str, axes: list[int]) -> None:
    word = WORDS[name]
    plain = identity(word, 18, axes)
    size = int(np.prod(axes, dtype=int))
    words = np.resize(corners(word), size).reshape(axes)
    site = target(plain)
    armed = arm(plain, [site]).proto
    assert (run_words(armed, {"x": word.values(words)}, word) == words.ravel()).all()
    if size:
        last = size // (axes[0] if site.axis == 0 else 1) - 1
        fed = {"onnxfi.site": np.array([0]), "onnxfi.element": np.array([[last]]), "onnxfi.keep": np.array([[-1]])}
        found = run_words(armed, {"x": word.values(words)} | fed | {"onnxfi.flip": np.array([[1]])}, word)
        expected = words.copy().reshape(-1, last + 1)
        expected[:, last] ^= np.uint64(1)
        assert differing(word, found, expected.ravel(), "portable") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "int8", "uint16"])
@pytest.mark.parametrize("fault", [Scale(0.5), Scale(-3), Add(0.25), Add(-1e3)])
def test_value_faults_are_those_of_the_fault_models(name: str, fault: Scale | Add) -> None:
    word = WORDS[name]
    words = corners(word)
    plain = identity(word, 18, [1, len(words)])
    scale, shift = (fault.factor, -0.0) if isinstance(fault, Scale) else (1.0, fault.value)
    site = target(plain)
    faults = [ActivationFault(site, k, None, scale, shift) for k in range(len(words))]
    expected = fault.apply(word, words, np.full(len(words), -1, np.int16))
    found = run_words(bake(plain, faults), {"x": word.values(words)[None]}, word)
    assert differing(word, found, expected, "portable") == 0


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize(("name", "opset"), [("float32", 17), ("float32", 26), ("bfloat16", 17), ("int8", 17)])
def test_an_armed_file_gives_the_same_in_the_reference(name: str, opset: int, values: bool) -> None:
    word = WORDS[name]
    plain = identity(word, opset, ["N", 6])
    armed = arm(plain, [target(plain)], values=values)
    words = corners(word)[:12]
    x = {"x": word.values(words.reshape(2, 6))}
    faults = [ActivationFault(armed.sites[0], k, None if values else Mask(word.full, 1 << k), 3.0, 1.0) for k in (1, 4)]
    reference = ReferenceEvaluator(armed.proto)
    for fed in (x, x | columns(armed, faults)):
        with np.errstate(all="ignore"):
            found = word.words(reference.run(None, fed)[0]).ravel()
        assert differing(word, found, run_words(armed.proto, fed, word), "portable") == 0
        assert (differing(word, found, words, "portable") == 0) == (fed is x)
