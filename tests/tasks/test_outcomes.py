"""Outcomes against a slow judge that looks at one number after the other, written from the definitions."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxfi.campaign.spec.settings import DUE
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.tasks.kinds.classification import CLASSES, CLASSIFICATION
from onnxfi.tasks.kinds.deviation import DEVIATION
from onnxfi.tasks.outcomes import GoldenRun, Judgement, failed, judge, unpacked

CORNERS = [0.0, -0.0, 0.5, -0.5, 1.0, 2.0, 0.25, 3.0, 1e-3, 6e4, math.nan, math.inf, -math.inf]
NEAR = [0.0, 1e-3, 0.03, 0.1, 0.25, 1.0]


def kinds_of(golden: np.ndarray) -> str:
    rows = golden.astype(np.float64).tolist()
    if all(min(r) >= 0 and abs(sum(r) - 1) <= 0.01 for r in rows):
        return "probabilities"
    return "counts" if all(0 <= v <= 1024 and v == math.floor(v) for r in rows for v in r) else "logits"


def top(row: list[float]) -> int:
    """The first of the highest; none where there is a NaN."""
    if any(math.isnan(v) for v in row):
        return -1
    return max(range(len(row)), key=lambda k: (row[k], -k))


def chance_of(row: list[float], k: int, kind: str) -> float:
    if kind != "logits":
        return row[k]
    high = max(row)
    weights = [1.0 if v == high else math.exp(v - high) for v in row]
    return weights[k] / sum(weights)


def slow(
    golden: np.ndarray, faulty: np.ndarray, labels: list[int] | None, kind: str, tolerance: float, due: bool
) -> Any:
    """Outcome, shares of samples and the samples of SDC-1, number by number."""
    kind = kinds_of(golden) if kind == "auto" else kind
    found: dict[str, list[bool]] = {
        name: [] for name in ("masked", "sdc", "due", "other", "silent", "critical", *CLASSES)
    }
    for i in range(len(golden)):
        g, f = golden[i].astype(np.float64).tolist(), faulty[i].astype(np.float64).tolist()
        differ = [golden[i, k].tobytes() != faulty[i, k].tobytes() for k in range(len(g))]
        moved = [differ[k] and not abs(f[k] - g[k]) <= tolerance for k in range(len(g))]
        visible = due and any(differ[k] and not math.isfinite(f[k]) for k in range(len(f)))
        other = any(differ) and (top(g) != top(f) or top(g) < 0)
        masked = not any(moved) and not other
        found["masked"].append(masked)
        found["due"].append(visible)
        found["sdc"].append(not masked and not visible)
        found["other"].append(other)
        found["silent"].append(other and not visible)
        if labels is not None:
            found["critical"].append(other and not visible and top(g) == labels[i])
        name = "class_due" if visible else "class_sdc_1" if other else "class_fully_masked" if masked else None
        if name is None:
            before, after = chance_of(g, top(g), kind), chance_of(f, top(g), kind)
            shift = abs(after - before) / abs(before) if before else math.inf
            name = next((n for n, edge in zip(CLASSES[2:5], (0.05, 0.1, 0.2), strict=True) if shift < edge), CLASSES[5])
            within = kind != "logits" and abs(after - before) <= tolerance
            name = "class_fully_masked" if before == after or within else name
        for one in CLASSES:
            found[one].append(one == name)
    outcome = "due" if any(found["due"]) else "sdc" if any(found["sdc"]) else "masked"
    return outcome, {name: sum(flags) / len(golden) for name, flags in found.items() if flags}, found["silent"]


numbers = st.sampled_from(CORNERS) | st.floats(-4, 4, width=16)


@st.composite
def runs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Golden scores, and faulty ones in which some numbers are others."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]))
    values = draw(st.lists(numbers, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    golden = np.array(values, np.float64).reshape(shape)
    if draw(st.booleans()):  # probabilities
        weights = np.abs(np.nan_to_num(golden, posinf=9, neginf=9)) + 0.5
        golden = weights / weights.sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        golden = golden.astype(dtype)
        faulty = golden.copy()
        for at in draw(st.lists(st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1)), max_size=4)):
            near = draw(st.sampled_from(NEAR)) * draw(st.sampled_from([1, -1]))
            number = draw(numbers) if draw(st.booleans()) else float(golden[at]) * (1 + near)
            faulty[at] = np.array(number).astype(dtype)
    return golden, faulty


@given(
    runs(),
    st.sampled_from(["auto", "logits", "counts"]),
    st.sampled_from([0.0, 0.0, 1e-3, 0.25]),
    st.booleans(),
    st.booleans(),
)
def test_the_judge_and_the_slow_judge_agree(
    pair: tuple[np.ndarray, np.ndarray], kind: str, tolerance: float, due: bool, labelled: bool
) -> None:
    golden, faulty = pair
    labels = np.arange(len(golden)) % golden.shape[1] if labelled else None
    causes = ("nonfinite",) if due else ()
    found = judge(GoldenRun.of(golden, labels, CLASSIFICATION, kind, tolerance, causes), faulty)
    outcome, shares, silent = slow(golden, faulty, None if labels is None else labels.tolist(), kind, tolerance, due)
    assert (found.outcome, found.cause) == (outcome, "nonfinite" if outcome == "due" else None)
    said = {name.removesuffix("_samples"): value for name, value in found.metrics.items()}
    said |= {"other": said["top1_changed"], "silent": said["sdc1"]}
    assert {name: said[name] for name in shares} == pytest.approx(shares)
    assert sum(said[name] for name in CLASSES) == pytest.approx(1)
    assert said["sdc1"] == said["class_sdc_1"] and said["due"] == said["class_due"]
    assert said["sdc5"] <= said["sdc1"] <= min(said["sdc"], said["top1_changed"])
    assert said["class_fully_masked"] >= said["masked"]
    if labelled:
        assert said["critical"] <= said["sdc1"]
        before = np.mean([top(row) == label for row, label in zip(golden.astype(float).tolist(), labels, strict=True)])
        assert before - said["top1"] <= said["critical"] + said["due"] + 1e-12
    assert found.changed is not None and unpacked(found.changed, len(golden)).tolist() == silent
    json.dumps(found.metrics, allow_nan=False)


# By hand


def verdict(golden: list[list[float]], faulty: list[list[float]], **how: Any) -> Judgement:
    kept = {"task": CLASSIFICATION, "kind": "auto", "tolerance": 0.0, "due": DUE, "labels": None, **how}
    return judge(GoldenRun.of(np.array(golden, np.float32), **kept), np.array(faulty, np.float32))


def classes(found: Judgement) -> dict[str, float]:
    return {name.removeprefix("class_"): found.metrics[name] for name in CLASSES if found.metrics[name]}


@pytest.mark.parametrize(
    ("faulty", "outcome", "name"),
    [
        ([0.5, 0.3, 0.2], "masked", "fully_masked"),
        ([0.5, 0.2, 0.3], "sdc", "fully_masked"),
        ([0.3, 0.5, 0.2], "sdc", "sdc_1"),
        ([0.49, 0.31, 0.2], "sdc", "sdc_0_5"),
        ([0.51, 0.29, 0.2], "sdc", "sdc_0_5"),
        ([0.46, 0.34, 0.2], "sdc", "sdc_5_10"),
        ([0.55, 0.25, 0.2], "sdc", "sdc_10_20"),
        ([0.42, 0.38, 0.2], "sdc", "sdc_10_20"),
        ([0.7, 0.1, 0.2], "sdc", "sdc_20"),
        ([math.nan, 0.3, 0.2], "due", "due"),
        ([0.5, math.nan, 0.2], "due", "due"),
        ([0.5, 0.3, -math.inf], "due", "due"),
        ([math.inf, 0.3, 0.2], "due", "due"),
        ([0.5, 0.5, 0.2], "sdc", "fully_masked"),
        ([0.3, 0.3, 0.2], "sdc", "sdc_20"),
    ],
)
def test_classes_of_probabilities(faulty: list[float], outcome: str, name: str) -> None:
    found = verdict([[0.5, 0.3, 0.2]], [faulty])
    assert (found.outcome, classes(found)) == (outcome, {name: 1.0})


@pytest.mark.parametrize(
    ("count", "name"),
    [(20, "fully_masked"), (19.5, "sdc_0_5"), (19, "sdc_5_10"), (21, "sdc_5_10"), (18, "sdc_10_20"), (16, "sdc_20")],
)
def test_edges_of_the_shifts_belong_to_the_graver_class(count: float, name: str) -> None:
    assert classes(verdict([[20, 3, 1]], [[count, 3, 2]], kind="counts")) == {name: 1.0}


def test_the_bits_count_not_the_numbers() -> None:
    assert verdict([[0.0, 1.0]], [[-0.0, 1.0]]).outcome == "sdc"
    assert verdict([[0.0, 1.0]], [[-0.0, 1.0]], tolerance=1e-9).outcome == "masked"
    assert verdict([[math.nan, 1.0]], [[math.nan, 1.0]]).outcome == "masked"


def test_what_golden_has_already_is_no_due() -> None:
    held = [[-math.inf, 1.0, 2.0]]
    assert verdict(held, [[-math.inf, 1.5, 2.0]]).outcome == "sdc"
    assert classes(verdict(held, [[-math.inf, 1.5, 2.0]])) == {"sdc_10_20": 1.0}
    assert verdict(held, [[math.inf, 1.0, 2.0]]).outcome == "due"
    assert verdict(held, [[math.nan, 1.0, 2.0]], due=("crash",)).outcome == "sdc"


def test_the_gravest_sample_is_the_trials() -> None:
    golden = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    found = verdict(golden, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [math.nan, 0]], labels=np.array([0, 0, 0, 1]))
    assert (found.outcome, found.cause) == ("due", "nonfinite")
    assert classes(found) == {"fully_masked": 0.5, "sdc_1": 0.25, "due": 0.25}
    shares = {k: found.metrics[k] for k in ("masked_samples", "sdc_samples", "due_samples", "top1", "critical", "sdc1")}
    assert shares == {"masked_samples": 0.5, "sdc_samples": 0.25, "due_samples": 0.25} | {
        "top1": 0.5, "critical": 0.25, "sdc1": 0.25,
    }  # fmt: skip
    assert found.metrics["top1_changed"] == 0.5


def test_tolerance_widens_what_is_unchanged_but_not_which_is_first() -> None:
    found = verdict([[0.50, 0.49]], [[0.49, 0.50]], tolerance=0.1, kind="probabilities")
    assert (found.outcome, classes(found), found.metrics["sdc1"]) == ("sdc", {"sdc_1": 1.0}, 1.0)
    assert classes(verdict([[0.6, 0.4]], [[0.59, 0.3]], tolerance=0.05)) == {"fully_masked": 1.0}


def test_other_outputs_than_a_classifiers() -> None:
    golden = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    faulty = golden.copy()
    faulty[1, 2, 3] = 9
    found = judge(GoldenRun.of(golden, None, DEVIATION, "auto", 0.0, DUE), faulty)
    assert (found.outcome, found.changed) == ("sdc", None)
    assert found.metrics["masked_samples"] == 0.5 and not set(CLASSES) & set(found.metrics)
    whole = judge(GoldenRun.of(golden.astype(np.int8), None, DEVIATION, "auto", 0.0, DUE), faulty.astype(np.int8))
    assert whole.metrics["sdc_samples"] == 0.5
    near = judge(GoldenRun.of(golden.astype(np.int8), None, DEVIATION, "auto", 20.0, DUE), faulty.astype(np.int8))
    assert near.outcome == "masked"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("number", "due", "outcome"), [(1.0, DUE, "sdc"), (math.nan, DUE, "due"), (math.nan, (), "sdc")]
)
def test_outputs_of_another_shape_have_changed_for_every_sample(
    labelled: bool, number: float, due: tuple[str, ...], outcome: str
) -> None:
    labels = np.array([0, 1]) if labelled else None
    golden = GoldenRun.of(np.array([[2, 1], [2, 1]], np.float32), labels, CLASSIFICATION, "auto", 0.0, due)
    found = judge(golden, np.full((2, 3), number, np.float32))
    assert found.outcome == outcome
    assert sum(found.metrics[name] for name in CLASSES) == 1
    assert (found.metrics["masked_samples"], found.metrics["sdc1"]) == (0, outcome == "sdc")
    assert found.metrics["top1_changed"] == 1
    boxes = GoldenRun.of(np.zeros((5, 4), np.float32), None, DEVIATION, "auto", 0.0, due)
    assert judge(boxes, np.full((7, 4), number, np.float32)).outcome == outcome


@pytest.mark.parametrize("cause", ["error", "timeout", "crash", "memory"])
def test_a_trial_without_an_answer(cause: str) -> None:
    scores, labels = np.array([[2, 1], [2, 1], [1, 2]], np.float32), np.array([0, 1, 1])
    found = failed(GoldenRun.of(scores, labels, CLASSIFICATION, "auto", 0.0, DUE), cause)
    assert (found.outcome, found.cause) == ("due", cause)
    assert classes(found) == {"due": 1.0}
    said = {k: found.metrics[k] for k in ("due_samples", "top1", "top5", "critical", "sdc1", "changed")}
    assert said == {"due_samples": 1.0, "top1": 0.0, "top5": 0.0, "critical": 0.0, "sdc1": 0.0, "changed": 1.0}
    assert (found.metrics["top1_changed"], unpacked(found.changed or b"", 3).tolist()) == (1.0, [False] * 3)
    silent = failed(GoldenRun.of(scores, labels, CLASSIFICATION, "auto", 0.0, ("nonfinite",)), cause)
    assert (silent.outcome, silent.cause, classes(silent)) == ("sdc", cause, {"sdc_1": 1.0})
    assert (silent.metrics["sdc1"], silent.metrics["critical"]) == (1.0, 2 / 3)
    unlabelled = failed(GoldenRun.of(scores, None, CLASSIFICATION, "auto", 0.0, DUE), cause)
    assert not {"top1", "top5", "critical"} & set(unlabelled.metrics)
    assert failed(GoldenRun.of(scores, None, DEVIATION, "auto", 0.0, DUE), cause).changed is None


def test_every_judgement_has_the_metrics_of_golden() -> None:
    scores, labels = np.array([[2, 1], [2, 1]], np.float32), np.array([0, 1])
    golden = GoldenRun.of(scores, labels, CLASSIFICATION, "auto", 0.0, DUE)
    names = set(judge(golden, scores).metrics)
    assert set(judge(golden, scores[:, ::-1].copy()).metrics) == names
    lost = failed(golden, "crash").metrics
    assert set(lost) == names
    assert (lost["max_abs"], lost["rel_l2"], lost["cosine"]) == ("Infinity", "Infinity", 0.0)


def test_the_bits_of_changed_samples_lie_first_sample_highest() -> None:
    golden = GoldenRun.of(np.array([[1, 0]] * 11, np.float32), None, CLASSIFICATION, "auto", 0.0, DUE)
    faulty = golden.scores.copy()
    faulty[[0, 9]] = [0, 1]
    packed = judge(golden, faulty).changed
    assert packed is not None
    import zlib

    assert zlib.decompress(packed) == bytes([0b10000000, 0b01000000])
    assert np.flatnonzero(unpacked(packed, 11)).tolist() == [0, 9]


def test_an_infinite_score_whose_class_is_still_right_is_not_critical() -> None:
    labels = np.array([0, 0, 0])
    faulty = [[math.inf, 0.0], [0.0, math.inf], [0.0, 1.0]]
    found = verdict([[1.0, 0.0]] * 3, faulty, labels=labels).metrics
    assert (found["top1"], found["top1_changed"], found["sdc1"], found["critical"]) == pytest.approx(
        (1 / 3, 2 / 3, 1 / 3, 1 / 3)
    )
    undetected = verdict([[1.0, 0.0]] * 3, faulty, labels=labels, due=("crash",)).metrics
    assert (undetected["sdc1"], undetected["critical"], undetected["class_due"]) == (2 / 3, 2 / 3, 0.0)


def test_fully_masked_looks_at_what_the_shifts_look_at() -> None:
    """The highest score is the same and its probability is not; or the other way round."""
    near, far = [2.0, 2.0 - 1e-3, -9.0], [2.0, 0.0, -9.0]
    assert classes(verdict([near], [far])) == {"sdc_20": 1.0}  # from 0.50 to 0.88
    assert classes(verdict([[2.5, 0.5]], [[3.5, 1.5]])) == {"fully_masked": 1.0}
    assert verdict([[2.5, 0.5]], [[3.5, 1.5]]).outcome == "sdc"
    assert classes(verdict([[8.0, 3.0]], [[8.0, 4.0]])) == {"fully_masked": 1.0}  # spike counts


def test_spike_counts_are_recognised_by_golden_scores() -> None:
    golden = GoldenRun.of(np.array([[8, 0, 3], [2, 5, 0]], np.float32), None, CLASSIFICATION, "auto", 0.0, DUE)
    assert golden.kind == "counts"
    found = judge(golden, np.array([[7, 0, 3], [2, 4.5, 0]], np.float32))
    assert classes(found) == {"sdc_10_20": 1.0}
    asked = GoldenRun.of(golden.scores, None, CLASSIFICATION, "logits", 0.0, DUE)
    assert classes(judge(asked, np.array([[7, 0, 3], [2, 4.5, 0]], np.float32))) == {"sdc_0_5": 1.0}


@pytest.mark.parametrize("classes", [3, 50_000])
def test_what_is_found_by_blocks_is_found_row_by_row(classes: int) -> None:
    """As many classes as a block holds, and more; some samples changed and others not."""
    rng = np.random.default_rng(classes)
    golden = rng.normal(size=(6, classes)).astype(np.float32)
    faulty = golden.copy()
    faulty[1, :2] += 0.5
    faulty[2, classes // 2] = 99.0
    faulty[4, -1] = math.nan
    labels = rng.integers(0, classes, 6)
    whole = judge(GoldenRun.of(golden, labels, CLASSIFICATION, "auto", 0.0, DUE), faulty).metrics
    rows = [
        judge(GoldenRun.of(golden[[k]], labels[[k]], CLASSIFICATION, "logits", 0.0, DUE), faulty[[k]]).metrics
        for k in range(6)
    ]
    for name in whole.keys() - {"max_abs", "rel_l2", "cosine"}:
        assert whole[name] == pytest.approx(sum(row[name] for row in rows) / 6), name


@given(st.lists(st.lists(st.sampled_from(CORNERS), min_size=3, max_size=3), min_size=1, max_size=6), st.booleans())
def test_outputs_without_a_changed_bit_are_judged_once_and_as_all_others(rows: list[list[float]], due: bool) -> None:
    scores = np.array(rows, np.float32)
    golden = GoldenRun.of(scores, None, CLASSIFICATION, "logits", 0.0, DUE if due else ())
    first, again = judge(golden, scores.copy()), judge(golden, scores.copy())
    assert first is again and first.outcome == "masked"
    assert first == judge(golden, (Outputs(np.arange(len(rows)), {"other name": scores}),))
