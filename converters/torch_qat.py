"""Quantisation-aware training in PyTorch: a wrapper that rounds weights and inputs of layers as integers would be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from onnxfi.errors import InputError
from onnxfi.faults.space import Selector
from onnxfi.graph.passes.fold_quantize import FoldQuantize

from .training import target_of

if TYPE_CHECKING:
    import onnx

#: Layers whose weights are quantised, and how each is computed.
_LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: functional.linear,
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
#: Share by which a range follows the input of a step, and the smallest scale.
_RATE, _SMALLEST = 0.02, 1e-9


class QuantisationAwareTraining(nn.Module):
    """A module that computes another with the rounding of int8 weights and uint8 activations, in training and after.

    Weights of linear and convolutional layers are rounded as symmetric int8 numbers, with a scale for each output
    channel, the inputs of these layers as uint8 numbers whose range follows what training feeds; biases and outputs
    stay as they are. Gradients pass straight through the rounding to the parameters, which `model` shares: it is
    otherwise not changed. `convert` writes it in QDQ form, with the integers of the weights; of the wrapper's own
    `model` it writes QuantizeLinear and DequantizeLinear around weights that are still float.

    Parameters
    ----------
    model
        The module to train.
    selector
        Selection of the layers by the names of their weights in the exported file (`conv1.weight`), or by layer; None
        selects all.

    Raises
    ------
    InputError
        For a module without such layers, or a layer that cannot be quantised.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> training = QuantisationAwareTraining(model)
    >>> training.layers, training.model[0].weight is model[0].weight
    (('0', '2'), True)
    >>> _ = training(torch.ones(5, 4))
    >>> integers = training.model[0].fake_weight() / training.model[0].weight_scale[:, None]
    >>> bool((integers - integers.round()).abs().max() < 1e-4)
    True
    """

    def __init__(self, model: nn.Module, *, selector: Selector | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got a {type(model).__qualname__}")
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        chosen = dict(_chosen(self.model, selector or Selector()))
        if not chosen:
            kinds = ", ".join(kind.__name__ for kind in _LAYERS)
            raise InputError(f"nothing to quantise: the module has no selected layer of {kinds}")
        #: Paths of the layers whose weights and inputs are rounded.
        self.layers = tuple(chosen)
        for name, layer in chosen.items():
            _refuse(name, layer)
            layer.__class__ = type(f"Quantised{type(layer).__name__}", (_Quantised, type(layer)), {})
            layer.start()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with rounded weights and activations; in training mode the ranges of these follow."""
        return self.model(*args, **kwargs)

    def put_quantisers(self, proto: onnx.ModelProto) -> None:
        """Store the integers of the weights in the file exported from the wrapper's own `model`, in place."""
        FoldQuantize().apply(proto)


class _Quantised(nn.Module):
    """A layer whose weights and input are rounded before it computes."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    low: torch.Tensor
    high: torch.Tensor
    seen: torch.Tensor
    input_scale: torch.Tensor
    input_zero: torch.Tensor
    weight_scale: torch.Tensor

    def start(self) -> None:
        """Add the ranges, as buffers, so that they are saved with the state."""
        for name in ("low", "high"):
            self.register_buffer(name, self.weight.new_zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=self.weight.device))
        self.register_buffer("input_scale", self.weight.new_ones(()))
        self.register_buffer("input_zero", torch.zeros((), dtype=torch.int32, device=self.weight.device))
        self.register_buffer("weight_scale", self.weight.new_ones(len(self.weight)))

    def follow(self) -> None:
        """Let the scale of each output channel follow the weights; the exported file stores it as it is then."""
        with torch.no_grad():
            self.weight_scale.copy_((self.weight.abs().flatten(1).amax(1) / 127).clamp(min=_SMALLEST))

    def train(self, mode: bool = True) -> Any:
        """Change the mode as `torch.nn.Module.train` does, before an export to that of evaluation."""
        self.follow()
        return super().train(mode)

    def observe(self, x: torch.Tensor) -> None:
        """Let the range of the input follow this one; 0 is always inside."""
        with torch.no_grad():
            rate = _RATE if self.seen else 1.0
            self.seen += 1
            self.low += rate * (x.min().clamp(max=0) - self.low)
            self.high += rate * (x.max().clamp(min=0) - self.high)
            self.input_scale.copy_(((self.high - self.low) / 255).clamp(min=_SMALLEST))
            self.input_zero.copy_((-self.low / self.input_scale).round().clamp(0, 255))

    def fake_weight(self) -> torch.Tensor:
        """Return the weights as their integers give them."""
        zeros = torch.zeros(len(self.weight), dtype=torch.int32, device=self.weight.device)
        if torch.compiler.is_exporting():
            return _quantised(self.weight, self.weight_scale, zeros.to(torch.int8), axis=0)
        self.follow()
        return torch.fake_quantize_per_channel_affine(self.weight, self.weight_scale, zeros, 0, -128, 127)

    def fake_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input as its integers give it."""
        if torch.compiler.is_exporting():  # the operators themselves, since torch's do not pass its exporter
            return _quantised(x, self.input_scale, self.input_zero.to(torch.uint8))
        if self.training:
            self.observe(x.detach())
        elif not self.seen:
            raise InputError("the ranges of activations are not known yet: run the wrapper in training mode first")
        return torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero, 0, 255)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the layer."""
        kind = next(kind for kind in _LAYERS if isinstance(self, kind))
        how = {} if kind is nn.Linear else {n: getattr(self, n) for n in ("stride", "padding", "dilation", "groups")}
        out: torch.Tensor = _LAYERS[kind](self.fake_input(x), self.fake_weight(), self.bias, **how)
        return out


def _chosen(model: nn.Module, selector: Selector) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that are selected, by path; one that is in two places once."""
    for name, layer in model.named_modules():
        if type(layer) in _LAYERS:
            path = f"{name}.weight" if name else "weight"
            dtype = str(layer.weight.dtype).removeprefix("torch.")
            target = target_of(path, dtype, layer.weight.shape, "initializer", type(layer).__name__, name)
            if target is not None and selector.selects(target):
                yield name, layer


def _refuse(name: str, layer: nn.Module) -> None:
    """Refuse a layer that cannot be quantised."""
    if layer.weight.dtype != torch.float32:
        raise InputError(f"the weights of {name!r} are {layer.weight.dtype}; quantisation-aware training needs float32")
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise InputError(f"{name!r} pads by {layer.padding_mode!r}, not by zeros; leave it out with a selector")


def _quantised(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, **axis: int) -> torch.Tensor:
    """Return the values behind QuantizeLinear and DequantizeLinear, as an exporter writes them."""
    integers = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, scale, zero), axis, dtype=zero.dtype, shape=x.shape, version=18
    )
    out: torch.Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear", (integers, scale, zero), axis, dtype=x.dtype, shape=x.shape, version=18
    )
    return out
