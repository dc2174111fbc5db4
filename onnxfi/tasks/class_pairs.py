"""Faulty answers of which the classes alone are known, since most of them were proved without a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxfi.tasks.answers import AnswerPair, Flags


@dataclass(frozen=True, kw_only=True)
class ClassPair(AnswerPair):
    """Golden answers beside faulty classes, as metrics of class outcomes read them.

    Attributes
    ----------
    top : int array [N]
        The faulty top-1 of each sample, -1 if there is none.
    other_top, detected, nonfinite : bool array [N]
        Samples whose top-1 is another, that are DUE, and that hold a NaN or an infinity.
    proved : bool array [N]
        Samples whose class was proved.
    """

    top: NDArray[np.int64] = field(repr=False)
    other_top: Flags = field(repr=False)
    detected: Flags = field(repr=False)
    nonfinite: Flags = field(repr=False)
    proved: Flags = field(repr=False)
