"""The page of an assessment: the verdict above the page of its campaigns."""

from __future__ import annotations

from pathlib import Path

from onnxfi.analysis.assess import Assessment
from onnxfi.analysis.bit_effects import EFFECT_MEANINGS, EFFECTS
from onnxfi.campaign.report.findings import harm_shares, sure_enough
from onnxfi.campaign.report.html_page import PageHead, PageTable, write_page
from onnxfi.faults.trials import json_value

#: Lines of a table of harm.
_MOST = 12
#: The least share of the harm that has a line.
_LEAST = 0.0005


def write_assessment(found: Assessment, file: Path) -> Path:
    """Write the page of an assessment; OutputError if the extra `report` is not installed."""
    return write_page(found.reports, file, head=_head(found))


def _head(found: Assessment) -> PageHead:
    tables = []
    ranking = found.ranking
    if ranking is not None and ranking.look is not None and ranking.look.ranking is not None:
        metric = ranking.task.metric(ranking.look.rate)
        rows = [
            (row.name, metric.interval(row.interval), str(row.rank), f"{row.trials:,}")
            for row in [row for row in ranking.look.ranking.rows() if row.trials][:_MOST]
        ]
        if rows:
            tables.append(PageTable("Weakest layers", ("Layer", metric.label, "Rank", "Trials"), tuple(rows)))
        for by in ("bit", "layer") if sure_enough(ranking) else ():
            shares = [row for row in harm_shares(ranking, by) if row[1] >= _LEAST][:_MOST]
            cells = tuple((key, f"{100 * share:.1f} %") for key, share in shares)
            tables.append(PageTable(f"Harm by {by}", (by.capitalize(), "Share of the harm"), cells))
    whole = found.census.whole
    effects = tuple(
        (f"{effect}: {meaning}", f"{100 * whole.share(effect):.3f} %")
        for effect, meaning in zip(EFFECTS, EFFECT_MEANINGS, strict=True)
    )
    tables.append(PageTable("Effect of a flip on its word, of all bits", ("Effect", "Share"), effects))
    if found.budget is not None:
        parts = sorted(found.budget.parts, key=lambda part: -part.fit[2])[:_MOST]
        fit = tuple(
            (part.part.layer, part.memory.name if part.memory else "–", f"{part.part.bits:,}", _range(part.fit))
            for part in parts
        )
        tables.append(PageTable("FIT", ("Layer", "Memory", "Bits", "FIT [low, high]"), fit))
    model = Path(found.census.model).stem
    return PageHead(f"Assessment of {model}", found.verdict.sentences, found.verdict.commands, tuple(tables))


def _range(ends: tuple[float, float, float]) -> str:
    low, middle, high = (f"{one:.4g}" if isinstance(json_value(one), float | int) else "–" for one in ends)
    return f"{middle} [{low}, {high}]"
