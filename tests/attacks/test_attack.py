"""An attack as a whole: what it finds, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxfi
from onnxfi.attacks.attack import Attack, Search, attack
from onnxfi.attacks.candidates import Flips
from onnxfi.attacks.flip_trials import FlipTrials, Harm
from onnxfi.attacks.goals import Goal
from onnxfi.attacks.search import ChosenFlip, Rules
from onnxfi.errors import InputError

MODEL, INT8, DATA = "models/fashion_cnn.onnx", "models/fashion_cnn_int8_qdq.onnx", "models/fashion_test.npz"


@pytest.mark.slow
def test_chosen_flips_harm_more_than_many_more_random_ones(tmp_path: Path) -> None:
    out = tmp_path / "attack.jsonl"
    found = attack(INT8, DATA, out, flips=2, samples=264, candidates=128, random_trials=2)
    (search,) = found.searches
    assert len(search.flips) == 2 and search.harm[1].accuracy < search.golden - 0.02
    assert search.harm[1].accuracy < next(row.low for row in found.random if row.flips == 100)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["trial"] for line in lines[1:]] == [1, 2, 2]
    assert [f"{row['target']}[{row['index']}]:{row['bits'][0]}" for row in lines[2:]] == [c.site for c in search.flips]
    sites = [flip.site for flip in search.flips]
    onnxfi.inject(INT8, onnxfi.sample(INT8, sites=sites), tmp_path / "faulty.onnx")
    again = onnxfi.replay(INT8, onnxfi.FaultList.open(_first_trial(out, tmp_path)))
    assert [str(fault.site) for fault in again.faults] == sites[:1]


def _first_trial(path: Path, folder: Path) -> Path:
    lines = path.read_text().splitlines()
    file = folder / "first.jsonl"
    file.write_text("\n".join(lines[:2]) + "\n")
    return file


def test_the_quantiser_is_named() -> None:
    found = attack(INT8, DATA, method="sign", flips=1, samples=80, random_trials=0)
    assert found.formats == ("int8 (QDQ, a scale for each index of axis 0)",)
    assert attack(MODEL, DATA, method="sign", flips=1, samples=80, random_trials=0).formats == ("float32",)


def test_flips_are_scored_on_other_versions_too(tmp_path: Path) -> None:
    fields = {"method": "exponent", "flips": 2, "samples": 120, "random_trials": 0}
    found = attack(MODEL, DATA, also=[MODEL, Path(MODEL).read_bytes()], **fields)  # type: ignore[arg-type]
    assert [one.harm for one in found.defended] == [found.searches[0].harm] * 2
    with pytest.raises(InputError, match="has no tensor of 'conv"):
        attack(MODEL, DATA, also=["models/fashion_attention.onnx"], **fields)  # type: ignore[arg-type]


def test_a_memory_code_undoes_flips_of_different_words(tmp_path: Path) -> None:
    out = tmp_path / "list.jsonl"
    attack(MODEL, DATA, out, method="exponent", flips=2, samples=120, random_trials=0)
    fields = {"faults": str(out), "samples": 60}
    bare = onnxfi.run(MODEL, DATA, **fields, progress=False)  # type: ignore[arg-type]
    coded = onnxfi.run(MODEL, DATA, **fields, memory_code="secded", progress=False)  # type: ignore[arg-type]
    assert bare.everything.rate("masked").estimate == 0
    assert coded.everything.rate("masked").estimate == 1


@pytest.mark.slow
def test_a_targeted_attack_moves_one_class_and_keeps_the_rest() -> None:
    found = attack(INT8, DATA, flips=3, samples=264, source_class=7, target_class=9, random_trials=0)
    (search,) = found.searches
    assert search.flips and search.flips[0].gain is not None and search.flips[0].gain > 0
    last = search.harm[-1]
    assert last.accuracy > 0.5 and search.success is not None and last.reached is not None
    assert last.reached > search.success[0] and search.success[1] > 0.85


def attacked(*accuracies: tuple[float, ...]) -> Attack:
    flips = tuple(ChosenFlip(f"w[{k}]:7") for k in range(3))
    searches = tuple(
        Search(seed, flips, 0.9, tuple(Harm(a, 0.9 - a, 0.0) for a in row)) for seed, row in enumerate(accuracies)
    )
    return Attack("m", "", ("int8",), Goal(), Rules(), 64, 100, 0.11, searches, (), 0)


def test_a_screen_spares_most_candidates_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, own = list[tuple[int, int]](), FlipTrials.gains

    def counted(trials: FlipTrials, flips: Flips) -> object:
        runs.append((trials.golden.size, len(flips)))
        return own(trials, flips)

    monkeypatch.setattr(FlipTrials, "gains", counted)
    few: dict[str, Any] = {"samples": 40, "attack_samples": 16, "candidates": 3, "flips": 1, "random_trials": 0}
    plain = attack(MODEL, DATA, **few).searches[0].flips
    assert attack(MODEL, DATA, screen=16, **few).searches[0].flips == plain, "the best of all is among the best three"
    runs.clear()
    attack(MODEL, DATA, screen=4, **few)
    assert sum(n for size, n in runs if size == 16) == 3 and sum(n for size, n in runs if size == 4) == 12


def test_flips_to_guessing_over_seeds() -> None:
    found = attacked((0.5, 0.1, 0.2), (0.1, 0.1, 0.1), (0.5, 0.5, 0.5))
    assert found.to_chance == (2, 1, None)
    assert found.median_to_chance == 2
    assert attacked((0.5, 0.5, 0.5)).median_to_chance is None
    json.dumps(found.document(), allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "bfa"}, "unknown method 'bfa'"),
        ({"flips": "two"}, "flips must be a whole number; given 'two'"),
        ({"seeds": 1.5}, "seeds must be a whole number; given '1.5'"),
        ({"flips": "0"}, "flips 0 is out of range; give a whole number from 1 to 1,000"),
        ({"seeds": 0}, "seeds 0 is out of range; give a whole number from 1 to 100"),
        ({"method": "gradient"}, "takes gradients by tensor"),
        ({"gradients": {"w": np.ones(3)}}, "takes gradients by tensor"),
        ({"method": "gradient", "gradients": {"w": np.ones(3)}}, "name no selected tensor"),
        ({"screen": 65}, "screen 65 is out of range; give a whole number from 0 to 64"),
        ({"attack_samples": 5000}, "leave none to score on"),
        ({"attack_samples": -1}, "--attack-samples -1 of"),
        ({"source_class": 3}, "source class needs the class"),
        ({"target_class": 12}, "target class 12 is out of range; the model scores classes 0 to 9"),
    ],
)
def test_what_cannot_be_is_one_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attack(MODEL, DATA, **{"samples": 200, "random_trials": 0, **fields})  # type: ignore[arg-type]


def test_samples_without_labels_are_refused() -> None:
    image = np.load(DATA)["image"][:10]
    with pytest.raises(InputError, match="needs labelled samples"):
        attack(MODEL, {"image": image}, attack_samples=4)


def test_a_model_that_is_no_classifier_is_refused() -> None:
    data = "models/scenes_test.npz"
    with pytest.raises(InputError, match=r"labels are uint8 \[8,64,64\]; classes are integers"):
        attack("models/scenes_segmenter.onnx", data, samples=8, attack_samples=4, random_trials=0)


@pytest.mark.parametrize(
    ("tail", "labels", "message"),
    [
        ("ArgMax", [0, 1, 2, 3], "holds class indices, and an attack needs their scores"),
        ("Sigmoid", np.eye(10, dtype=int)[[0, 1, 2, 3]] + np.eye(10, dtype=int)[9], "labels of --task multi-label"),
    ],
)
def test_answers_of_another_kind_are_refused_before_the_search(tail: str, labels: Any, message: str) -> None:
    model = onnx.load(MODEL)
    model.graph.node.append(onnx.helper.make_node(tail, ["logits"], ["y"], **({"axis": 1} if tail == "ArgMax" else {})))
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    steps: list[object] = []
    with pytest.raises(InputError, match=message):
        attack(
            model, {"image": np.load(DATA)["image"][:4], "labels": np.array(labels)}, attack_samples=2,
            progress=lambda *step: steps.append(step),
        )  # fmt: skip
    assert not steps
