"""Spiking networks of snntorch for the tests: exported by both exporters of PyTorch, and run by hand with faults.

    pip install torch onnx onnxscript
    pip install --no-deps snntorch==1.0.0
    python scripts/snntorch_models.py

writes tests/graph/spiking/: exported networks, and what plain snntorch answers with and without faults, so that the
core tests need neither. The framework tests make many more and compare them at once.
"""

import argparse
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import snntorch
import torch
from torch import Tensor, nn

KEPT = {"pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes", "namespace"}
STEPS, SAMPLES = 4, 3
FOLDER = Path(__file__).resolve().parent.parent / "tests" / "graph" / "spiking"


@dataclass(frozen=True)
class Kind:
    """The properties of a test network; `named` gives its modules names of the user's own, one inside another."""

    reset: str = "subtract"
    learned: bool = False
    convolution: bool = False
    named: bool = False
    dynamo: bool = True

    def __str__(self) -> str:
        flags = {"learned": self.learned, "conv": self.convolution, "named": self.named}
        parts = [self.reset, *(name for name, on in flags.items() if on)]
        return "_".join([*parts, "dynamo" if self.dynamo else "torchscript"])


class Net(nn.Module):
    """Two spiking layers; puts out the spike counts, and all spikes of each layer ([steps, N, …])."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        settings = {"learn_beta": kind.learned, "learn_threshold": kind.learned, "reset_mechanism": kind.reset}
        first: nn.Module = nn.Conv2d(1, 2, 3) if kind.convolution else nn.Linear(6, 5)
        second = nn.Linear(32 if kind.convolution else 5, 4)
        neurons = [snntorch.Leaky(beta=beta, threshold=limit, **settings) for beta, limit in ((0.9, 0.7), (0.8, 0.6))]
        if kind.named:
            self.retina = nn.Sequential(first, neurons[0])
            self.cortex = nn.ModuleDict({"nerve": second, "cells": neurons[1]})
            self.parts = lambda: (self.retina[0], self.retina[1], self.cortex["nerve"], self.cortex["cells"])
        else:
            self.fc1, self.lif1, self.fc2, self.lif2 = first, neurons[0], second, neurons[1]
            self.parts = lambda: (self.fc1, self.lif1, self.fc2, self.lif2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.run(x, None)

    def run(self, x: Tensor, patch: "Patch | None") -> tuple[Tensor, Tensor, Tensor]:
        """The forward pass; with a patch, a step of the neurons is spelt out so that its values can be changed."""
        fc1, lif1, fc2, lif2 = self.parts()
        states: list[Tensor | None] = [lif1.init_leaky(), lif2.init_leaky()]
        spikes: list[list[Tensor]] = [[], []]
        for t in range(STEPS):
            value = x
            for k, (synapses, neurons) in enumerate(((fc1, lif1), (fc2, lif2))):
                current = synapses(value.flatten(1) if k else value)
                value, states[k] = (
                    step(neurons, current, states[k], patch, k, t) if patch else neurons(current, states[k])
                )
                spikes[k].append(value)
        first, last = (torch.stack(rows) for rows in spikes)
        return last.sum(0), first, last


#: Changes the membrane potential or the spikes ([N, …]) of a layer (0 or 1) at a step.
Patch = Callable[[str, Tensor, int, int], Tensor]


def step(neurons: nn.Module, current: Tensor, before: Tensor, patch: Patch, k: int, t: int) -> tuple[Tensor, Tensor]:
    """A step of snntorch's Leaky in its own calls, a value patched where it is made."""
    neurons.mem = before if before.shape == current.shape else torch.zeros_like(current)
    neurons.reset = neurons.mem_reset(neurons.mem)
    neurons.mem = patch("membrane", neurons.state_function(current), k, t)
    return patch("spike", neurons.fire(neurons.mem), k, t), neurons.mem


def build(kind: Kind, seed: int = 0) -> tuple[Net, Tensor]:
    torch.manual_seed(seed)
    net = Net(kind).eval()
    with torch.no_grad():
        for module in net.parts()[::2]:
            module.weight.mul_(1.5)
            module.bias.add_(0.4)
    x = torch.rand(SAMPLES, 1, 6, 6) if kind.convolution else torch.rand(SAMPLES, 6)
    return net, x * 2


def export(net: Net, x: Tensor, kind: Kind) -> onnx.ModelProto:
    """The network as ONNX, without what its exporter records of this machine."""
    names = ["counts", "spikes1", "spikes2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind.dynamo:
            program = torch.onnx.export(net, (x,), dynamo=True, output_names=names, verbose=False, input_names=["x"])
            model = program.model_proto
        else:
            held = io.BytesIO()
            torch.onnx.export(net, (x,), held, dynamo=False, opset_version=17, input_names=["x"], output_names=names)
            model = onnx.load_from_string(held.getvalue())
    del model.metadata_props[:], model.graph.metadata_props[:]
    for thing in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
    ):
        kept = [entry for entry in thing.metadata_props if entry.key in KEPT and thing in model.graph.node]
        del thing.metadata_props[:]
        thing.metadata_props.extend(kept)
        thing.doc_string = ""
    return model


def flipped(value: Tensor, neuron: int, bit: int) -> Tensor:
    """A bit of one neuron's word flipped, in every sample."""
    words = value.detach().numpy().copy()
    flat = words.reshape(len(words), -1).view(np.uint32)
    flat[:, neuron] ^= np.uint32(1 << bit)
    return torch.from_numpy(words)


@dataclass(frozen=True)
class Case:
    """A fault as the tests write it: a variable of a neuron of a layer, what happens, the first and last step."""

    layer: int
    variable: str
    neuron: int
    fault: str
    bit: int = -1
    first: int = 0
    last: int = STEPS - 1

    @property
    def name(self) -> str:
        return f"{self.variable}{self.layer}_{self.neuron}_{self.fault}_{self.bit}_{self.first}_{self.last}"


CASES = (
    Case(0, "spike", 1, "dead"), Case(1, "spike", 2, "dead"), Case(0, "spike", 3, "saturated"),
    Case(1, "spike", 0, "saturated"), Case(0, "spike", 2, "set:value=0.5"),
    Case(0, "threshold", 1, "scale:factor=0.5"), Case(1, "threshold", 2, "scale:factor=2"),
    Case(0, "threshold", 0, "flip", 22), Case(0, "leak", 3, "scale:factor=0.5"), Case(1, "leak", 1, "flip", 22),
    Case(0, "membrane", 2, "flip", 30, 1, 1), Case(0, "membrane", 2, "flip", 31, 2), Case(1, "membrane", 0, "flip", 24),
    Case(0, "spike", 1, "flip", 29, 2, 2), Case(1, "spike", 1, "flip", 30, 1), Case(0, "spike", 4, "flip", 23),
    Case(0, "synapse", 3, "dead"), Case(1, "synapse", 4, "sign-flip"),
)  # fmt: skip


def patched(net: Net, x: Tensor, case: Case) -> tuple[np.ndarray, ...]:
    """Plain snntorch with the fault put in by hand: counts and spikes."""
    neurons, synapses = net.parts()[1::2][case.layer], net.parts()[::2][case.layer]
    number = {"scale:factor=0.5": lambda v: v * 0.5, "scale:factor=2": lambda v: v * 2, "dead": lambda v: v * 0,
              "sign-flip": lambda v: -v, "saturated": lambda v: v * 0 + 1,
              "set:value=0.5": lambda v: v * 0 + 0.5}  # fmt: skip

    def change(value: Tensor) -> Tensor:
        if case.fault == "flip":
            return flipped(value, case.neuron, case.bit)
        changed = value.detach().clone()
        flat = changed.view(len(changed), -1)
        flat[:, case.neuron] = number[case.fault](flat[:, case.neuron])
        return changed

    def patch(variable: str, value: Tensor, k: int, t: int) -> Tensor:
        faulty = (variable, k) == (case.variable, case.layer) and case.first <= t <= case.last
        return change(value) if faulty else value

    with torch.no_grad():
        kept = {name: getattr(neurons, name) for name in ("threshold", "beta")}
        weight = synapses.weight.clone()
        name = {"threshold": "threshold", "leak": "beta"}.get(case.variable)
        if name:
            shape = (2, 4, 4) if isinstance(synapses, nn.Conv2d) else (synapses.out_features,)
            each = change(torch.as_tensor(kept[name]).detach().expand(1, *shape).clone())[0]
            set_plain(neurons, name, each)
        if case.variable == "synapse":
            synapses.weight.copy_(change(weight.reshape(1, -1)).reshape(weight.shape))
        out = net.run(x, patch)
        for key, value in kept.items():
            set_plain(neurons, key, value)
        synapses.weight.copy_(weight)
    return tuple(value.numpy() for value in out)


def set_plain(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer of another shape."""
    held = module._parameters if name in module._parameters else module._buffers
    held[name] = value


#: Neurons of other kinds than Leaky, or with another order of reset and spike; of 4, between two linear layers.
NEURONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_reset_at_once": lambda: snntorch.Leaky(beta=0.9, reset_delay=False),
    "leaky_zero_at_once": lambda: snntorch.Leaky(beta=0.9, reset_mechanism="zero", reset_delay=False),
    "integrate_and_fire": lambda: snntorch.Leaky(beta=1.0),
    "lapicque": lambda: snntorch.Lapicque(beta=0.9),
    "synaptic": lambda: snntorch.Synaptic(alpha=0.8, beta=0.9),
    "synaptic_zero": lambda: snntorch.Synaptic(alpha=0.8, beta=0.9, reset_mechanism="zero"),
    "alpha": lambda: snntorch.Alpha(alpha=0.8, beta=0.7),
    "alpha_zero": lambda: snntorch.Alpha(alpha=0.8, beta=0.7, reset_mechanism="zero"),
    "rleaky_one_to_one": lambda: snntorch.RLeaky(beta=0.9, V=0.5, all_to_all=False),
    "rleaky_all_to_all": lambda: snntorch.RLeaky(beta=0.9, linear_features=4),
    "rsynaptic_one_to_one": lambda: snntorch.RSynaptic(alpha=0.8, beta=0.9, V=0.5, all_to_all=False),
}


class OneLayer(nn.Module):
    """Neurons of one kind over five steps; `dead` silences one of them by hand, `last` puts out the last step alone."""

    steps = 5

    def __init__(self, name: str, *, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif, self.out = nn.Linear(6, 4), NEURONS[name](), nn.Linear(4, 3)
        self.dead, self.last = -1, last
        with torch.no_grad():
            self.fc.weight.mul_(1.5)
            self.fc.bias.add_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        neurons, current, answers = self.lif, self.fc(x), []
        state = neurons.reset_mem() if hasattr(neurons, "reset_mem") else neurons.init_leaky()
        state = state if isinstance(state, tuple) else (state,)
        for _ in range(self.steps):
            found = [*neurons(current, *state)]
            if self.dead >= 0:
                found[0] = found[0] * (torch.arange(4) != self.dead)
            state = found if isinstance(neurons, (snntorch.RLeaky, snntorch.RSynaptic)) else found[1:]
            answers.append(self.out(found[0]))
        return answers[-1] if self.last else torch.stack(answers).sum(0)


def one_layer(name: str, *, last: bool = False, dynamo: bool = False) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A network of these neurons, and what plain snntorch answers: whole (`y`), and with neuron k dead (`dead/k`)."""
    net = OneLayer(name, last=last).eval()
    x = torch.rand(SAMPLES, 6) * 2
    held = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            model = torch.onnx.export(net, (x,), dynamo=True, verbose=False, input_names=["x"]).model_proto
        else:
            torch.onnx.export(net, (x,), held, dynamo=False, opset_version=17, input_names=["x"])
            model = onnx.load_from_string(held.getvalue())
        said = {"x": x.numpy(), "y": net(x).numpy()}
        for net.dead in range(4):
            said[f"dead/{net.dead}"] = net(x).numpy()
    return model, said


SHIPPED = (
    Kind("subtract"),
    Kind("zero", learned=True, convolution=True),
    Kind("subtract", learned=True, convolution=True, dynamo=False),
    Kind("zero", named=True, dynamo=False),
    Kind("subtract", learned=True, named=True),
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for kind in SHIPPED:
        net, x = build(kind)
        model = export(net, x, kind)
        (FOLDER / f"{kind}.onnx").write_bytes(model.SerializeToString(deterministic=True))
        with torch.no_grad():
            held = {"x": x.numpy()} | dict(
                zip(("counts", "spikes1", "spikes2"), (v.numpy() for v in net(x)), strict=True)
            )
        for case in CASES:
            _, one, two = patched(net, x, case)
            held |= {f"{case.name}/1": one, f"{case.name}/2": two}
        np.savez_compressed(FOLDER / f"{kind}.npz", **held)
        print(
            f"{kind}: {len(model.graph.node)} nodes, spikes {held['spikes1'].sum():.0f} and {held['spikes2'].sum():.0f}"
        )
    for name in ("leaky_reset_at_once", "rleaky_one_to_one", "rsynaptic_one_to_one", "alpha"):
        model, said = one_layer(name)
        (FOLDER / "neurons").mkdir(exist_ok=True)
        (FOLDER / "neurons" / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
        np.savez_compressed(FOLDER / "neurons" / f"{name}.npz", **said)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
