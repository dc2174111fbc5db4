"""Fault-aware training in PyTorch: the bits of the ONNX side, straight-through gradients, any topology, bad input."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfi import Selector, inject, load, sample
from onnxfi.errors import InputError, SelectorError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: bash scripts/test.sh frameworks")
pytestmark = [pytest.mark.frameworks("torch"), pytest.mark.filterwarnings("ignore")]

from onnxfi.converters import torch_training  # noqa: E402
from onnxfi.converters.torch import FaultAwareTraining, convert  # noqa: E402
from onnxfi.errors import NonFiniteLossError  # noqa: E402


class Block(torch.nn.Module):
    """A skip connection around a convolution and its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return torch.relu(x + self.norm(self.conv(x)))


class Residual(torch.nn.Module):
    """The same block twice: its parameters have two users."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 4, 3)
        self.block = Block()
        self.again = self.block
        self.fc = torch.nn.Linear(4, 10)

    def forward(self, x: Any) -> Any:
        return self.fc(self.again(self.block(self.stem(x))).mean((2, 3)))


class Rows(torch.nn.Module):
    """A recurrent layer and attention over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(8, 8, batch_first=True)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        rows, _ = self.gru(x.flatten(2)[:, 0].unflatten(1, (8, 8)))
        return self.fc(self.attention(rows, rows, rows)[0].mean(1))


def cnn() -> Any:
    """Two convolutions and a linear layer."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(6 * 16, 10))


def image(samples: int = 4) -> Any:
    return torch.rand(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Tied(torch.nn.Module):
    """Two layers of their own with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(self.first(x.flatten(1))))


MODELS = {"cnn": cnn, "residual": Residual, "rows": Rows, "tied": Tied}


def words(tensor: Any) -> Any:
    return tensor.detach().numpy().view(np.uint32)


@pytest.mark.parametrize("fault", ["flip", "burst:k=3", "stuck-at-1", "random-word", "noise", "scale:factor=-3"])
def test_a_fault_list_affects_the_same_bits_in_torch_and_in_onnx(fault: str, tmp_path: Path) -> None:
    model = cnn()
    convert(model, tmp_path / "m.onnx", input_shape="N,1,8,8")
    exported = load(tmp_path / "m.onnx")
    drawn = sample(exported, ber=0.01, seed=5, fault=fault, selector=Selector(role=("weight", "bias")))
    assert len(drawn.faults) > 5
    inject(exported, drawn, tmp_path / "faulty.onnx")
    training = FaultAwareTraining(model, ber=0.01, seed=5, fault=fault)
    done = training.inject_faults(training.map_faults(exported, drawn.faults))
    assert [(f.before, f.after) for f in done] == [(f.before, f.after) for f in drawn.faults]
    faulty = load(tmp_path / "faulty.onnx")
    for target in (t for t in faulty.targets if not t.structural):
        assert np.array_equal(
            words(model.get_parameter(target.id)).ravel(), faulty.words(target, np.arange(target.size))
        )


def test_a_step_has_the_faults_of_inject_in_the_exported_file(tmp_path: Path) -> None:
    model = cnn()
    convert(model, tmp_path / "m.onnx", input_shape="N,1,8,8")
    exported = load(tmp_path / "m.onnx")
    selector = Selector(include=("weight",), bits="0-29")
    training = FaultAwareTraining(model, ber=0.001, selector=selector, seed=9)
    for step in (1, 2, 3):
        training(image())
        drawn = sample(exported, ber=0.001, selector=selector, seed=9, trial=step).faults
        key = [(f.site, f.before, f.after) for f in drawn]
        assert [(f.site, f.before, f.after) for f in training.last_faults[0]] == key


@pytest.mark.parametrize("name", MODELS)
def test_faults_are_there_in_training_alone_and_the_model_stays(name: str) -> None:
    model = MODELS[name]()
    kept = copy.deepcopy(model)
    training = FaultAwareTraining(model, ber=0.02, selector=Selector(bits="0-29,31"), seed=3)
    faulty = training(image())
    twin = copy.deepcopy(kept).train()
    FaultAwareTraining(twin, ber=0.02, selector=Selector(bits="0-29,31"), seed=3).inject_faults(trial=1)
    assert torch.equal(faulty, twin(image()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    assert not torch.equal(faulty, training(image())), "every step draws anew"
    model.load_state_dict(kept.state_dict())
    assert torch.equal(training.eval()(image()), kept.eval()(image()))
    assert not torch.equal(faulty, training(image()))
    assert training.step == 2


def test_gradients_are_those_at_the_faulty_weights_and_pass_straight_through() -> None:
    model = cnn()
    training = FaultAwareTraining(model, ber=0.02, selector=Selector(bits="0-29,31"), seed=3)
    training(image()).square().sum().backward()
    other = cnn()
    FaultAwareTraining(other, ber=0.02, selector=Selector(bits="0-29,31"), seed=3).inject_faults()
    other(image()).square().sum().backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
        assert ours.grad.abs().sum() > 0


def test_the_step_is_saved_and_goes_on(tmp_path: Path) -> None:
    first = FaultAwareTraining(cnn(), ber=0.01, selector=Selector(bits="mantissa"), seed=4)
    outputs = [first(image()) for _ in range(3)]
    second = FaultAwareTraining(cnn(), ber=0.01, selector=Selector(bits="mantissa"), seed=4)
    second(image())
    torch.save(second.state_dict(), tmp_path / "state.pt")
    third = FaultAwareTraining(cnn(), ber=0.01, selector=Selector(bits="mantissa"), seed=4)
    third.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(third(image()), outputs[1]) and torch.equal(third(image()), outputs[2])
    other = FaultAwareTraining(cnn(), ber=0.01, seed=5)
    with pytest.raises(InputError, match="was trained with seed 4, this wrapper has 5"):
        other.load_state_dict(second.state_dict())


def test_faults_from_an_epoch_on() -> None:
    training = FaultAwareTraining(cnn(), ber=0.05, selector=Selector(bits="mantissa"), from_epoch=2)
    with pytest.raises(InputError, match=r"faults begin with epoch 2, but the epoch is not known: call begin_epoch"):
        training(image())
    plain = training.model(image())
    for epoch, faulty in ((0, False), (1, False), (2, True), (3, True)):
        training.begin_epoch(epoch)
        assert torch.equal(training(image()), plain) is not faulty
        assert bool(training.last_faults) is faulty


def test_faults_before_and_after_training() -> None:
    model = cnn()
    kept = copy.deepcopy(model.state_dict())
    training = FaultAwareTraining(model, ber=0.01, seed=2)
    with training.faulty(trial=7) as faults:
        inside = copy.deepcopy(model.state_dict())
    assert len(faults) > 100 and all(f.before is not None for f in faults)
    assert all(
        np.array_equal(words(a), words(b)) for a, b in zip(kept.values(), model.state_dict().values(), strict=True)
    )
    training.inject_faults(trial=7)
    for name, value in model.state_dict().items():
        assert np.array_equal(words(value), words(inside[name]))
    for fault in faults:
        assert words(model.get_parameter(fault.target)).ravel()[fault.index] != fault.before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_float_format_is_faulty_on_its_own_words(dtype: str) -> None:
    model = cnn().to(getattr(torch, dtype))
    training = FaultAwareTraining(model, ber=0.01, seed=1)
    faults = training.inject_faults()
    for fault in faults:
        held = model.get_parameter(fault.target).detach().reshape(-1)[fault.index]
        mask = (1 << fault.word.bits) - 1
        number = held.view({16: torch.int16, 64: torch.int64}[fault.word.bits]).item() & mask
        others = [f for f in faults if (f.target, f.index) == (fault.target, fault.index)]
        assert number == others[-1].after


def test_activations_are_faulty_in_training_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(inplace=True), torch.nn.Linear(5, 2))
    training = FaultAwareTraining(
        model, ber=1.0, target="activations", fault="set:value=2", selector=Selector(include=("=1",))
    )
    x = torch.rand(6, 3)
    assert torch.equal(training(x), model[2](torch.full((6, 5), 2.0)))
    assert [t.id for t in training.last_faults[0].targets] == ["1"] and len(training.last_faults[0]) == 30
    assert torch.equal(training.eval()(x), model(x))


def test_faulty_activations_hold_the_recorded_words_and_gradients_pass() -> None:
    model = cnn()
    seen: dict[str, Any] = {}
    model[1].register_forward_hook(lambda module, given, output: seen.update(before=output.detach().clone()))
    model[2].register_forward_pre_hook(lambda module, given: seen.update(after=given[0].detach().clone()))
    training = FaultAwareTraining(
        model, ber=0.01, target="activations", selector=Selector(include=("=1",), bits="0-29"), seed=8
    )
    training(image()).sum().backward()
    (faults,) = training.last_faults
    before, after = (words(seen[k]).ravel().astype(np.int64) for k in ("before", "after"))
    expected = before.copy()
    for fault in faults:
        expected[fault.index] ^= 1 << fault.bits[0]
    assert np.array_equal(after, expected) and len(faults) > 10
    assert model[0].weight.grad.abs().sum() > 0
    first = faults
    training(image())
    assert [f.site for f in training.last_faults[0]] != [f.site for f in first]


def test_a_module_that_is_used_twice_draws_twice_also_in_tuples() -> None:
    training = FaultAwareTraining(Residual(), ber=0.001, target="activations", selector=Selector(include=("block",)))
    training(image())
    ids = [part.targets[0].id for part in training.last_faults]
    assert ids == ["block.conv", "block.norm"] * 2
    assert training.last_faults[0].sites.index.tolist() != training.last_faults[2].sites.index.tolist()
    rows = FaultAwareTraining(Rows(), ber=0.001, target="activations", selector=Selector(include=("gru",)))
    rows(image())
    assert [part.targets[0].id for part in rows.last_faults] == ["gru", "gru"], "all steps, and the last state"


def test_a_nonfinite_loss_is_refused_before_an_update_and_a_clip_prevents_it() -> None:
    model, selector = cnn(), Selector(include=("5.weight",), bits="30")
    training = FaultAwareTraining(model, ber=1.0, selector=selector, seed=1)
    optimizer = torch.optim.SGD(training.parameters(), 0.1)
    kept = copy.deepcopy(model.state_dict())
    loss = training(image()).square().mean()
    with pytest.raises(NonFiniteLossError) as error:
        loss.backward()
        optimizer.step()
    assert "step 1: the loss is not finite" in str(error.value)
    assert "960 faults injected, the largest number is" in str(error.value)
    assert "set clip, as clip=1.0" in str(error.value) and "bits='0-29,31'" in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), model.state_dict().values(), strict=True))
    held = FaultAwareTraining(model, ber=1.0, selector=selector, seed=1, clip=1.0)
    held.zero_grad()
    held(image()).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_cannot_be_wrapped_says_why() -> None:
    for model, message in (
        (torch.compile(cnn()), "under torch.compile: its graph is traced once"),
        (torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2))), "a TorchScript module"),
        (torch.nn.Sequential(torch.nn.LazyLinear(2)), "lazy parameters without a shape; call it once"),
        (lambda x: x, "model must be a torch.nn.Module, got a function"),
    ):
        with pytest.raises(InputError, match=message):
            FaultAwareTraining(model, ber=0.1)
    with pytest.raises(InputError, match="the model has no parameters in a float format to inject faults into"):
        FaultAwareTraining(torch.nn.ReLU(), ber=0.1)
    with pytest.raises(InputError, match="activations are not stored"):
        FaultAwareTraining(cnn(), ber=0.1, target="activations").inject_faults()


def test_a_selector_that_matches_no_parameter_names_the_closest() -> None:
    with pytest.raises(SelectorError, match=r"--include '0.wieght' matches nothing in this model; closest: '0.weight'"):
        FaultAwareTraining(cnn(), ber=0.1, selector=Selector(include=("0.wieght",)))
    with pytest.raises(SelectorError, match=r"matches nothing"):
        FaultAwareTraining(cnn(), ber=0.1, target="activations", selector=Selector(include=("conv9",)))


def test_a_rate_that_affects_every_word_is_allowed_with_a_warning() -> None:
    training = FaultAwareTraining(cnn(), ber=1.0, fault="zero")
    assert "faults are expected in 1,232 words at every step: nearly every word is faulty" in training.notes[0]
    assert torch.equal(training(image()), torch.zeros(4, 10))
    assert FaultAwareTraining(cnn(), ber=0.01).notes == ()


def test_the_wrapper_itself_may_be_compiled() -> None:
    training = FaultAwareTraining(cnn(), ber=0.01, selector=Selector(bits="mantissa"), seed=4)
    twin = FaultAwareTraining(cnn(), ber=0.01, selector=Selector(bits="mantissa"), seed=4)
    compiled = torch.compile(training, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(image()), twin(image()))


def test_weights_and_activations_at_once() -> None:
    inner = FaultAwareTraining(cnn(), ber=0.01, selector=Selector(bits="mantissa"), seed=4)
    outer = FaultAwareTraining(inner, ber=0.01, target="activations", selector=Selector(bits="mantissa"), seed=4)
    outer(image()).sum().backward()
    assert len(inner.last_faults) == 1 and len(outer.last_faults) == 6
    assert all(p.grad is not None for p in inner.model.parameters())


def test_the_docstrings_examples_run() -> None:
    assert doctest.testmod(torch_training).failed == 0


def test_the_pages_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "training.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0].replace("N,1,28,28", "N,1,8,8")
    model = cnn()
    exec(program, {"model": model, "batches": [(image(8), torch.arange(8) % 10)] * 2})
    assert load(tmp_path / "trained.onnx").targets


def test_dead_neurons_by_number_stay_dead_in_every_sample_and_step() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2))
    selector = Selector(include=("=1",))
    training = FaultAwareTraining(model, count=3, fault="dead", target="activations", selector=selector, permanent=True)
    seen = []
    handle = model[2].register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    for _ in range(2):
        training(torch.rand(5, 4)).sum().backward()
    handle.remove()
    dead = [(value == 0).all(0) for value in seen]
    assert int(dead[0].sum()) == 3 and torch.equal(*dead)
    assert all(torch.equal(value == 0, dead[0].expand(5, 8)) for value in seen)
