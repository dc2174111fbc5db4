"""Regular expressions of selectors: what they find, and what they may take."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from onnxfi.errors import SelectorError
from onnxfi.faults import regular_expressions
from onnxfi.faults.regular_expressions import Expression
from onnxfi.faults.space import NamePattern, Selector, Target
from onnxfi.faults.words import WORDS

NAMES = ["layer1.weight", "a" * 60 + "!"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_expressions, "LONGEST_S", 0.05)


def test_an_expression_that_goes_back_for_ever_is_stopped_and_said() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    for pattern in ("(a|aa)+$", "^(a+)+$", r"(\w+\.?)+="):
        with pytest.raises(SelectorError, match=r"takes more than 0.05 s to match .* use a glob"):
            Expression(pattern).fits(NAMES)
    assert signal.getsignal(signal.SIGVTALRM) is before and signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_what_it_takes_counts_over_all_names() -> None:
    slow = Expression("^(a+)+$")
    with pytest.raises(SelectorError, match="takes more than"):
        for _ in range(1000):
            slow.fits(["a" * 17 + "!"])


def test_what_it_takes_counts_over_all_tensors_that_one_selector_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each takes some milliseconds, and is stopped by none of them; another selector has its own time."""
    monkeypatch.setattr(regular_expressions, "LONGEST_S", 0.2)
    targets = [Target(f"{'a' * 16}{k}!", WORDS["float32"], (1,)) for k in range(1000)]
    for _ in range(2):
        selector = Selector(include=("re:^(a+)+$",))
        with pytest.raises(SelectorError, match="takes more than"):
            selector.space(targets)


def test_the_length_of_an_expression_is_bounded() -> None:
    assert Expression("|".join(["x"] * 400 + ["conv"])).fits(["conv1"])
    with pytest.raises(SelectorError, match="at most 1,000 characters, this one has 1,001"):
        NamePattern("re:" + "x" * 1001)


def test_beside_the_main_thread_its_time_is_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_expressions, "LONGEST_S", 0.2)
    expression, slow = Expression("^conv[0-9]$"), Expression("^(a+)+$")
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(expression.fits, ["fc", "conv1"]).result()
        assert not thread.submit(expression.fits, ["fc"]).result()
        with pytest.raises(SelectorError, match="takes more than"):
            thread.submit(slow.fits, ["a" * 40 + "!"]).result()
        with pytest.raises(SelectorError, match="takes more than"):  # no time is left for another name
            thread.submit(slow.fits, ["a" * 20 + "!"]).result()
