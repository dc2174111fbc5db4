"""Evidence for a safety case from a store: dangerous and detected shares by layer, coverage, assumptions and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxfi.analysis.environment import Environment
from onnxfi.analysis.fit import fit
from onnxfi.analysis.vulnerability import Vulnerabilities, vulnerabilities
from onnxfi.campaign.report.html_page import command_of
from onnxfi.campaign.report.rates import CampaignRates
from onnxfi.campaign.report.tables import write_table
from onnxfi.campaign.results.store import Store
from onnxfi.errors import InputError
from onnxfi.graph.model.byte_source import printable
from onnxfi.graph.write.output_file import atomic_files, make_folder
from onnxfi.statistics.intervals import Interval

#: The rate of samples with a detected error, of every task.
_DETECTED = "due_samples"
_ASSUMPTIONS = (
    "One bit flip in a stored word at a time, every bit of the population equally likely.",
    "Dangerous undetected is a sample that {label} counts; dangerous detected is a DUE: a value that is not finite, an "
    "error, a crash or a time-out, which a system must act on for it to count as detected.",
    "Everything else is safe, also where an output changes without another answer.",
    "Rates hold for the {samples:,} samples of {data}, and for the runtime in the table below.",
    "Intervals of all layers hold together with {confidence:.4g} %{proof}.",
)
_LIMITS = (
    "Random faults in memory alone: no systematic faults, no logic, no interconnect, no common causes.",
    "Whether an answer that changed is a hazard is decided by the item, not by this file.",
    "No SIL, ASIL, DAL or ECSS category is claimed, and no tool qualification; docs/glossary.md has the words.",
)


@dataclass(frozen=True)
class _Layer:
    """A layer with the shares of samples that a flip in it leaves dangerous undetected, and dangerous detected."""

    layer: str
    bits: int
    trials: int
    undetected: Interval
    detected: Interval

    @property
    def coverage(self) -> tuple[float, float, float]:
        """Diagnostic coverage: detected ÷ dangerous, with its ends; NaN if nothing dangerous was seen."""
        d, u = self.detected, self.undetected
        return _share(d.low, u.high), _share(d.estimate, u.estimate), _share(d.high, u.low)


def _proof(found: CampaignRates) -> str:
    """Return what intervals rest on that have no proof; nothing of those that have one."""
    if found.look is None or found.look.method != "asymptotic":
        return ""
    return ", as far as they were simulated: they rest on estimated variances; --method guaranteed has a proof"


def _share(detected: float, undetected: float) -> float:
    total = detected + undetected
    return detected / total if total > 0 else math.nan


def write_evidence(store: str | Path, folder: str | Path, environment: Environment | None = None) -> list[Path]:
    """Write evidence from a campaign of single bit faults: fmeda.csv, a line for each layer, and evidence.md.

    Parameters
    ----------
    store : str or Path
        The store.
    folder : str or Path
        The folder to write into.
    environment : Environment, optional
        Memories and rates, from which the table has FIT.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError
        For a store of another kind of campaign.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     [file.name for file in write_evidence(folder + "/store.db", folder + "/evidence")]
    ['fmeda.csv', 'evidence.md']
    """
    half = _joint(store)
    undetected = vulnerabilities(store, confidence=half)
    detected = vulnerabilities(store, rate=_DETECTED, confidence=half)
    layers = [
        _Layer(one.layer, one.bits, one.trials, one.pvf, other.pvf)
        for one, other in zip(undetected.parts, detected.parts, strict=True)
    ]
    raw = _raw(store, environment)
    make_folder(Path(folder))
    table, text = Path(folder, "fmeda.csv"), Path(folder, "evidence.md")
    write_table(table, (_row(one, raw.get(one.layer)) for one in layers))
    with atomic_files([text]) as (stream,):
        stream.write(("\n".join(_document(undetected, layers, raw)) + "\n").encode())
    return [table, text]


def _joint(store: str | Path) -> float:
    """Return the confidence of each of the two rates, so that both hold with the campaign's."""
    with Store.open(store) as opened:
        length = opened.get("length")
    if length is None:
        raise InputError(f"{str(store)!r} holds no campaign yet; run it first")
    return 1 - (1 - float(length["confidence"])) / 2


def _raw(store: str | Path, environment: Environment | None) -> dict[str, float]:
    """Return the raw FIT of each layer, where an environment is given."""
    if environment is None:
        return {}
    return {part.part.layer: part.raw[1] * part.residency for part in fit(store, environment).parts}


def _row(one: _Layer, raw: float | None) -> dict[str, Any]:
    low, middle, high = one.coverage
    u, d = one.undetected, one.detected
    row: dict[str, Any] = {
        "element": one.layer, "failure_mode": "bit flip in a stored word", "bits": one.bits, "trials": one.trials,
        "dangerous_undetected": u.estimate, "dangerous_undetected_low": u.low, "dangerous_undetected_high": u.high,
        "dangerous_detected": d.estimate, "dangerous_detected_low": d.low, "dangerous_detected_high": d.high,
        "safe_low": max(0.0, 1 - u.high - d.high), "safe_high": max(0.0, 1 - u.low - d.low),
        "diagnostic_coverage": middle, "diagnostic_coverage_low": low, "diagnostic_coverage_high": high,
    }  # fmt: skip
    if raw is not None:
        row |= {"fit_raw": raw, "fit_undetected_low": raw * u.low, "fit_undetected_high": raw * u.high}
        row |= {"fit_detected_low": raw * d.low, "fit_detected_high": raw * d.high}
    return row


def _document(found: Vulnerabilities, layers: list[_Layer], raw: dict[str, float]) -> Iterator[str]:
    """Yield the lines of the document."""
    golden, one = found.golden.golden, found.golden
    with Store.open(found.store) as opened:
        command = command_of(opened.get("spec"), found.store.name)
    named = {
        "label": found.label, "samples": golden["samples"], "data": printable(golden["data"]),
        "confidence": 100 * one.confidence, "proof": _proof(one),
    }  # fmt: skip
    bits = sum(layer.bits for layer in layers)
    yield f"# Evidence on {printable(Path(found.model).name)}"
    yield ""
    yield f"Single bit flips in {found.kind}: {one.everything.trials:,} trials, {bits:,} bits, {len(layers):,} layers."
    yield ""
    yield "| | low | estimate | high |"
    yield "|---|---|---|---|"
    total = _whole(layers, bits)
    for name, ends in total.items():
        yield f"| {name} | " + " | ".join("-" if math.isnan(end) else f"{100 * end:.4g} %" for end in ends) + " |"
    if raw:
        fits = [(raw.get(x.layer, 0.0), x.undetected) for x in layers]
        low, high = (math.fsum(rate * getattr(i, end) for rate, i in fits) for end in ("low", "high"))
        yield f"| dangerous undetected, FIT | {low:.4g} | - | {high:.4g} |"
    yield ""
    yield "fmeda.csv has a line for each layer."
    for title, lines in (("Assumptions", [text.format(**named) for text in _ASSUMPTIONS]), ("Limits", _LIMITS)):
        yield f"\n## {title}\n"
        yield from (f"- {line}" for line in lines)
    yield "\n## Reproduce\n"
    yield f"    {printable(command) or 'the store does not say how it was made'}"
    yield ""
    yield f"Model SHA-256 {found.digest}"
    for name, value in one.environment.items():
        yield f"- {printable(name)}: {printable(value)}"


def _whole(layers: list[_Layer], bits: int) -> dict[str, tuple[float, float, float]]:
    """Return the shares over all layers, weighted by their bits, and the diagnostic coverage."""
    ends = ("low", "estimate", "high")
    sums = {
        name: [math.fsum(one.bits / bits * getattr(getattr(one, name), end) for one in layers) for end in ends]
        for name in ("undetected", "detected")
    }
    u, d = sums["undetected"], sums["detected"]
    return {
        "dangerous undetected": (u[0], u[1], u[2]), "dangerous detected": (d[0], d[1], d[2]),
        "diagnostic coverage": (_share(d[0], u[2]), _share(d[1], u[1]), _share(d[2], u[0])),
    }  # fmt: skip
