"""Proof on every quantisation scheme: which integer is faulty, the number it represents, and the output of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import protobuf_reader
import pytest
import quantized_models
from injected_files import inject_flip, run
from onnx import TensorProto
from quantized_models import draw, node, tensor

from onnxfi.campaign.execute.canary import prove
from onnxfi.campaign.execute.trial_executor import TrialExecutor
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.errors import SelectorError
from onnxfi.faults.faultlist import FaultList
from onnxfi.faults.space import Selector
from onnxfi.graph.model.loading import Model, load
from onnxfi.runtime.inject.weights import inject, sample, undo

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("make", quantized_models.ALL, ids=lambda make: make.__name__)
def test_the_canary_is_seen(make: Callable[[], quantized_models.OneLayer], tmp_path: Path) -> None:
    layer = make()
    path = tmp_path / "m.onnx"
    onnx.save(layer.model, path)
    np.savez(tmp_path / "data.npz", x=layer.x)
    bench = TrialExecutor.open(Campaign(str(path), str(tmp_path / "data.npz"), single=True, trials=1, provider="cpu"))
    for target in bench.opened.model.targets:
        if target.role in ("weight", "bias") and target.scheme is not None and target.id != "r":  # r meets a zero state
            seen = prove(bench, [target])
            assert (seen["seen"], seen["unseen"], list(seen["routes"].values())) == (target.id, [], [target.id])


def nbits(bits: int, *, zero: bool, typed: bool = False) -> onnx.ModelProto:
    """One MatMulNBits of 5 outputs, 40 inputs in blocks of 16: the last block half used."""
    packed = draw((5, 3, 16 * bits // 8), 0, 256).astype(np.uint8)
    scales = np.linspace(0.01, 0.2, 15).astype(np.float32)
    stored = [tensor("w", packed, TensorProto.UINT8), tensor("ws", scales, TensorProto.FLOAT)]
    if typed:
        stored[0] = TensorProto(name="w", data_type=TensorProto.UINT8, dims=packed.shape, int32_data=packed.ravel())
    if zero:
        row = (3 * bits + 7) // 8
        stored.append(tensor("wz", draw((5 * row,), 0, 256, seed=5).astype(np.uint8), TensorProto.UINT8))
    inputs = ["x", "w", "ws", *(["wz"] if zero else [])]
    made = node("MatMulNBits", inputs, ["y"], domain="com.microsoft", K=40, N=5, bits=bits, block_size=16)
    return quantized_models.build([made], stored, np.zeros((1, 40), np.float32))


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """The integers in bytes, the first in the low bits."""
    per = 8 // bits
    return np.stack([(data >> (bits * k)) & ((1 << bits) - 1) for k in range(per)], axis=-1).reshape(
        *data.shape[:-1], -1
    )


def nbits_weight(path: Path, bits: int) -> np.ndarray:
    """[N, K padded] by the definition of MatMulNBits, from the file's bytes."""
    words = protobuf_reader.read(path)
    q = unpacked(quantized_models.numbers(words, "w").astype(np.int64), bits)
    zero = np.full((5, 3), float(1 << (bits - 1)))
    if "wz" in words:
        zero = unpacked(quantized_models.numbers(words, "wz").astype(np.int64).reshape(5, -1), bits)[:, :3]
    scale = quantized_models.numbers(words, "ws").reshape(5, 3)
    return ((q - zero[..., None]) * scale[..., None]).reshape(5, 48)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_faults_in_matmul_nbits_go_into_single_integers(bits: int, zero: bool, typed: bool, tmp_path: Path) -> None:
    golden, x = tmp_path / "golden.onnx", np.random.default_rng(3).uniform(-1, 1, (2, 40)).astype(np.float32)
    onnx.save(nbits(bits, zero=zero, typed=typed), golden)
    weight = nbits_weight(golden, bits)
    np.testing.assert_allclose(run(golden, x), x @ weight[:, :40].T, atol=1e-4)
    target = load(golden).targets[0]
    assert (target.dtype, target.shape, target.role) == (f"uint{bits}", (5, 3, 16), "weight")
    out, line = inject_flip(golden, tmp_path, f"w[3,1,7]:{bits - 1}")
    changed = nbits_weight(out, bits)
    assert [tuple(at) for at in np.argwhere(changed != weight)] == [(3, 16 + 7)]
    assert line["before_real"] == pytest.approx(weight[3, 23], rel=1e-6)
    assert line["after_real"] == pytest.approx(changed[3, 23], rel=1e-6)
    np.testing.assert_allclose(run(out, x), x @ changed[:, :40].T, atol=1e-4)
    assert not np.array_equal(run(out, x), run(golden, x))
    undo(load(out), FaultList.open(tmp_path / "faults.jsonl"), tmp_path / "restored.onnx")
    assert (tmp_path / "restored.onnx").read_bytes() == golden.read_bytes()


def test_faulty_bits_of_matmul_nbits_are_those_of_its_bytes() -> None:
    """Numbering the integers leaves the order of the bits, so a seed draws the same bits as in the bytes."""
    model = load(nbits(4, zero=False))
    space = Selector(include=("=w",)).space(model.targets)
    for number in (0, 5, 13, len(space) - 1):
        site = space[number]
        byte, bit = divmod(number, 8)
        assert (site.index // 2, 4 * (site.index % 2) + (site.bit or 0)) == (byte, bit)


# Roles in general


ROLES = {
    "conv.w": "weight", "conv.b": "bias", "norm.scale": "weight", "norm.b": "bias", "norm.mean": "", "gemm.w": "weight",
    "gemm.b": "bias",
}  # fmt: skip


def plain() -> onnx.ModelProto:
    """A float network with a normalisation."""
    nodes = [
        node("Conv", ["x", "conv.w", "conv.b"], ["c"]),
        node("BatchNormalization", ["c", "norm.scale", "norm.b", "norm.mean", "norm.mean"], ["n"]),
        node("Flatten", ["n"], ["f"]),
        node("Transpose", ["gemm.w"], ["t"]),
        node("Gemm", ["f", "t", "gemm.b"], ["y"]),
    ]
    shapes = {
        "conv.w": (3, 2, 3, 3), "conv.b": (3,), "norm.scale": (3,), "norm.b": (3,), "norm.mean": (3,),
        "gemm.w": (4, 27), "gemm.b": (4,),
    }  # fmt: skip
    stored = [tensor(name, np.ones(shape), TensorProto.FLOAT) for name, shape in shapes.items()]
    return quantized_models.build(nodes, stored, quantized_models.IMAGE)


def test_float_models_have_weights_and_biases() -> None:
    assert {t.id: t.role for t in load(plain()).targets} == ROLES


@pytest.mark.parametrize("role", ["weight", "bias"])
def test_role_selects(role: str) -> None:
    model = load(plain())
    chosen = Selector(role=(role,)).space(model.targets)
    assert [t.id for t in chosen.targets] == [name for name, is_ in ROLES.items() if is_ == role]
    both = Selector(role=(role,), op=("Gemm",)).space(model.targets)
    assert [t.id for t in both.targets] == [f"gemm.{role[0]}"]


def test_a_role_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SelectorError, match=r"--role 'scale' matches nothing in this model; known: 'weight', 'bias'"):
        Selector(role=("scale",)).space(load(plain()).targets)
    with pytest.raises(SelectorError, match=r"unknown role 'wieght'; closest: 'weight'"):
        Selector(role=("wieght",)).space(load(plain()).targets)


def test_roles_leave_the_order_of_targets() -> None:
    model = load(plain())
    assert [t.id for t in model.targets] == [t.name for t in model.proto.graph.initializer]


def test_scales_and_zero_points_have_roles() -> None:
    model = load(quantized_models.qlinear_conv().model)
    assert {t.id: t.role for t in model.targets} == {
        "xs": "scale", "xz": "zero-point", "ys": "scale", "yz": "zero-point", "w": "weight", "ws": "scale",
        "wz": "zero-point", "b": "bias",
    }  # fmt: skip


def test_a_selector_with_a_role_is_kept_in_the_header_and_one_without_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(plain(), path)
    model = load(path)
    for selector, there in ((Selector(role=("bias",)), True), (Selector(), False)):
        listed = tmp_path / "f.jsonl"
        inject(model, sample(model, count=2, selector=selector), tmp_path / "o.onnx", save_faults=listed)
        assert ("role" in json.loads(listed.read_text().splitlines()[0])["selector"]) is there
        assert FaultList.open(listed).header.selector == selector


def test_zero_faults_leave_a_quantised_model_byte_identical(tmp_path: Path) -> None:
    for name in ("int8_qdq", "int8_qoperator", "fp16"):
        path = ROOT / f"models/fashion_cnn_{name}.onnx"
        model = load(path)
        done = inject(model, sample(model, ber=0.0), tmp_path / "same.onnx")
        assert (tmp_path / "same.onnx").read_bytes() == path.read_bytes()
        assert done.faulty_digest == model.digest


@pytest.mark.fetched
@pytest.mark.parametrize(
    ("name", "scheme", "integers"),
    [("smart_turn_int8", "QDQ", 36), ("ddddocr_int8", "dynamic", 24), ("minilm_int8", "Cast + Mul", 38)],
)
def test_models_that_ship_quantised(name: str, scheme: str, integers: int, tmp_path: Path) -> None:
    path = ROOT / f"fetched/{name}.onnx"
    if not path.exists():
        pytest.skip(f"no {name}")
    model: Model = load(path)
    found = [t for t in model.targets if t.scheme is not None]
    assert len(found) == integers
    assert {t.scheme.name for t in found if t.scheme} == {scheme}
    assert all(t.scheme.scales and t.role in ("weight", "bias") for t in found if t.scheme)
    words = protobuf_reader.read(path)
    drawn = sample(model, count=40, selector=Selector(role=("weight",), dtype=("int8", "uint8")), seed=3)
    for fault in drawn.faults:
        target = model.targets[model.by_id[fault.target]]
        by_hand = real_by_hand(words, target, fault.index)
        assert fault.before_real == pytest.approx(by_hand, rel=1e-6, abs=1e-12)


def real_by_hand(words: dict, target: object, index: int) -> float:
    """Return the number that a weight of the three fetched models stands for, by the names that their makers gave the scales."""
    name = target.id  # type: ignore[attr-defined]
    stem = name.removesuffix("_quantized").removesuffix("_q")
    value = float(quantized_models.numbers(words, name).flat[index])
    scale = quantized_models.numbers(words, f"{stem}_scale")
    zero = quantized_models.numbers(words, f"{stem}_zero_point") if f"{stem}_zero_point" in words else np.zeros(1)
    shape = words[name].dims
    at = np.unravel_index(index, shape)
    if scale.size == 1:
        return (value - float(zero.ravel()[0])) * float(scale.ravel()[0])
    if scale.ndim == len(shape):  # broadcast
        return value * float(scale[tuple(i if n > 1 else 0 for i, n in zip(at, scale.shape, strict=True))])
    axis = [k for k, n in enumerate(shape) if n == scale.size][0 if len(shape) > 2 else -1]
    return (value - float(zero.ravel()[at[axis]])) * float(scale[at[axis]])
