"""Faults in training without a framework: what is drawn, what it leaves, and where a file's faults lie in parameters."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from onnxfi import Selector, load, sample
from onnxfi.converters.training import (
    FaultSettings,
    InjectionPlan,
    map_faults,
    read_words,
    replace_words,
    resolve_faults,
    target_of,
)
from onnxfi.errors import FaultListError, InputError, SelectorError
from onnxfi.faults.models import Flip
from onnxfi.faults.registry import fault_models, parse_fault
from onnxfi.faults.space import Target
from onnxfi.faults.trials import Sampler, draw_faults
from onnxfi.faults.words import WORDS

MODEL = Path(__file__).parents[2] / "models" / "fashion_cnn.onnx"
TARGETS = (Target("a.weight", WORDS["float32"], (40, 5)), Target("b.weight", WORDS["bfloat16"], (7,)))


def parameters() -> tuple[tuple[Target, ...], dict[str, np.ndarray]]:
    """The stored tensors of the model as a framework of channels-last layout would hold them, in another order."""
    model = load(MODEL)
    values = {
        f"net/{t.id}": t.word.values(model.words(t, np.arange(t.size))).reshape(t.shape).T.copy()
        for t in reversed(model.targets)
        if t.word.is_float
    }
    made = [target_of(name, "float32", value.shape, "initializer", "", "") for name, value in values.items()]
    return tuple(t for t in made if t is not None), values


def test_a_step_draws_the_faults_of_inject_in_a_file_of_the_same_tensors() -> None:
    model = load(MODEL)
    selector = Selector(include=("weight",), bits="0-29")
    plan = InjectionPlan(FaultSettings(1e-4, selector, seed=7), tuple(t for t in model.targets if not t.structural))
    for trial in (1, 2, 900):
        expected = sample(model, ber=1e-4, seed=7, selector=selector, trial=trial).faults
        assert [f.site for f in plan.faults(trial)] == [f.site for f in expected]
    assert [f.site for f in plan.faults(1)] != [f.site for f in plan.faults(2)]


@pytest.mark.slow
@pytest.mark.parametrize("text", sorted({e for m in fault_models().values() for e in m.examples}))
def test_faults_of_a_file_affect_the_same_words_of_transposed_parameters(text: str) -> None:
    model = load(MODEL)
    rate = 1e-4 if parse_fault(text).unit == "bit" else 1e-3
    try:
        listed = sample(model, ber=rate, fault=text, seed=3).faults
    except SelectorError:
        pytest.skip("a fault of activations alone")
    targets, values = parameters()
    faults = map_faults(model, listed, targets, values)
    done, final_words = resolve_faults(faults, lambda k, i: read_words(values[targets[k].id], targets[k].word, i))
    assert done.before is not None and listed.before is not None and len(listed) > 50
    assert np.array_equal(done.before, listed.before)
    assert np.array_equal(done.after, listed.after)
    faulty = {
        targets[k].id: replace_words(values[targets[k].id], targets[k].word, *words) for k, words in final_words.items()
    }
    for target in (t for t in model.targets if not t.structural):
        after = model.words(target, np.arange(target.size))
        for fault in listed:
            if fault.target == target.id:
                after[fault.index] = fault.after
        name = f"net/{target.id}"
        found = faulty.get(name, values[name]).T
        assert np.array_equal(read_words(found, target.word, np.arange(target.size)), after)


def test_an_element_that_is_faulty_twice_holds_what_the_second_fault_left() -> None:
    values = np.array([1.0, 2.0], np.float32)
    target = Target("w", WORDS["float32"], (2,))
    faults = InjectionPlan(FaultSettings(1.0, fault="stuck-at-1"), (target,)).faults(1)
    _, final_words = resolve_faults(faults, lambda _, index: read_words(values, target.word, index))
    assert (
        read_words(replace_words(values, target.word, *final_words[0]), target.word, np.arange(2)).tolist()
        == [2**32 - 1] * 2
    )


def test_the_clip_holds_faulty_numbers_alone() -> None:
    values = np.array([50.0, 0.5, -0.5, 1.0], np.float32)
    target = Target("w", WORDS["float32"], (4,))
    model = parse_fault("scale:factor=1e30")
    faults = InjectionPlan(FaultSettings(1.0, Selector(elements="1:3"), model), (target,)).faults(1)
    _, final_words = resolve_faults(faults, lambda _, index: read_words(values, target.word, index), 2.0)
    assert replace_words(values, target.word, *final_words[0]).tolist() == [50.0, 2.0, -2.0, 1.0]
    faults = InjectionPlan(FaultSettings(1.0, fault="set:value=nan"), (target,)).faults(1)
    _, final_words = resolve_faults(faults, lambda _, index: read_words(values, target.word, index), 2.0)
    assert replace_words(values, target.word, *final_words[0]).tolist() == [0.0] * 4


def test_each_sample_of_an_activation_is_faulty_by_itself_and_anew_at_each_step() -> None:
    target = Target("relu", WORDS["float32"], (10,), "activation")
    settings = FaultSettings(0.5, Selector(elements="3:5"), "zero")
    faults = settings.draw_activations(target, 200, 0, 1)
    assert set((faults.sites.index % 10).tolist()) == {3, 4}
    assert len(set((faults.sites.index // 10).tolist())) > 120 and 150 < len(faults) < 250
    others = [settings.draw_activations(target, 200, *at).sites.index.tolist() for at in ((0, 2), (1, 1))]
    assert faults.sites.index.tolist() not in others
    assert faults.sites.index.tolist() == settings.draw_activations(target, 200, 0, 1).sites.index.tolist()


def test_a_pattern_stays_inside_one_sample(tmp_path: Path) -> None:
    (tmp_path / "column.json").write_text('{"version": 1, "fault": "zero", "shape": "column"}')
    settings = FaultSettings(0.01, fault=f"pattern:file={tmp_path / 'column.json'}")
    faults = settings.draw_activations(Target("fc", WORDS["float32"], (4, 5), "activation"), 50, 0, 1)
    rows = faults.sites.index.reshape(-1, 4)
    assert len(rows) > 3 and faults.targets[0].shape == (50, 4, 5)
    for row in rows.tolist():
        assert len({at // 20 for at in row}) == 1 and [at % 20 for at in row] == [row[0] % 5 + 5 * k for k in range(4)]
    assert len(settings.draw_activations(Target("v", WORDS["float32"], (5,), "activation"), 50, 0, 1)) == 0


def test_a_rate_that_affects_every_word_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "onnxfi"):
        plan = InjectionPlan(FaultSettings(1.0), TARGETS)
    assert "6,512 faults are expected in 207 words at every step" in plan.rate_warning
    assert plan.rate_warning in caplog.text
    assert len(plan.faults(1)) == 6512
    assert InjectionPlan(FaultSettings(0.03), TARGETS).rate_warning == ""


def test_faults_by_number_are_those_of_inject_count_and_may_stay() -> None:
    plan = InjectionPlan(FaultSettings(count=5, seed=4), TARGETS)
    for trial in (1, 2):
        drawn = draw_faults(plan.space, Sampler("count", n=5, seed=4), Flip(), trial)
        assert [str(f.site) for f in plan.faults(trial)] == [str(f.site) for f in drawn]
    assert plan.rate_warning == "" and plan.settings.trial(7) == 7
    assert FaultSettings(count=5, permanent=True).trial(7) == 1


@pytest.mark.parametrize("permanent", [False, True])
def test_neurons_by_number_are_faulty_in_every_sample(permanent: bool) -> None:
    settings = FaultSettings(count=3, fault="dead", target="activations", seed=2, permanent=permanent)
    neurons = Target("lif", WORDS["float32"], (4, 5), "activation")
    seen = []
    for step in (1, 2):
        faults = settings.draw_activations(neurons, 6, 1, step)
        places = faults.sites.index.reshape(6, 3)
        assert len(set(places[0].tolist())) == 3 and places[0].max() < 20
        np.testing.assert_array_equal(places, places[0] + 20 * np.arange(6)[:, None])
        seen.append(sorted(places[0].tolist()))
    assert (seen[0] == seen[1]) == permanent


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ber": 1.5}, "rate must be in [0, 1], got 1.5"),
        ({"ber": 0.1, "seed": -1}, "seed -1 is out of range"),
        ({"ber": 0.1, "target": "biases"}, "target must be weights or activations, got 'biases'"),
        ({"ber": 0.1, "from_epoch": -1}, "from_epoch must be 0 or more, got -1"),
        ({"ber": 0.1, "clip": 0.0}, "clip must be a positive number, the largest magnitude a fault may leave, got 0.0"),
        (
            {"ber": 0.1, "clip": float("nan")},
            "clip must be a positive number, the largest magnitude a fault may leave, got nan",
        ),
        ({"ber": 0.1, "fault": "filp"}, "unknown fault 'filp'; closest: 'flip'"),
        ({}, "give either ber, a probability, or count"),
        ({"ber": 0.1, "count": 2}, "give either ber, a probability, or count"),
        ({"count": -1}, "count must be 0 or more, got -1"),
    ],
)
def test_bad_settings(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        FaultSettings(**given)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_selector_that_matches_no_parameter() -> None:
    with pytest.raises(SelectorError, match=r"'a.wieght' matches nothing in this model; closest: 'a.weight'"):
        InjectionPlan(FaultSettings(0.1, Selector(include=("a.wieght",))), TARGETS)
    with pytest.raises(InputError, match="the model has no parameters to inject faults into"):
        InjectionPlan(FaultSettings(0.1), ())


def test_faults_of_a_file_that_holds_other_numbers() -> None:
    model = load(MODEL)
    listed = sample(model, count=20, seed=3, selector=Selector(include=("conv1.weight",))).faults
    targets, values = parameters()
    values["net/conv1.weight"][0, 0, 0, 0] += 1
    with pytest.raises(FaultListError, match=r"no parameter holds the numbers of 'conv1.weight', bit for bit"):
        map_faults(model, listed, targets, values)
    alike = {name: np.zeros_like(value) for name, value in values.items()}
    zeros = load(MODEL)
    with pytest.raises(FaultListError, match="no parameter holds"):
        map_faults(zeros, listed, targets, alike)


def test_ambiguous_parameters_are_refused() -> None:
    model = load(MODEL)
    listed = sample(model, count=5, selector=Selector(include=("conv1.weight",))).faults
    targets, values = parameters()
    values["net/fc2.weight"] = values["net/conv1.weight"].copy()
    with pytest.raises(FaultListError, match=r"match the parameters in 2 ways \(as 'net/fc2.weight'\)"):
        map_faults(model, listed, targets, values)
