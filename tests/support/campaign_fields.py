"""Every field of a campaign with an example, and strategies of whole campaigns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from onnxfi.campaign.spec.designs import DESIGNS, FaultMixPart
from onnxfi.campaign.spec.flat_fields import build
from onnxfi.campaign.spec.settings import DUE
from onnxfi.faults.registry import parse_fault

_HARDWARE = Path(__file__).parents[2] / "examples" / "hardware"


def _map(name: str) -> str:
    """A fault map of the examples, as its spec writes it."""
    return str(parse_fault(f"fault-map:file={_HARDWARE / name}.json"))


SWEEP: dict[str, Any] = {"ber": (1e-6,)}
SINGLE: dict[str, Any] = {"single": True, "margin": 0.25}
ADAPTIVE: dict[str, Any] = {"adaptive": True}
KEYS = {design.key for design in DESIGNS}
PARTS = tuple(
    build(FaultMixPart, fields)
    for fields in (
        {"fault": "stuck-at-1", "count": 2, "include": ("fc1", "=w2"), "bits": "sign"},
        {"ber": 1e-5, "dtype": ("float32",)},
    )
)
#: For every field: a value that is not its default, the flags that say it, and fields that go with it.
EXAMPLES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "model": ("net.onnx", [], SWEEP),
    "data": ("d.npz", ["--data", "d.npz"], SWEEP),
    "ber": ((1e-7, 1e-6, 1e-5), ["--ber", "1e-7:1e-5"], {}),
    "repeat": (3, ["--repeat", "3"], SWEEP),
    "single": (True, ["--single"], {"margin": 0.25}),
    "trials": (7, ["--trials", "7"], {"single": True}),
    "margin": (0.125, ["--margin", "0.125"], {"single": True}),
    "confidence": (0.95, ["--confidence", "0.95"], SWEEP),
    "per": ("layer-bit", ["--per", "layer-bit"], SINGLE),
    "adaptive": (True, ["--adaptive"], {}),
    "relative_margin": (0.125, ["--relative-margin", "0.125"], ADAPTIVE),
    "rate": ("any_sdc1", ["--rate", "any"], ADAPTIVE),
    "method": ("simple", ["--method", "simple"], ADAPTIVE),
    "rank": ("tensor", ["--rank", "tensor"], ADAPTIVE),
    "top": (3, ["--top", "3"], {**ADAPTIVE, "rank": "layer"}),
    "exhaustive": (True, ["--exhaustive"], {}),
    "outcomes": ("class", ["--outcomes", "class"], {"exhaustive": True}),
    "faults": ("list.jsonl", ["--faults", "list.jsonl"], {}),
    "mix": (
        PARTS,
        [
            *("--mix", "fault: stuck-at-1, count: 2, include: [fc1, =w2], bits: sign"),
            *("--mix", "ber: 1e-5, dtype: float32"),
        ],
        {},
    ),
    "fault": ("burst:k=3", ["--fault", "burst:k=3"], SWEEP),
    "include": (("fc1", "re:^w"), ["--include", "fc1", "--include", "re:^w"], SWEEP),
    "exclude": (("=b1",), ["--exclude", "=b1"], SWEEP),
    "op": (("MatMul",), ["--op", "MatMul"], SWEEP),
    "dtype": (("float32", "int8"), ["--dtype", "float32", "--dtype", "int8"], SWEEP),
    "bits": ("30", ["--bits", "30"], SWEEP),
    "elements": ("1:30", ["--elements", "1:30"], SWEEP),
    "role": (("weight", "scale"), ["--role", "weight", "--role", "scale"], SWEEP),
    "per_sample": ((0.25, 0.5), ["--per-sample", "0.25,0.5"], {"target": ("inputs",)}),
    "voltage": ((0.8, 0.76), ["--voltage", "0.8,0.76"], {"fault": _map("sram_undervolting")}),
    "temperature": ((45.0, 85.0), ["--temperature", "45,85"], {"fault": _map("dram_retention")}),
    "target": (("weights", "inputs"), ["--target", "weights,inputs"], SWEEP),
    "persistence": ("permanent", ["--persistence", "permanent"], {**SWEEP, "target": ("activations",)}),
    "all": (True, ["--all"], {**SWEEP, "target": ("activations",)}),
    "seed": ((1 << 64) - 1, ["--seed", str((1 << 64) - 1)], SWEEP),
    "added": ((1e-6,), ["--added", "1e-6"], {"ber": (1e-7, 1e-6)}),
    "dim": (("T=512",), ["--dim", "T=512"], SWEEP),
    "labels": ("l.json", ["--labels", "l.json"], SWEEP),
    "preprocess": ("p.yaml", ["--preprocess", "p.yaml"], SWEEP),
    "samples": (5, ["--samples", "5"], SWEEP),
    "batch": (4, ["--batch", "4"], SWEEP),
    "batch_axis": (1, ["--batch-axis", "1"], SWEEP),
    "output": ("123", ["--output", "123"], SWEEP),
    "task": ("deviation", ["--task", "deviation"], SWEEP),
    "metric": (("own:HALF",), ["--metric", "own:HALF"], SWEEP),
    "scores": ("counts", ["--scores", "counts"], SWEEP),
    "tolerance": (1e-3, ["--tolerance", "1e-3"], SWEEP),
    "due": (("crash", "nonfinite"), ["--due", "crash,nonfinite"], SWEEP),
    "engine": ("reference", ["--engine", "reference"], SWEEP),
    "provider": ("cpu", ["--provider", "cpu"], SWEEP),
    "provider_option": (("device_id=1",), ["--provider-option", "device_id=1"], {**SWEEP, "provider": "cuda"}),
    "threads": (2, ["--threads", "2"], SWEEP),
    "optimization": ("off", ["--optimization", "off"], SWEEP),
    "route": ("full", ["--route", "full"], SWEEP),
    "custom_ops": (("ops.so",), ["--custom-ops", "ops.so"], SWEEP),
    "stage": ("reader", ["--stage", "reader"], SWEEP),
    "allow_links": (True, ["--allow-links"], SWEEP),
    "expose": (True, ["--expose"], SWEEP),
    "memory_code": ("secded", ["--memory-code", "secded"], SWEEP),
    "scrub_interval": (0.01, ["--scrub-interval", "0.01"], {**SWEEP, "memory_code": "secded"}),
    "neurons": ("n.yaml", ["--neurons", "n.yaml"], {**SWEEP, "expose": True}),
    "time_axis": (1, ["--time-axis", "1"], SWEEP),
    "layers": ("tensors", ["--layers", "tensors"], SWEEP),
}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
lists = st.lists(texts, max_size=3).map(tuple)
rates = st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=4, unique=True).map(lambda r: tuple(sorted(r)))
parts = st.fixed_dictionaries(
    {"fault": st.sampled_from(["flip", "burst:k=2"]), "count": st.integers(0, 9), "include": lists, "bits": texts}
)
designs = st.one_of(
    st.fixed_dictionaries({"ber": rates, "repeat": st.integers(1, 1000), "include": lists, "bits": texts}),
    st.fixed_dictionaries({"single": st.just(True), "trials": st.integers(1, 10**12), "elements": texts}),
    st.fixed_dictionaries({"mix": st.lists(parts, min_size=1, max_size=3).map(tuple)}),
    st.fixed_dictionaries({"adaptive": st.just(True), "method": st.sampled_from(["simple", "guaranteed"])}),
    st.fixed_dictionaries({"exhaustive": st.just(True), "seed": st.integers(0, 9)}),
    st.fixed_dictionaries({"faults": texts.filter(bool)}),
)
others = st.fixed_dictionaries(
    {"model": texts, "data": st.none() | texts.filter(lambda t: t != "synthetic"), "output": st.none() | texts},
    optional={
        "confidence": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "tolerance": st.floats(0, 1e300),
        "due": st.lists(st.sampled_from(DUE), unique=True).map(tuple),
    },
)
