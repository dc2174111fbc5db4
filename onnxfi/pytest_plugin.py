"""The pytest plugin: a resilience budget as a test. onnx, onnxruntime and numpy are loaded once a test uses it.

    def test_resilience(onnxfi_check):
        assert onnxfi_check("model.onnx", "budget.yaml")

See docs/how-to/ci.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from onnxfi.campaign.gate.budget import Budget
    from onnxfi.campaign.gate.check import CheckResult, Finding

#: Characters that pytest shows of a value in a failing assertion.
_SHOWN = 230


@dataclass(frozen=True, repr=False)
class Outcome:
    """The outcome of a check: true if the verdict is pass. A failing assertion shows its repr."""

    checked: CheckResult = field(repr=False)

    @property
    def verdict(self) -> str:
        """`pass`, `fail` or `not decided`."""
        return self.checked.verdict

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, one for each limit."""
        return self.checked.findings

    def document(self) -> dict[str, Any]:
        """As plain values, as `onnxfi check --json` prints them."""
        return self.checked.document()

    def __bool__(self) -> bool:
        return self.verdict == "pass"

    def __repr__(self) -> str:
        worst = next((str(f) for f in self.findings if f.verdict == self.verdict), "")
        text = f"onnxfi check {self.checked.summary()}" + ("" if self else f": {worst}")
        return f"<{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'}>"

    def table(self) -> str:
        """Return a line for each limit, and the conditions."""
        lines = [f"{self.checked.model}: {self.checked.summary()}", *map(str, self.findings)]
        return "\n".join([*lines, self.checked.conditions()])


Check = Callable[..., Outcome]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that override fields of budgets."""
    group = parser.getgroup("onnxfi", "checks of ONNX models against a resilience budget")
    group.addoption("--onnxfi-seed", type=int, metavar="N", help="seed of every check, instead of the budget's")
    group.addoption("--onnxfi-time", type=float, metavar="S", help="time box in seconds, instead of the budget's")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "onnxfi(**defaults): checks a model against a budget; keywords are defaults of onnxfi_check"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the fixture, so that -m can choose them."""
    for item in items:
        if "onnxfi_check" in getattr(item, "fixturenames", ()) and item.get_closest_marker("onnxfi") is None:
            item.add_marker("onnxfi")


@pytest.fixture
def onnxfi_check(request: pytest.FixtureRequest) -> Check:
    """Check a model against a budget: `assert onnxfi_check("model.onnx", "budget.yaml")`."""
    marks = list(request.node.iter_markers("onnxfi"))
    defaults = {name: value for mark in reversed(marks) for name, value in mark.kwargs.items()}

    def checked(model: str | Path, budget: str | Path | Budget, **given: Any) -> Outcome:
        """Run the budget's campaign on the model.

        `baseline`, `store` and `workers` are those of `onnxfi.campaign.gate.check.check`; `allow_code` lets the budget
        run code that it names, as `onnxfi_check(…, allow_code=True)`; `data`, `samples`, `batch` and every other field
        of a campaign override the budget's.
        """
        from onnxfi.errors import OnnxfiError

        wrong = ""
        try:
            outcome = _run(request.config, model, budget, {**defaults, **given})
        except OnnxfiError as error:
            wrong = str(error)
        if wrong:  # outside the handler, so that only one line is shown
            pytest.fail(f"onnxfi: error: {wrong}", pytrace=False)
        request.node.add_report_section("call", "onnxfi", outcome.table())
        return outcome

    checked.__qualname__ = "onnxfi_check"  # as a failing assertion shows it
    return checked


def _run(config: pytest.Config, model: str | Path, budget: str | Path | Budget, given: dict[str, Any]) -> Outcome:
    from onnxfi.campaign.gate.budget import Budget, load_budget
    from onnxfi.campaign.gate.check import check

    own = {name: given.pop(name) for name in ("baseline", "store", "workers") if name in given}
    seed, time_s = config.getoption("--onnxfi-seed"), config.getoption("--onnxfi-time")
    given |= {} if seed is None else {"seed": seed}
    allowed = given.get("allow_code", False)
    wanted = budget if isinstance(budget, Budget) else load_budget(budget, allow_code=allowed, instead=given)
    return Outcome(check(model, wanted.with_fields(given, time_s=time_s), **own))
