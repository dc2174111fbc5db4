"""Gradients of the loss by weight, from the PyTorch module that a model was exported from, for `onnxfi attack`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from onnxfi.errors import InputError
from onnxfi.runtime.engine.ports import Array


def weight_gradients(
    module: torch.nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any] = torch.nn.functional.cross_entropy,
) -> dict[str, Array]:
    """Return the mean gradient of the loss for each parameter, by the name that `convert` gives it.

    Parameters
    ----------
    module : torch.nn.Module
        The module; its mode and gradients are as before afterwards.
    batches : iterable of (inputs, labels)
        The attack batch, whole or in parts.
    loss : callable
        The loss of outputs and labels; by default cross entropy of logits.

    Returns
    -------
    dict of str to array
        A gradient for each parameter that has one, in its shape; save it with `numpy.savez` for
        ``onnxfi attack --method gradient --gradients FILE``.

    Raises
    ------
    InputError
        If there is no batch, or no parameter has a gradient.

    Examples
    --------
    >>> module = torch.nn.Linear(2, 2)
    >>> found = weight_gradients(module, [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))])
    >>> {name: values.shape for name, values in found.items()}
    {'weight': (2, 2), 'bias': (2,)}
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    training, samples, sums = module.training, 0, dict[str, Array]()
    module.eval()
    try:
        for inputs, labels in batches:
            found = torch.autograd.grad(loss(module(inputs), labels), list(named.values()), allow_unused=True)
            for name, one in zip(named, found, strict=True):
                if one is not None:
                    part = one.detach().cpu().numpy().astype(np.float64) * len(labels)
                    sums[name] = sums.get(name, 0.0) + part
            samples += len(labels)
    finally:
        module.train(training)
    if not sums:
        raise InputError("no gradient: give at least one batch, and a module with parameters that are trained")
    return {name: total / samples for name, total in sums.items()}
