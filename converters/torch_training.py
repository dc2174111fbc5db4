"""Fault-aware training in PyTorch: a wrapper that injects faults into the parameters or activations of a module."""

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
from onnxfi.runtime.engine.ports import Array

from .training import FaultSettings, InjectionPlan, TrainingFaults, nonfinite_loss, resolve_faults, target_of

#: Signed integer types by width: torch has no kernels for most unsigned ones.
_INTEGERS = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


class FaultAwareTraining(TrainingFaults, torch.nn.Module):
    """A module that injects faults into the weights or activations of another while it trains.

    Every forward pass in training mode is a step: each selected bit flips with probability `ber` (or is changed as
    `fault` says), drawn from `seed` and the number of the step. Gradients pass straight through to the parameters,
    which stay fault-free; `model` itself is not changed, and is what is exported. In evaluation mode there are no
    faults.

    Parameters
    ----------
    model
        The module to train.
    ber
        Probability of a fault at each selected site, per bit or, for fault models of whole words, per word.
    selector
        Selection of parameters by the names that they have in the exported file (`conv1.weight`), or of modules by
        their paths where `target` is "activations"; None selects all.
    fault
        Fault model.
    target
        "weights" or "activations".
    seed
        Seed of every draw.
    from_epoch
        First epoch with faults, counted from 0; the training loop calls `begin_epoch`.
    clip
        Clip faulty numbers to ±clip; None does not.
    count
        Number of faulty sites at every step, instead of `ber`: in the selected weights together, or of neurons in each
        selected module or layer, faulty in every sample.
    permanent
        Keep the faults of the first step in every step.

    Raises
    ------
    SelectorError
        If nothing is selected.
    InputError
        For a module that cannot be wrapped, or a setting out of range.
    NonFiniteLossError
        In the backward pass, where a gradient is not finite, before any parameter changes.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> training = FaultAwareTraining(model, ber=0.01, selector=Selector(include=("0.weight",), bits="0-29"), seed=1)
    >>> _ = training(torch.ones(5, 4))
    >>> training.step, [str(fault.site) for fault in training.last_faults[0]]
    (1, ['0.weight[0]:2', '0.weight[3]:0', '0.weight[9]:11'])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        ber: float | None = None,
        selector: Selector | None = None,
        fault: str | FaultModel = "flip",
        target: str = "weights",
        seed: int = 0,
        from_epoch: int = 0,
        clip: float | None = None,
        count: int | None = None,
        permanent: bool = False,
    ) -> None:
        _refuse(model)
        super().__init__()
        settings = FaultSettings(ber, selector or Selector(), fault, seed, target, from_epoch, clip, count, permanent)
        self.model = model
        targets = _weights(model) if target == "weights" else _outputs(model)
        self.plan = InjectionPlan(settings, tuple(targets), _DESCRIPTIONS[target])
        #: Training steps so far; it is saved with the state, so that resumed training continues the draws.
        self.step = 0
        #: The faults of the last step with their words, over the faulty targets.
        self.last_faults: tuple[Faults, ...] = ()
        self._epoch: int | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Note that an epoch begins, counted from 0."""
        self._epoch = epoch

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, with faults in training mode."""
        if not self.training:
            return self.model(*args, **kwargs)
        self.step += 1
        self.last_faults = ()
        if not self.settings.begun(self._epoch):
            return self.model(*args, **kwargs)
        if self.settings.target == "weights":
            faults, final_words = resolve_faults(
                self.plan.faults(self.settings.trial(self.step)), self._read, self.settings.clip
            )
            self.last_faults = (faults,)
            return self._run_faulty(final_words, args, kwargs)
        with self._output_hooks():
            return self._run_faulty({}, args, kwargs)

    def _run_faulty(self, final_words: Mapping[int, tuple[Index, Words]], args: Any, kwargs: Any) -> Any:
        """Run the model with faulty tensors in place of its parameters, which stay unchanged."""
        numbers = {target.id: k for k, target in enumerate(self.plan.targets)}
        faulty = {}
        for name, parameter in self.model.named_parameters():
            index, words = final_words.get(numbers.get(name, -1), (None, None))
            faulty[id(parameter)] = _straight_through(parameter, index, words, self._check(name, self.step))
        # Under every name of a tied parameter, but once for a module that is used in two places: torch's own tying
        # would leave such a module with the faulty tensors.
        replaced = {
            f"{path}.{name}" if path else name: faulty[id(parameter)]
            for path, module in self.model.named_modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }
        return torch.func.functional_call(self.model, replaced, args, kwargs, tie_weights=False)

    def _check(self, name: str, step: int) -> Callable[[torch.Tensor], None]:
        def check(gradient: torch.Tensor) -> None:
            if not bool(torch.isfinite(gradient).all()):
                raise nonfinite_loss(self.settings, step, name, self.last_faults)

        return check

    @contextlib.contextmanager
    def _output_hooks(self) -> Iterator[None]:
        """Inject faults into the outputs of the selected modules; a module that is used twice draws twice."""
        numbers = {target.id: k for k, target in enumerate(self.plan.targets)}
        counts: dict[str, int] = {}
        handles = []

        def hook(name: str) -> Callable[..., Any]:
            def on_output(_: Any, __: Any, output: Any) -> Any:
                return torch.utils._pytree.tree_map_only(torch.Tensor, inject, output)

            def inject(value: torch.Tensor) -> torch.Tensor:
                use = counts.setdefault(name, 0)
                counts[name] += 1
                return self._faulty_output(value, name, numbers[name] + use * len(numbers))

            return on_output

        modules = dict(self.model.named_modules())
        try:
            for target in self.plan.space.targets:
                handles.append(modules[target.id].register_forward_hook(hook(target.id)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _faulty_output(self, value: torch.Tensor, name: str, number: int) -> torch.Tensor:
        """Return an activation with its faults; one that is not selected, or no float, is returned as it is."""
        whole = value if value.dim() else value.reshape(1)
        known = next(t for t in self.plan.targets if t.id == name)
        target = target_of(name, _format(value), whole.shape[1:], "activation", known.op, known.layer)
        if target is None or not self.settings.selector.selects(target) or not whole.numel():
            return value
        faults = self.settings.draw_activations(target, len(whole), number, self.step)
        faults, final_words = resolve_faults(faults, lambda _, index: _words(whole, index), self.settings.clip)
        self.last_faults = (*self.last_faults, faults)
        index, words = final_words.get(0, (None, None))
        return _straight_through(whole, index, words, None).reshape(value.shape)

    # ----------------------------------------------------------------------------------------- weights of the model

    def _weights(self) -> dict[str, Any]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def _restore(self, weights: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                value.copy_(weights[name])

    def _arrays(self) -> dict[str, Array]:
        return {target.id: _array(self._tensor(target)) for target in self.plan.targets}

    def _tensor(self, target: Target) -> torch.Tensor:
        layer, _, name = target.id.rpartition(".")
        tensor: torch.Tensor = getattr(self.model.get_submodule(layer), name)  # a faulty one, where wrappers nest
        return tensor

    def _read(self, number: int, index: Index) -> Words:
        return _words(self._tensor(self.plan.targets[number]).detach(), index)

    def _write(self, final_words: Mapping[int, tuple[Index, Words]]) -> None:
        with torch.no_grad():
            for number, (index, words) in final_words.items():
                parameter = self._tensor(self.plan.targets[number])
                parameter.copy_(_replace_words(parameter.detach(), index, words))

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the parameters: the step, and the seed and rate of the draws."""
        return {"step": self.step, "seed": self.settings.seed, "ber": self.settings.ber, "count": self.settings.count}

    def set_extra_state(self, state: Any) -> None:
        """Continue from a checkpoint; raise InputError for one of another seed or rate."""
        for key in ("seed", "ber", "count"):
            own = getattr(self.settings, key)
            if state.get(key) != own:
                raise InputError(f"the checkpoint was trained with {key} {state[key]}, this wrapper has {own}")
        self.step = int(state["step"])


_DESCRIPTIONS = {"weights": "parameters in a float format", "activations": "modules inside it"}


def _refuse(model: Any) -> None:
    """Refuse a model that cannot be wrapped."""
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got a {type(model).__qualname__}")
    for part in model.modules():
        if isinstance(part, torch._dynamo.eval_frame.OptimizedModule):
            raise InputError(
                "the model is under torch.compile: its graph is traced once, while faults are drawn outside it at "
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
    """Yield the modules without submodules."""
    for name, module in model.named_modules():
        if name and not any(module.children()):
            target = target_of(name, "float32", (1,), "activation", type(module).__name__, name)
            assert target is not None
            yield target


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the words of a contiguous tensor as a flat tensor of signed integers."""
    return tensor.reshape(-1).view(_INTEGERS[8 * tensor.element_size()])


def _words(tensor: torch.Tensor, index: Index) -> Words:
    """Return the words of some elements, read from the tensor's memory."""
    place = torch.from_numpy(index).to(tensor.device)
    found = _as_integers(tensor.detach().contiguous())[place].cpu().numpy()
    return np.asarray(found.view(f"u{tensor.element_size()}").astype(np.uint64))


def _replace_words(tensor: torch.Tensor, index: Index, words: Words) -> torch.Tensor:
    """Return a copy in which some elements hold these words."""
    after = tensor.detach().clone(memory_format=torch.contiguous_format)
    size = tensor.element_size()
    new = torch.from_numpy(words.astype(f"u{size}").view(f"i{size}")).to(tensor.device)
    _as_integers(after)[torch.from_numpy(index).to(tensor.device)] = new
    return after


def _array(tensor: torch.Tensor) -> Array:
    """Return a parameter as a numpy array; bfloat16 and narrower formats by their words."""
    flat = tensor.detach().contiguous().cpu()
    target = target_of("", _format(tensor), tensor.shape, "", "", "")
    assert target is not None
    return np.asarray(_as_integers(flat).numpy().view(target.word.dtype).reshape(tensor.shape))


class _StraightThrough(torch.autograd.Function):
    """Faulty words in the forward pass; the gradient, if it is finite, passes unchanged in the backward pass."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, index: Any, words: Any, check: Any) -> torch.Tensor:
        """Return the tensor with these words in it."""
        ctx.check = check
        return tensor.view_as(tensor) if index is None else _replace_words(tensor, index, words)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Return the gradient unchanged."""
        if ctx.check is not None:
            ctx.check(gradient)
        return gradient, None, None, None


def _straight_through(tensor: torch.Tensor, index: Index | None, words: Words | None, check: Any) -> torch.Tensor:
    output: torch.Tensor = _StraightThrough.apply(tensor, index, words, check)
    return output
