"""The golden run of a campaign: executed twice, and refused where the two runs differ."""

from __future__ import annotations

import hashlib
import time

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.campaign.plan.open_model import served
from onnxfi.errors import CampaignError, EngineError
from onnxfi.graph.dataflow.random_nodes import find_random_node
from onnxfi.runtime.engine.cuda import same_bits_remedy
from onnxfi.runtime.engine.ports import Array, same_bytes
from onnxfi.runtime.engine.protocols import Session
from onnxfi.tasks.evaluation import does_not_run
from onnxfi.tasks.outcomes import GoldenRun


class GoldenRuns:
    """Golden runs of the whole model of an open campaign.

    Parameters
    ----------
    opened : OpenCampaign
        The campaign.
    session : Session, optional
        A session of its model file, which the first run takes.
    """

    def __init__(self, opened: OpenCampaign, session: Session | None = None) -> None:
        self.opened = opened
        self._session = session
        self._first_batch: Array | None = None

    def run(self, kept: Array | None = None, *, again: bool = True) -> tuple[GoldenRun, float]:
        """Return the golden run, and the seconds that one run takes with all that a trial needs.

        Parameters
        ----------
        kept : array, optional
            Scores that stand for the run of the model file if the second run agrees.
        again : bool
            Whether the model runs once more as every trial opens it; otherwise the workers do that.

        Raises
        ------
        CampaignError
            If the two runs differ, or the model draws random numbers.
        """
        opened, begun = self.opened, time.perf_counter()
        if not again:
            found = self._kept(opened.golden(self._of_file()))
            return found, opened.opened_s + time.perf_counter() - begun
        first = self._of_file() if kept is None else kept  # and then it is closed: one session at a time
        begun = time.perf_counter()
        session = opened.session()
        second = self._scores(session)
        golden_s = time.perf_counter() - begun
        self._check_steady(session, second)
        if kept is not None and not same_bytes(first, second):
            first = self._of_file()
        self._session = None
        if not same_bytes(first, second):
            raise CampaignError(
                f"two golden runs differ, so no effect of a fault could be distinguished from chance; "
                f"{same_bits_remedy(opened.campaign.engine.open().arithmetic)}"
            )
        return self._kept(opened.golden(first)), golden_s

    def run_again(self) -> GoldenRun:
        """Return one golden run of the model as every trial opens it."""
        return self._kept(self.opened.golden(self._scores(self.opened.session())))

    def first_batch(self) -> Array:
        """Return the golden scores of the first batch."""
        if self._first_batch is None:
            self._first_batch = self.opened.scores(self.opened.session(), batches=1)
        return self._first_batch

    def keep(self, golden: GoldenRun) -> None:
        """Keep the scores of the first batch of a golden run."""
        if golden.scores.ndim and len(golden.scores) == self.opened.data.samples:
            self._first_batch = golden.scores[: self.opened.size]

    def _kept(self, golden: GoldenRun) -> GoldenRun:
        self.keep(golden)
        return golden

    def _of_file(self) -> Array:
        """Return the scores of the model's own file."""
        session, self._session = self._session, None
        if session is None:
            session = self.opened.campaign.engine.open().prepare(served(self.opened.model))
        scores = self._scores(session)
        self._check_steady(session, scores)
        return scores

    def _scores(self, session: Session) -> Array:
        """Return the golden scores from a session."""
        try:
            return self.opened.scores(session)
        except EngineError as error:
            raise does_not_run(error, self.opened.data, self.opened.size) from None

    def _check_steady(self, session: Session, scores: Array) -> None:
        """Refuse a model that draws random numbers, or whose first batch differs when it runs again."""
        outputs = () if self.opened.output is None else (self.opened.output,)
        if (node := find_random_node(self.opened.model.index, outputs)) is not None:
            raise CampaignError(
                f"the model draws random numbers in {node}, so no effect of a fault could be distinguished from "
                f"chance: fault-free runs "
                f"must give the same each time; export the model for inference, or put a stored tensor there"
            )
        again = self.opened.scores(session, batches=1).reshape(-1)
        if not same_bytes(again, scores.reshape(-1)[: len(again)]):
            raise CampaignError(
                f"two golden runs differ, in one session, so no effect of a fault could be distinguished from chance: "
                f"an operator draws random numbers or keeps a state; otherwise "
                f"{same_bits_remedy(self.opened.campaign.engine.open().arithmetic)}"
            )


def digest(golden: GoldenRun) -> str:
    """Return the SHA-256 of golden scores, which runs that belong together must share."""
    return hashlib.sha256(golden.scores.tobytes()).hexdigest()
