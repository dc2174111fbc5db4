"""Fault-aware training in PyTorch: a wrapper that strikes the parameters or activations of any module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from onnxfi.errors import InputError
from onnxfi.faults.fault_model import FaultModel
from onnxfi.faults.space import Index, Selector, Target
from onnxfi.faults.trials import Faults
from onnxfi.faults.words import Words
from onnxfi.graph.model.loading import Model
from onnxfi.runtime.engine.model_io import Array

from .training import Exposure, Plan, carried, outcome, refusal, target_of

#: A signed integer type as wide as a number: torch has no kernels for most unsigned ones.
_CARRIERS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


class FaultAwareTraining(torch.nn.Module):
    """`model` with faults in its weights or activations while it trains, and none while it is evaluated.

    Every forward pass in training mode is a step: each selected bit flips with probability `ber` (or whatever `fault`
    says happens), drawn from `seed` and the number of the step. Gradients pass straight through to the parameters,
    which stay as they are; the wrapped module is not changed, so `model` is what is exported. `selector` chooses
    parameters by the names that the exported file bears (`conv1.weight`), or modules by their paths where `place` is
    "activations"; None takes all. With `from_epoch` the loop says where it is with `begin_epoch`. `clip` holds struck
    numbers within ±clip.

    Raises SelectorError where nothing is selected, InputError for a module that cannot be wrapped, and in the backward
    pass NonFiniteLossError where a gradient is not finite, before any parameter changes.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> training = FaultAwareTraining(model, ber=0.01, selector=Selector(include=("0.weight",), bits="0-29"), seed=1)
    >>> _ = training(torch.ones(5, 4))
    >>> training.step, [str(fault.site) for fault in training.last[0]]
    (1, ['0.weight[0]:2', '0.weight[3]:0', '0.weight[9]:11'])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        ber: float,
        selector: Selector | None = None,
        fault: str | FaultModel = "flip",
        place: str = "weights",
        seed: int = 0,
        from_epoch: int = 0,
        clip: float | None = None,
    ) -> None:
        _refuse(model)
        super().__init__()
        exposure = Exposure(ber, selector or Selector(), fault, seed, place, from_epoch, clip)
        self.model = model
        self.plan = Plan(exposure, tuple(_weights(model) if place == "weights" else _outputs(model)), _NAMED[place])
        #: Training steps so far; it is saved with the state, so that training that goes on draws on.
        self.step = 0
        #: The faults of the last step with their words, over the targets that they struck.
        self.last: tuple[Faults, ...] = ()
        self._epoch: int | None = None

    @property
    def exposure(self) -> Exposure:
        """What strikes, and when."""
        return self.plan.exposure

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of these settings, a line each."""
        return (self.plan.crowded,) if self.plan.crowded else ()

    def begin_epoch(self, epoch: int) -> None:
        """Say that an epoch begins, counted from 0."""
        self._epoch = epoch

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer: with faults in training mode, plainly else."""
        if not self.training:
            return self.model(*args, **kwargs)
        self.step += 1
        self.last = ()
        if not self._struck_now():
            return self.model(*args, **kwargs)
        if self.exposure.place == "weights":
            faults, ends = outcome(self.plan.faults(self.step), self._read, self.exposure.clip)
            self.last = (faults,)
            return self._called(ends, args, kwargs)
        with self._hooked():
            return self._called({}, args, kwargs)

    def _struck_now(self) -> bool:
        if self.exposure.from_epoch and self._epoch is None:
            raise InputError(
                f"faults begin with epoch {self.exposure.from_epoch}, but the epoch is not known: call "
                f"begin_epoch(number) as each epoch begins"
            )
        return (self._epoch or 0) >= self.exposure.from_epoch

    def _called(self, ends: Mapping[int, tuple[Index, Words]], args: Any, kwargs: Any) -> Any:
        """The model with struck tensors in the place of its parameters, which are only read."""
        numbers = {target.id: k for k, target in enumerate(self.plan.targets)}
        struck = {}
        for name, parameter in self.model.named_parameters():
            index, words = ends.get(numbers.get(name, -1), (None, None))
            struck[id(parameter)] = _passed(parameter, index, words, self._check(name, self.step))
        # Under every name that a tied parameter has, but once for a module that is in two places: torch's own tying
        # would leave such a module with the struck tensors.
        placed = {
            f"{path}.{name}" if path else name: struck[id(parameter)]
            for path, module in self.model.named_modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }
        return torch.func.functional_call(self.model, placed, args, kwargs, tie_weights=False)

    def _check(self, name: str, step: int) -> Callable[[torch.Tensor], None]:
        def check(gradient: torch.Tensor) -> None:
            if not bool(torch.isfinite(gradient).all()):
                raise refusal(self.exposure, step, name, self.last)

        return check

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        """What the selected modules put out is struck; a module that is used twice draws twice."""
        numbers = {target.id: k for k, target in enumerate(self.plan.targets)}
        counts: dict[str, int] = {}
        handles = []

        def hook(name: str) -> Callable[..., Any]:
            def put_out(_: Any, __: Any, output: Any) -> Any:
                return torch.utils._pytree.tree_map_only(torch.Tensor, strike, output)

            def strike(value: torch.Tensor) -> torch.Tensor:
                use = counts.setdefault(name, 0)
                counts[name] += 1
                return self._struck_output(value, name, numbers[name] + use * len(numbers))

            return put_out

        modules = dict(self.model.named_modules())
        try:
            for target in self.plan.space.targets:
                handles.append(modules[target.id].register_forward_hook(hook(target.id)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _struck_output(self, value: torch.Tensor, name: str, number: int) -> torch.Tensor:
        """An activation after its faults; what is no float, or of a format that is not selected, passes."""
        whole = value if value.dim() else value.reshape(1)
        known = next(t for t in self.plan.targets if t.id == name)
        target = target_of(name, _format(value), whole.shape[1:], "activation", known.op, known.layer)
        if target is None or not self.exposure.selector.selects(target) or not whole.numel():
            return value
        faults = self.exposure.activations(target, len(whole), number, self.step)
        faults, ends = outcome(faults, lambda _, index: _words(whole, index), self.exposure.clip)
        self.last = (*self.last, faults)
        index, words = ends.get(0, (None, None))
        return _passed(whole, index, words, None).reshape(value.shape)

    # -------------------------------------------------------------------------------- before and after training

    def strike(self, faults: Faults | None = None, *, trial: int = 1) -> Faults:
        """Put faults into the parameters themselves, for a faulty start; returns them with the words before and after.

        They are those of `trial` at this wrapper's rate, or given ones, as `carried` makes them of a fault list.
        """
        if self.exposure.place != "weights":
            raise InputError("only weights are stored and can be struck before or after training; leave place out")
        done, ends = outcome(faults if faults is not None else self.plan.faults(trial), self._read, self.exposure.clip)
        self._write(ends)
        return done

    @contextlib.contextmanager
    def struck(self, faults: Faults | None = None, *, trial: int = 1) -> Iterator[Faults]:
        """The same for the length of a `with` block, as to evaluate with faults; then the parameters are as before."""
        parameters = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        try:
            yield self.strike(faults, trial=trial)
        finally:
            with torch.no_grad():
                for name, value in self.model.named_parameters():
                    value.copy_(parameters[name])

    def carried(self, model: Model, faults: Faults) -> Faults:
        """Faults of a file that was exported from this model, now, as faults of its parameters."""
        return carried(model, faults, self.plan.targets, {t.id: _array(self._tensor(t)) for t in self.plan.targets})

    # --------------------------------------------------------------------------------------- words of parameters

    def _tensor(self, target: Target) -> torch.Tensor:
        layer, _, name = target.id.rpartition(".")
        tensor: torch.Tensor = getattr(self.model.get_submodule(layer), name)  # where wrappers nest, one that is struck
        return tensor

    def _read(self, number: int, index: Index) -> Words:
        return _words(self._tensor(self.plan.targets[number]).detach(), index)

    def _write(self, ends: Mapping[int, tuple[Index, Words]]) -> None:
        with torch.no_grad():
            for number, (index, words) in ends.items():
                parameter = self._tensor(self.plan.targets[number])
                parameter.copy_(_with(parameter.detach(), index, words))

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the parameters: the step, and what draws the faults."""
        return {"step": self.step, "seed": self.exposure.seed, "ber": self.exposure.ber}

    def set_extra_state(self, state: Any) -> None:
        """Go on where a checkpoint was made; InputError for one of another seed or rate."""
        for key, own in (("seed", self.exposure.seed), ("ber", self.exposure.ber)):
            if state[key] != own:
                raise InputError(f"the checkpoint was trained with {key} {state[key]}, this wrapper has {own}")
        self.step = int(state["step"])


_NAMED = {"weights": "parameters in a float format", "activations": "modules inside it"}


def _refuse(model: Any) -> None:
    """Refuse what cannot be wrapped, and say why."""
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"a {type(model).__qualname__} is no torch.nn.Module")
    for part in model.modules():
        if isinstance(part, torch._dynamo.eval_frame.OptimizedModule):
            raise InputError(
                "the model is under torch.compile: its graph is traced once, while faults are drawn anew outside it at "
                "every step, and its parameters bear other names (_orig_mod.…); wrap the module that was compiled"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(
                "the model is a TorchScript module: its parameters cannot be replaced for a step; wrap the module that "
                "it was made of"
            )
    if any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise InputError("the model has lazy parameters without a shape; call it once with a sample, then wrap it")


def _format(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _weights(model: torch.nn.Module) -> Iterator[Target]:
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        op = type(modules[layer]).__name__
        target = target_of(name, _format(parameter), parameter.shape, "initializer", op, layer)
        if target is not None:
            yield target


def _outputs(model: torch.nn.Module) -> Iterator[Target]:
    """The modules that have none inside."""
    for name, module in model.named_modules():
        if name and not any(module.children()):
            target = target_of(name, "float32", (1,), "activation", type(module).__name__, name)
            assert target is not None
            yield target


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's words as signed integers, in one row."""
    return tensor.reshape(-1).view(_CARRIERS[8 * tensor.element_size()])


def _words(tensor: torch.Tensor, index: Index) -> Words:
    """The words of some elements, out of the tensor's own memory."""
    place = torch.from_numpy(index).to(tensor.device)
    found = _bits(tensor.detach().contiguous())[place].cpu().numpy()
    return np.asarray(found.view(f"u{tensor.element_size()}").astype(np.uint64))


def _with(tensor: torch.Tensor, index: Index, words: Words) -> torch.Tensor:
    """A copy in which some elements hold these words."""
    after = tensor.detach().clone(memory_format=torch.contiguous_format)
    size = tensor.element_size()
    new = torch.from_numpy(words.astype(f"u{size}").view(f"i{size}")).to(tensor.device)
    _bits(after)[torch.from_numpy(index).to(tensor.device)] = new
    return after


def _array(tensor: torch.Tensor) -> Array:
    """A parameter as numpy holds it; bfloat16 and narrower by way of its words."""
    flat = tensor.detach().contiguous().cpu()
    target = target_of("", _format(tensor), tensor.shape, "", "", "")
    assert target is not None
    return np.asarray(_bits(flat).numpy().view(target.word.dtype).reshape(tensor.shape))


class _StraightThrough(torch.autograd.Function):
    """Struck on the way forward; on the way back the gradient passes unchanged, if it is finite."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, index: Any, words: Any, check: Any) -> torch.Tensor:
        """The tensor with these words in it."""
        ctx.check = check
        return tensor.view_as(tensor) if index is None else _with(tensor, index, words)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradient as it comes."""
        if ctx.check is not None:
            ctx.check(gradient)
        return gradient, None, None, None


def _passed(tensor: torch.Tensor, index: Index | None, words: Words | None, check: Any) -> torch.Tensor:
    passed: torch.Tensor = _StraightThrough.apply(tensor, index, words, check)
    return passed
