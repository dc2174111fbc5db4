"""Curves and stacked outcomes: spreads are those of numpy, PDF and PGF are made, and names are no TeX."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from reported_campaigns import rows_of, singles, sweep

from onnxfi.campaign.report.curves import accuracy_figure, outcomes_figure
from onnxfi.campaign.report.figures import figures, write_figures
from onnxfi.campaign.report.tables import tex, values_by_rate, write_latex
from onnxfi.errors import InputError, OutputError

TEX = shutil.which("xelatex") or shutil.which("lualatex") or shutil.which("pdflatex")


def test_a_spread_is_that_of_the_trials(here: Path) -> None:
    found = sweep(here)
    rates = {s["stratum"]: f"{s['ber']:g}" for s in found.strata}
    values: dict[str, list[float]] = {}
    for row in rows_of(here / "sweep.db"):
        values.setdefault(rates[row["stratum"]], []).append(row["top1"])
    assert {key: one.tolist() for key, one in values_by_rate(found, found.task.metric("top1")).items()} == values
    for spread, middle in (("sd", np.mean), ("quantiles", np.median), ("interval", np.mean)):
        [axes] = accuracy_figure([found], spread).drawn().axes
        drawn = axes.lines[0].get_ydata()
        assert np.allclose(drawn, [100 * middle(one) for one in values.values()]), spread
    violins = accuracy_figure([found], "violin")
    [axes] = violins.drawn().axes
    assert len(axes.collections) >= 3 and "density" in violins.caption
    with pytest.raises(InputError, match="there is no spread 'box'; give one of interval, sd, quantiles, violin"):
        figures([found], spread="box")


def test_outcomes_are_stacked_to_all_answers(here: Path) -> None:
    found = sweep(here)
    [axes] = outcomes_figure([found]).drawn().axes
    heights = np.array([[bar.get_height() for bar in part] for part in axes.containers])
    assert heights.shape == (3, 3) and np.allclose(heights.sum(axis=0), 100)
    assert [part.get_label() for part in axes.containers] == ["SDC", "DUE", "masked"]


def test_a_silent_curve_shows_what_is_lost_to_due_as_well(here: Path) -> None:
    found = sweep(here)
    silent = dataclasses.replace(found.task, curves=("sdc1",))
    found.__dict__["task"] = silent
    [axes] = accuracy_figure([found]).drawn().axes
    assert "with DUE" in [line.get_label() for line in axes.lines]


@pytest.mark.slow
def test_formats_of_papers(here: Path) -> None:
    found = sweep(here)
    written = write_figures([found], here / "f", kinds=("pdf",))
    assert [path.name for path in written] == ["accuracy.pdf", "outcomes.pdf"]
    assert all(path.read_bytes().startswith(b"%PDF") for path in written)
    again = write_figures([found], here / "g", kinds=("pdf",))
    assert [a.read_bytes() for a in written] == [b.read_bytes() for b in again]
    with pytest.raises(InputError, match="there is no figure format 'eps'; give some of svg, png, pdf, pgf"):
        write_figures([found], here / "h", kinds=("eps",))
    assert not (here / "h").exists()


def test_pgf_without_tex_says_what_to_do(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OutputError, match="PGF needs one of xelatex, lualatex, pdflatex; install TeX Live"):
        accuracy_figure([sweep(here)]).bytes("pgf")


@pytest.mark.slow
@pytest.mark.skipif(TEX is None, reason="no TeX is installed")
def test_tex_prints_figures_and_tables_whatever_the_names(here: Path) -> None:
    label = "a_b$%&#{}^~\\input{secret}.db"
    found = [sweep(here, label), sweep(here, "b.db")]
    write_figures(found, here / "f", kinds=("pgf",))
    write_latex(found[0], here / "f")
    write_latex(singles(here), here / "f")
    inputs = "".join(
        rf"\input{{f/{name}}} \par " for name in ("accuracy.pgf", "outcomes.pgf", "rates.tex", "layers.tex")
    )
    paper = rf"\documentclass{{article}}\usepackage{{pgf,booktabs}}\begin{{document}}{inputs}\end{{document}}"
    (here / "paper.tex").write_text(paper)
    ran = subprocess.run(
        [str(TEX), "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        capture_output=True,
        cwd=here,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-800:]


def test_tables_have_intervals_and_the_deviation_of_the_trials(here: Path) -> None:
    found = sweep(here)
    [file] = write_latex(found, here / "tex")
    values = values_by_rate(found, found.task.metric("top1"))
    lines = [line for line in file.read_text().splitlines() if line.startswith("0.")]
    assert len(lines) == 3
    for line, fold in zip(lines, found.by_rate, strict=True):
        cells = [one.strip() for one in line.removesuffix(r"\\").split("&")]
        assert cells[:2] == [fold.key, "5"] and cells[3] == rf"{100 * values[fold.key].std(ddof=1):.2f} \%"
        top1 = fold.rate("top1")
        assert top1 is not None and cells[2] == tex(found.task.metric("top1").interval(top1))
