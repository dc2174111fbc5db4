"""Exposure: how long activations are in memory, and faults drawn where upsets hit, not evenly over all bits."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

from onnxfi.analysis.environment import Environment
from onnxfi.campaign.plan.plan import Plan
from onnxfi.campaign.run.runner import planned
from onnxfi.campaign.spec.campaign import Campaign
from onnxfi.campaign.spec.designs import SingleFaults
from onnxfi.errors import SpecError
from onnxfi.graph.dataflow.activation_targets import activations
from onnxfi.graph.model.loading import Model


def resident_shares(model: Model) -> dict[str, float]:
    """Return for each layer the share of the schedule in which its outputs are in memory, weighted by their bits.

    Nodes run in file order, and each counts as equally long. An output is in memory from the node that makes it to the
    last that reads it, and to the end where it is an output of the model; an input of the model from the start. What is
    made inside a loop or a branch is in memory as long as the node that holds the graph runs.

    >>> from onnxfi.graph.model.loading import load
    >>> shares = resident_shares(load("models/fashion_cnn.onnx"))
    >>> 0 < min(shares.values()) <= max(shares.values()) <= 1
    True
    """
    scope = model.index.main
    nodes = [node for node in scope.nodes if node.op != "Constant"]
    place, end = {node: k for k, node in enumerate(nodes)}, len(nodes)
    outputs = set(scope.outputs)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in activations(model):
        target, live = one.target, 1
        value = scope.values.get(target.id)
        if value is not None:
            first = 0 if value.producer is None else place.get(value.producer, 0)
            last = max((place.get(node, first) for node in value.consumers), default=first)
            live = (end if value in outputs else last + 1) - first
        bits = max(1, target.size) * target.word.bits
        sums[target.layer][0] += bits * live / max(1, end)
        sums[target.layer][1] += bits
    return {layer: lived / bits for layer, (lived, bits) in sums.items()}


def residencies(model: Model, kind: str, environment: Environment) -> dict[str, float]:
    """Return the share of time in which what a layer holds is in memory; 1 where a layer is not named.

    Weights always are; activations in a part of each inference, while one runs.
    """
    if kind == "weights":
        return {}
    busy = environment.busy
    if busy is None:
        raise SpecError(
            "activations are in memory while an inference runs; add to the environment "
            "inference: {rate: 30 /s, latency: 12 ms}"
        )
    return {layer: share * busy for layer, share in resident_shares(model).items()}


def plan_by_exposure(campaign: Campaign, environment: Environment) -> Plan:
    """Return a plan whose trials go to layers by their exposure: bits · λ · residency · (1 − coverage).

    Inside a layer sites are drawn evenly. The plan is written as a fault list and replayed; `fit` takes its store.

    Parameters
    ----------
    campaign : Campaign
        Single faults, as many as its `trials`, in weights or in activations.
    environment : Environment
        Memories and their upset rates; layers that lie in none of them get no trial.

    Raises
    ------
    SpecError
        For another design, faults in weights and activations at once, and an environment that holds no layer.

    Examples
    --------
    >>> from onnxfi.analysis.environment import load_environment
    >>> campaign = Campaign("models/fashion_cnn.onnx", single=True, trials=1000)
    >>> made = plan_by_exposure(campaign, load_environment("examples/environment.yaml"))
    >>> [(stratum.label, stratum.trials) for stratum in made.strata]
    [('conv1', 2), ('conv2', 45), ('fc1', 946), ('fc2', 7)]
    """
    design = campaign.design
    if not isinstance(design, SingleFaults) or design.trials is None:
        raise SpecError("faults are drawn by exposure one in a trial: give --single and --trials", "trials")
    scope = design.draw.scope
    if scope.includes_activations and "weights" in scope.target:
        raise SpecError("exposure is of weights or of activations; plan each by itself", "target")
    kind = "activations" if scope.includes_activations else "weights"
    made = planned(campaign.with_fields(trials=None, margin=0.5, per="layer"))
    shares = residencies(made.model, kind, environment)
    exposed = []
    for stratum in made.strata:
        memory = environment.memory_of(stratum.layer or "", kind)
        rate = 0.0 if memory is None else memory.upsets[1] * (1 - memory.coverage)
        exposed.append(stratum.population * rate * shares.get(stratum.layer or "", 1.0))
    if not math.fsum(exposed):
        raise SpecError(f"no memory of the environment holds the {kind} of this network; add them to its holds")
    least = [int(weight > 0) for weight in exposed]  # no layer without an estimate, where there are trials for that
    if sum(least) > design.trials:
        least = [0] * len(exposed)
    counts = _apportioned(exposed, design.trials - sum(least))
    strata = tuple(
        replace(stratum, trials=min(first + n, stratum.population))
        for stratum, first, n in zip(made.strata, least, counts, strict=True)
    )
    return replace(made, campaign=campaign, strata=strata)


def _apportioned(weights: list[float], whole: int) -> list[int]:
    """Divide a number by weights, by the largest remainders.

    >>> _apportioned([1.0, 1.0, 0.0, 2.0], 10)
    [3, 2, 0, 5]
    """
    total = math.fsum(weights)
    exact = [whole * weight / total for weight in weights]
    found = [math.floor(one) for one in exact]
    for k in sorted(range(len(exact)), key=lambda k: (found[k] - exact[k], k))[: whole - sum(found)]:
        found[k] += 1
    return found
