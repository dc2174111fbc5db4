"""The report of a campaign: its rates with their intervals, and every form in which they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxfi.campaign.report.figures import figures, write_figures
from onnxfi.campaign.report.findings import turned_into_due
from onnxfi.campaign.report.html_page import write_page
from onnxfi.campaign.report.rates import CampaignRates, Fold
from onnxfi.campaign.report.tables import html_table, swept_over, write_csv, write_latex
from onnxfi.campaign.report.validity_notes import notes
from onnxfi.errors import InputError, OutputError, closest
from onnxfi.graph.model.byte_source import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows of a table in the short form of a report.
_MOST_ROWS = 20


@dataclass(frozen=True, repr=False)
class Report(CampaignRates):
    """The results of a campaign, summed by rate, layer and bit.

    Attributes
    ----------
    store : Path
        The store that was read.
    campaign : dict
        The campaign's identity: all that determines its results.
    golden : dict
        The metrics, task and data of the golden run.
    environment : dict
        The versions and the machine that the campaign ran on.
    confidence : float
        Confidence of each interval.
    planned, errors : int
        Number of planned trials, and of trials on which the harness failed.
    everything : Fold
        The rates of all trials; of an adaptive campaign, of the trials of complete rounds.
    by_rate, by_layer, by_bit : tuple of Fold
        The rates by bit error rate, by layer, and by bit position (by bit field in an adaptive campaign).
    samples : Interval, optional
        Interval of the SDC-1 rate over all samples of this kind: the uncertainty that the choice of samples adds.
    others : Interval, optional
        Prediction interval of the SDC-1 rate on as many other samples; None if the samples run do not determine it.
    strata : tuple of dict
        The strata that the trials were drawn from.
    look : Look, optional
        The estimate of an adaptive campaign after its last complete round.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=20, ber=1e-4, repeat=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     found = report(folder + "/store.db")
    >>> [fold.key for fold in found.by_rate], found.everything.outcomes
    (['0.0001'], {'masked': 0, 'sdc': 3, 'due': 0})
    """

    def __repr__(self) -> str:
        columns, rows = self._rows()
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        lines = ("  " + "  ".join(map(str.rjust, cells, widths)) for cells in (columns, *rows))
        return "\n".join([*self._head(), *lines, *self._more()])

    def _repr_html_(self) -> str:
        lines = "".join(
            f"<p>{escape(line)}</p>" for line in (*self._head(), *self._more(), *turned_into_due(self), *notes(self))
        )
        return f"<div>{lines}{html_table(*self._rows())}</div>"

    def _head(self) -> Iterator[str]:
        """Yield the lines above the rates: the trials, the data and the golden run."""
        yield printable(
            f"{self.store}: {self.everything.trials:,} of {self.planned:,} trials, {self.golden['data']}, "
            f"intervals at {100 * self.confidence:.4g} %"
        )
        measured = self.golden["metrics"]
        named = [self.task.metric(name) for name in self.task.golden_names if name in measured]
        if named:
            yield "golden run: " + ", ".join(f"{m.label} {m.text(float(measured[m.name]))}" for m in named)

    def _rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the columns and the first rows of the short table: by rate in a sweep, else of all trials."""
        folds = self.by_rate[:_MOST_ROWS] if len(self.by_rate) > 1 else (self.everything,)
        shown = self.task.table({rate.name for fold in folds for rate in fold.rates})
        key = swept_over(self) if len(self.by_rate) > 1 else "trials"

        def cells(fold: Fold) -> Iterator[str]:
            yield printable(fold.key) if len(self.by_rate) > 1 else f"{fold.trials:,}"
            for metric in shown:
                interval = fold.rate(metric.name)
                yield "-" if interval is None else metric.interval(interval)

        return (key, *(metric.label for metric in shown)), [tuple(cells(fold)) for fold in folds]

    def _more(self) -> Iterator[str]:
        if len(self.by_rate) > _MOST_ROWS:
            yield f"  and {len(self.by_rate) - _MOST_ROWS} rates more; .by_rate has all"

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with one row per trial; OutputError if pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise OutputError("pandas is not installed; pip install pandas, or use .csv(FOLDER)") from None
        return pandas.DataFrame(list(self.details()))

    def figure(self, name: str = "", *, spread: str = "interval") -> Figure:
        """Return a figure of matplotlib.

        Parameters
        ----------
        name : str
            ``accuracy``, ``outcomes``, ``layers``, ``bits`` or ``map``; by default the first there is.
        spread : str
            What a curve shows beside its line: ``interval``, ``sd``, ``quantiles`` or ``violin``.

        Raises
        ------
        InputError
            For another name, or a figure that these trials do not give, with the reason.
        OutputError
            If matplotlib is not installed.
        """
        known = {one.name: one for one in figures([self], spread=spread)}
        if name and name not in known:
            raise InputError(f"there is no figure {name!r}{closest(name, known)}; give one of {', '.join(known)}")
        found = known[name] if name else next((one for one in known.values() if one.draw), None)
        if found is None or found.draw is None:
            raise InputError("these trials give no figure" if found is None else found.caption)
        return found.drawn()

    plot = figure

    def html(
        self, file: str | Path, *, elements: Sequence[str] = (), answers: int = 0, allow_code: bool = False
    ) -> Path:
        """Write the report as one page that works offline, and return it.

        `elements` are targets to map by element. Of so many trials that changed most (`answers`) the model runs once
        more, and the page shows the answers before and after.
        """
        return write_page([self], file, elements, answers=answers, allow_code=allow_code)

    def figures(
        self, folder: str | Path, *, elements: Sequence[str] = (), kinds: Sequence[str] = ("svg", "png"),
        spread: str = "interval",
    ) -> list[Path]:  # fmt: skip
        """Write every figure into a folder, and return the paths.

        `elements` as for `html`; `kinds` are of svg, png, pdf and pgf; `spread` as for `figure`.
        """
        return write_figures([self], folder, elements, kinds=kinds, spread=spread)

    def latex(self, folder: str | Path) -> list[Path]:
        """Write the tables as LaTeX into a folder, for the package booktabs, and return the paths."""
        return write_latex(self, folder)

    def csv(self, folder: str | Path, *, by_model: bool = False) -> list[Path]:
        """Write the tables as CSV files into a folder, and return the paths; `by_model` names them by the model."""
        return write_csv(self, folder, by_model=by_model)


def report(store: str | Path, *, confidence: float | None = None) -> Report:
    """Fold the results of a store; an unfinished campaign is reported as far as it is.

    Parameters
    ----------
    store : str or Path
        The store of a campaign.
    confidence : float, optional
        The confidence of every interval; by default that of the campaign.

    Returns
    -------
    Report
        Every metric of the task, over all trials and by rate, layer and bit, with intervals.

    Raises
    ------
    StoreError
        For a file that is not a store, or a store without a result.

    Examples
    --------
    >>> import tempfile
    >>> from onnxfi.campaign.run.runner import run
    >>> from onnxfi.campaign.spec.campaign import Campaign
    >>> campaign = Campaign("models/fashion_cnn.onnx", "models/fashion_test.npz", samples=50, single=True, trials=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = list(run(campaign, folder + "/store.db"))
    ...     found = report(folder + "/store.db")
    >>> found.everything.trials, found.everything.rate("sdc1").high < 0.5
    (20, True)
    """
    return Report.read(store, confidence)
