"""The golden run of a campaign: executed twice, and refused where the two runs differ."""

from __future__ import annotations

import hashlib
import json
import time

from onnxfi.campaign.execute.open_campaign import OpenCampaign
from onnxfi.errors import CampaignError, EngineError
from onnxfi.graph.dataflow.random_nodes import find_random_node
from onnxfi.runtime.data.sample_outputs import Outputs, same_runs
from onnxfi.runtime.engine.cuda import same_bits_remedy
from onnxfi.runtime.engine.ports import words_of
from onnxfi.runtime.engine.protocols import Session
from onnxfi.runtime.generation.generation_engine import GenerationSession
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
        self._known: tuple[Outputs, ...] = ()

    def run(self, kept: tuple[Outputs, ...] | None = None, *, again: bool = True) -> tuple[GoldenRun, float]:
        """Return the golden run, and the seconds that one run takes with all that a trial needs.

        Parameters
        ----------
        kept : tuple of Outputs, optional
            Outputs that stand for the run of the model file if the second run agrees.
        again : bool
            Whether the model runs once more as every trial opens it; otherwise the workers do that, and
            `check_steady` is still to be called.

        Raises
        ------
        CampaignError
            If the two runs differ, or the model draws random numbers.
        """
        opened, begun = self.opened, time.perf_counter()
        self._refuse_random()
        opened.begin()
        if not again:
            found = self._kept(opened.golden(self._of_file(keep=True)))
            return found, opened.opened_s + time.perf_counter() - begun
        first = self._of_file() if kept is None else kept  # and then it is closed: one session at a time
        begun = time.perf_counter()
        session = opened.session()
        second = self._run(session)
        golden_s = time.perf_counter() - begun
        self._check_steady(session, second[:1])
        if kept is not None and not same_runs(first, second):
            first = self._of_file()
        self._session = None
        if not same_runs(first, second):
            raise CampaignError(
                f"two golden runs differ, so no effect of a fault could be distinguished from chance; "
                f"{same_bits_remedy(opened.campaign.engine.open().arithmetic)}"
            )
        begun = time.perf_counter()
        found = self._kept(opened.golden(first))
        later_s = 0.0 if opened.front is None else time.perf_counter() - begun
        return found, golden_s + later_s

    def run_again(self) -> GoldenRun:
        """Return one golden run of the model as every trial opens it."""
        self.opened.begin()
        return self._kept(self.opened.golden(self._run(self.opened.session())))

    def first_batches(self, batches: int = 1) -> tuple[Outputs, ...]:
        """Return the golden outputs of the first batches."""
        if len(self._known) < batches:
            self._known = self.opened.run(self.opened.session(), batches=batches)
        return self._known[:batches]

    def keep(self, golden: GoldenRun) -> None:
        """Keep the outputs of a golden run."""
        self._known = golden.run

    def _kept(self, golden: GoldenRun) -> GoldenRun:
        self.keep(golden)
        return golden

    def check_steady(self) -> None:
        """Run the first batch once more in the session of the golden run, and close it; CampaignError if it differs."""
        session, self._session = self._session, None
        if session is not None and self._known:
            self._check_steady(session, self._known[:1])

    def _of_file(self, *, keep: bool = False) -> tuple[Outputs, ...]:
        """Return the outputs of the model's own file; the session is kept for `check_steady`, or it is checked now."""
        session, self._session = self._session, None
        if session is None:
            session = self.opened.engine.prepare(self.opened.model.stored_form)
        run = self._run(session)
        if keep:
            self._session = session
        else:
            self._check_steady(session, run[:1])
        return run

    def _run(self, session: Session) -> tuple[Outputs, ...]:
        """Return the golden outputs from a session."""
        try:
            return self.opened.run(session)
        except EngineError as error:
            alone = isinstance(session, GenerationSession)  # which runs one sample at a time
            raise does_not_run(error, self.opened.data, 1 if alone else self.opened.size) from None

    def _refuse_random(self) -> None:
        """Refuse a model that draws random numbers."""
        if (node := find_random_node(self.opened.model.index, self.opened.names)) is not None:
            raise CampaignError(
                f"the model draws random numbers in {node}, so no effect of a fault could be distinguished from "
                f"chance: fault-free runs "
                f"must give the same each time; export the model for inference, or put a stored tensor there"
            )

    def _check_steady(self, session: Session, first: tuple[Outputs, ...]) -> None:
        """Refuse a model whose first batch differs when it runs again."""
        if not same_runs(self.opened.run(session, batches=1), first):
            raise CampaignError(
                f"two golden runs differ, in one session, so no effect of a fault could be distinguished from chance: "
                f"an operator draws random numbers or keeps a state; otherwise "
                f"{same_bits_remedy(self.opened.campaign.engine.open().arithmetic)}"
            )


def digest(golden: GoldenRun) -> str:
    """Return the SHA-256 of golden outputs, which runs that belong together must share."""
    hashed = hashlib.sha256()
    for outputs in golden.run if golden.later is None else (*golden.run, *golden.answered):
        for name, array in outputs.arrays.items():
            if len(outputs.arrays) > 1:
                hashed.update(f"{name!r} {array.shape}".encode())
            hashed.update(json.dumps(array.tolist()).encode() if array.dtype.kind == "O" else words_of(array).tobytes())
    return hashed.hexdigest()
