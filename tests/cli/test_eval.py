"""`onnxfi eval` as a whole: accuracies against those of the models' cards and of numpy, and every kind of data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from campaign_commands import Run

#: Top-1 on the 2,000 images, as the cards say.
TOP1 = {"fashion_cnn": 0.9115, "fashion_attention": 0.8780, "fashion_gru": 0.8995}
MATMUL = "g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> { y = MatMul(x, w) }"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "fashion_cnn" else pytest.mark.slow) for name in TOP1]
)
def test_the_accuracy_is_that_of_the_card(run: Run, models: Path, name: str) -> None:
    path, archive = models / f"{name}.onnx", np.load(models / "fashion_test.npz")
    found = run("eval", path, "--data", models / "fashion_test.npz", "--json").json
    assert found["golden"]["top1"] == TOP1[name]
    assert (found["samples"], found["output"], found["provider"]) == (2000, "logits", "CPUExecutionProvider")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": archive["image"]})[0]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert found["golden"]["top5"] == (best == archive["labels"][:, None]).any(axis=1).mean()


def test_the_table_shows_the_numbers_and_their_conditions(run: Run, models: Path) -> None:
    ran = run("eval", models / "fashion_cnn.onnx", "--data", models / "fashion_test.npz", "--provider", "cpu")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^ top1 +91\.15 % *$", ran.out, re.M)
    assert re.search(r"^ nonfinite +0\.00 % *$", ran.out, re.M)
    where = f"2000 labelled samples of '{models / 'fashion_test.npz'}'; output 'logits'; CPUExecutionProvider\n"
    assert ran.out.endswith(where)


@pytest.mark.parametrize(
    "flags", ["--batch 1", "--batch 7", "--batch 5000", "--threads 2", "--optimization off", "--optimization basic"]
)
def test_how_it_is_run_does_not_change_the_accuracy(run: Run, models: Path, flags: str) -> None:
    words = ["--data", models / "fashion_test.npz", "--samples", 300, *flags.split(), "--json"]
    found = run("eval", models / "fashion_cnn.onnx", *words).json
    archive = np.load(models / "fashion_test.npz")
    session = ort.InferenceSession(str(models / "fashion_cnn.onnx"), providers=["CPUExecutionProvider"])
    top = session.run(None, {"image": archive["image"][:300]})[0].argmax(1)
    assert found["golden"]["top1"] == (top == archive["labels"][:300]).mean()


def test_the_first_samples_are_taken(run: Run, here: Path, save: Callable[..., str]) -> None:
    save("m.onnx", MATMUL)
    np.savez("d.npz", x=np.eye(3, dtype=np.float32), labels=[2, 2, 0])
    for samples, top1 in ((1, 1.0), (2, 1.0), (3, 2 / 3), (99, 2 / 3)):
        found = run("eval", "m.onnx", "--data", "d.npz", "--samples", samples, "--json").json
        assert (found["samples"], found["golden"]["top1"]) == (min(samples, 3), top1)


def test_a_fixed_batch_is_filled_up_and_cut_off_again(run: Run, save: Callable[..., str]) -> None:
    """Five samples through a model that takes four at a time; the fillings would count as wrong answers."""
    save("m.onnx", MATMUL.replace("[N,3]", "[4,3]"))
    np.savez("d.npz", x=np.ones((5, 3), np.float32), labels=[2, 2, 2, 2, 2])
    for batch in (1, 4, 32):
        found = run("eval", "m.onnx", "--data", "d.npz", "--batch", batch, "--json").json
        assert (found["samples"], found["golden"]["top1"]) == (5, 1.0)


def test_the_scored_output_can_be_named(run: Run, save: Callable[..., str]) -> None:
    graph = "g (float[N,3] x) => (float[N,3] a, float[N,3] b) { a = Identity(x) b = Neg(x) }"
    save("m.onnx", graph)
    np.savez("d.npz", x=np.eye(3, dtype=np.float32), labels=[0, 1, 2])
    for output, top1 in (("a", 1.0), ("b", 0.0)):
        found = run("eval", "m.onnx", "--data", "d.npz", "--output", output, "--json").json
        assert (found["output"], found["golden"]["top1"]) == (output, top1)


def test_non_finite_answers_are_counted_by_sample(run: Run, save: Callable[..., str]) -> None:
    save("m.onnx", "g (float[N,3] x) => (float[N,3] y) { y = Log(x) }")
    np.savez("d.npz", x=np.array([[1, 2, 3], [1, 0, 3], [-1, 1, 1], [1, 1, 1]], np.float32), labels=[2, 2, 2, 0])
    found = run("eval", "m.onnx", "--data", "d.npz", "--json").json
    assert found["golden"] == {"top1": 0.75, "top5": 0.75, "nonfinite": 0.5}


# Kinds of data


def test_without_data_inputs_are_synthetic_and_a_note_is_printed(run: Run, models: Path) -> None:
    ran = run("eval", models / "fashion_gru.onnx", "--samples", 3)
    assert ran.code == 0
    assert "3 synthetic samples of seed 0" in ran.out and "say nothing about accuracy" in ran.out
    assert "top1" not in ran.out
    named = run("eval", models / "fashion_gru.onnx", "--data", "synthetic", "--samples", 3)
    assert named.out == ran.out


def test_a_folder_of_images(run: Run, here: Path, models: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    archive = np.load(models / "fashion_test.npz")
    for row in range(60):
        folder = here / "images" / str(archive["labels"][row])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(archive["image"][row, 0] * 255).astype(np.uint8)
        image.fromarray(pixels).save(folder / f"{row:03}.png")
    (here / "gray.yaml").write_text("version: 1\ncolor: gray\n")
    words = ["--data", "images", "--preprocess", "gray.yaml", "--json"]
    found = run("eval", models / "fashion_cnn.onnx", *words).json
    session = ort.InferenceSession(str(models / "fashion_cnn.onnx"), providers=["CPUExecutionProvider"])
    top = session.run(None, {"image": archive["image"][:60]})[0].argmax(1)
    assert set(archive["labels"][:60]) == set(range(10))
    assert found["golden"]["top1"] == (top == archive["labels"][:60]).mean()
    assert "60 images of 10 classes in 'images'" in found["data"]


FUNCTIONS = """
import numpy as np

ROWS, LABELS = np.eye(3, dtype=np.float32), np.array([2, 2, 0])


def whole():
    return {"x": ROWS, "labels": LABELS}


def batches():
    for start in (0, 2):
        yield {"x": ROWS[start : start + 2], "labels": LABELS[start : start + 2]}


class Reader:
    def __init__(self):
        self.left = [{"x": row[None]} for row in ROWS]

    def get_next(self):
        return self.left.pop(0) if self.left else None
"""


def test_functions_of_the_user(run: Run, here: Path, save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    save("m.onnx", MATMUL)
    (here / "own_feeds.py").write_text(FUNCTIONS)
    for function in ("whole", "batches"):
        found = run("eval", "m.onnx", "--data", f"own_feeds:{function}", "--json").json
        assert (found["samples"], found["golden"]["top1"]) == (3, 2 / 3)
    found = run("eval", "m.onnx", "--data", "own_feeds:Reader", "--json").json
    assert (found["samples"], list(found["golden"])) == (3, ["nonfinite"])


# Models


def test_the_scores_in_maps_are_scored(run: Run, save: Callable[..., str]) -> None:
    graph = """g (float[N,3] x) => (int64[N] label, seq(map(int64, float)) probabilities)
        { label, p = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1, 2], post_transform = "SOFTMAX",
            coefficients = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], intercepts = [0.0, 0.0, 0.0]>(x)
          probabilities = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1, 2]>(p) }"""
    save("m.onnx", graph)
    np.savez("d.npz", x=np.eye(3, dtype=np.float32), labels=[0, 1, 0])
    for output in ("p", "probabilities"):
        found = run("eval", "m.onnx", "--data", "d.npz", "--output", output, "--json").json
        assert found["output"] == "p" and found["golden"]["top1"] == pytest.approx(2 / 3)
    assert (
        run("run", "m.onnx", "--data", "d.npz", "--ber", "1e-3", "--repeat", 2, "-o", "s.db", "--workers", 0).code == 0
    )
    assert run("report", "s.db", "--json").json["golden"]["top1"] == pytest.approx(2 / 3)
    number = run("eval", "m.onnx", "--data", "d.npz", "--output", "label", "--json").json
    assert number["golden"] == {"top1": pytest.approx(2 / 3), "balanced_accuracy": 0.75, "nonfinite": 0.0}


@pytest.mark.parametrize("classes", [[1, 2, 3], ["ash", "oak", "yew"]], ids=["numbers", "names"])
def test_labels_are_of_the_classes_that_a_model_lists(run: Run, save: Callable[..., str], classes: list[Any]) -> None:
    kind, lists = ("int64", "int64s") if classes[0] == 1 else ("string", "strings")
    listed = json.dumps(classes)
    save("m.onnx", f"""g (float[N,3] x) => ({kind}[N] label, seq(map({kind}, float)) probabilities)
        {{ label, p = ai.onnx.ml.LinearClassifier<classlabels_{lists.replace("int64s", "ints")} = {listed}, post_transform = "SOFTMAX",
            coefficients = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], intercepts = [0.0, 0.0, 0.0]>(x)
          probabilities = ai.onnx.ml.ZipMap<classlabels_{lists} = {listed}>(p) }}""")  # fmt: skip
    rows = np.eye(3, dtype=np.float32)
    np.savez("d.npz", x=rows, labels=[classes[k] for k in (0, 1, 0)])
    np.savez("few.npz", x=rows[:2], labels=[[one] for one in classes[:2]])  # places, if it were not for the list
    np.savez("other.npz", x=rows[:1], labels=[4 if kind == "int64" else "elm"])
    assert run("eval", "m.onnx", "--data", "d.npz", "--json").json["golden"]["top1"] == pytest.approx(2 / 3)
    assert run("eval", "m.onnx", "--data", "few.npz", "--json").json["golden"]["top1"] == 1
    run("run", "m.onnx", "--data", "d.npz", "--ber", "1e-3", "--repeat", 2, "-o", "s.db", "--workers", 0)
    assert run("report", "s.db", "--json").json["golden"]["top1"] == pytest.approx(2 / 3)
    if kind == "int64":
        number = run("eval", "m.onnx", "--data", "few.npz", "--output", "label", "--json").json
        assert number["golden"]["top1"] == 1
    refused = run("eval", "m.onnx", "--data", "other.npz")
    assert refused.code == 2 and "is none of the classes that the model lists" in refused.err


def test_external_data_is_found_beside_the_model(run: Run, here: Path, models: Path) -> None:
    (here / "model").mkdir()
    model = onnx.load(models / "fashion_cnn.onnx")
    onnx.save(model, here / "model" / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    words = ["--data", models / "fashion_test.npz", "--samples", 200, "--json"]
    inside = run("eval", models / "fashion_cnn.onnx", *words).json
    outside = run("eval", "model/m.onnx", *words).json
    assert outside["golden"] == inside["golden"] and outside["digest"] != inside["digest"]


def test_the_digest_is_that_of_the_file(run: Run, models: Path) -> None:
    inspected = run("inspect", models / "fashion_cnn.onnx", "--json").json
    assert run("eval", models / "fashion_cnn.onnx", "--json").json["digest"] == inspected["digest"]


@pytest.mark.fetched
@pytest.mark.parametrize("name", ["ddddocr_int8", "magika", "minilm_int8", "rapidocr_cls", "slanet_plus"])
def test_fetched_models_run_on_synthetic_inputs(run: Run, fetched: Path, name: str) -> None:
    path = fetched / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path.name}; python scripts/fetch_models.py brings it")
    found = run("eval", path, "--samples", 2, "--json").json
    assert found["golden"] == {"nonfinite": 0.0}


@pytest.mark.fetched
def test_a_fetched_model_with_states_and_a_scalar_runs_on_given_data(run: Run, here: Path, fetched: Path) -> None:
    path = fetched / "silero_vad.onnx"
    if not path.is_file():
        pytest.skip("no silero_vad.onnx; python scripts/fetch_models.py brings it")
    sound = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    np.savez("d.npz", input=sound, state=np.zeros((2, 4, 128), np.float32), sr=np.array(16000))
    ran = run("eval", path, "--data", "d.npz", "--batch", 4, "--json")
    assert ran.json["golden"] == {"nonfinite": 0.0}


@pytest.mark.slow
def test_a_model_that_needs_a_library_of_operators(run: Run, here: Path) -> None:
    library = pytest.importorskip("onnxruntime_extensions").get_library_path()
    text = """<ir_version: 9, opset_import: ["": 18, "ai.onnx.contrib": 1]>
        g (float[N,3] x) => (float[N,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}> {
            z = MatMul(x, w)
            negative, positive = ai.onnx.contrib.NegPos(z)
            y = Sub(positive, negative)
        }"""
    onnx.save(onnx.parser.parse_model(text), "m.onnx")
    np.savez("d.npz", x=np.eye(3, dtype=np.float32), labels=[2, 2, 0])
    words = ["--data", "d.npz", "--provider", "cpu", "--json"]
    refused = run("eval", "m.onnx", *words)
    assert refused.code == 2
    assert "NegPos(-1) is not a registered function/op; --custom-ops names the library" in refused.err
    assert run("eval", "m.onnx", *words, "--custom-ops", library).json["golden"]["top1"] == pytest.approx(2 / 3)
    found = run("inject", "m.onnx", "--site", "w[8]", "--fault", "set:value=-99", *words, "--custom-ops", library).json
    assert found["faulty"]["max_abs"] == 90.0 and found["faulty"]["sdc1"] == 0.0
    found = run("run", "m.onnx", "--exhaustive", "--bits", "31", "--custom-ops", library, *words).json
    assert found["trials"] == 9
    armed = run("instrument", "m.onnx", "--include", "=positive", "--custom-ops", library, "--json").json
    assert armed["sites"][0]["target"] == "positive" and armed["sites"][0]["dtype"] == "float32"
    assert run("instrument", "m.onnx", "--include", "=positive").code == 2, "its type is known to the library alone"
    flies = ("--target", "activations", "--custom-ops", library)
    assert run("inject", "m.onnx", *flies, "--site", "positive[0]:31", "--json").json["faults_total"] == 1
    assert run("run", "m.onnx", *flies, "--single", "--trials", 3, *words, "--fresh").json["trials"] == 3


# Outputs that are no scores of classes


ONE_COLUMN = """g (float[N,3] x) => (float[N,1] y)
    <float[3,1] w = {0.5, 0.5, 0.5}> { h = MatMul(x, w) y = Sigmoid(h) }"""


def test_one_column_has_no_top_1_in_any_verb(run: Run, save: Callable[..., str]) -> None:
    """Every decision by the threshold 0.5 flips, and the highest of one column stays the highest."""
    pytest.importorskip("sklearn", reason="metrics of decisions need the extra metrics")
    save("m.onnx", ONE_COLUMN)
    x = np.ones((4, 3), np.float32)
    np.savez("d.npz", x=x)
    np.savez("l.npz", x=x, labels=[1, 1, 1, 0])
    signs = [word for index in range(3) for word in ("--site", f"w[{index}]:31")]
    found = run("inject", "m.onnx", *signs, "--data", "d.npz", "-o", "f.onnx", "--json").json
    assert "sdc1" not in found["faulty"] and found["faulty"]["changed_samples"] == 1.0
    assert "no top-1 or SDC-1" in run("eval", "m.onnx", "--data", "d.npz").out.replace("\n", " ")
    campaign = ["--single", "--trials", 4, "--workers", 0]
    assert run("run", "m.onnx", "--data", "d.npz", *campaign, "-o", "s.db").code == 0
    assert "sdc1" not in run("report", "s.db", "--json").out
    shown = run("report", "s.db").out.replace("\n", " ")
    assert "no labels" not in shown and "no top-1 or SDC-1" in shown
    budget = "version: 1\ncampaign: {data: d.npz, single: true, trials: 4}\nlimits: [{rate: sdc1, max: 0.5}]\n"
    Path("b.yaml").write_text(budget)
    assert run("check", "m.onnx", "--budget", "b.yaml", "--workers", 0).code == 2
    adaptive = run("run", "m.onnx", "--data", "d.npz", "--single", "--adaptive", "--workers", 0, "-o", "a.db")
    assert adaptive.code == 2 and "rate 'sdc1' cannot be measured" in adaptive.err
    for verb in (
        ["eval", "m.onnx", "--data", "l.npz"],
        ["inject", "m.onnx", *signs, "--data", "l.npz", "-o", "g.onnx"],
        ["run", "m.onnx", "--data", "l.npz", *campaign, "-o", "l.db"],
    ):
        refused = run(*verb, "--task", "classification")
        assert refused.code == 2 and "the labels ask for accuracy, and output 'y' has one column" in refused.err
    assert not Path("g.onnx").exists() and not Path("l.db").exists()
    decided = run("eval", "m.onnx", "--data", "l.npz", "--json").json
    assert decided["golden"].keys() >= {"accuracy", "f1"}, "by a threshold"


def test_ones_behind_the_classes_are_left_out(run: Run, save: Callable[..., str]) -> None:
    save("m.onnx", "g (float[1,3,2,2] x) => (float[1,3,1,1] y) { y = GlobalAveragePool(x) }")
    x = np.eye(3, dtype=np.float32)[:, :, None, None] * np.ones((1, 1, 2, 2), np.float32)
    np.savez("d.npz", x=x, labels=[0, 1, 0])
    assert run("eval", "m.onnx", "--data", "d.npz", "--json").json["golden"]["top1"] == pytest.approx(2 / 3)


def test_boxes_are_no_samples_by_classes(run: Run, save: Callable[..., str]) -> None:
    """A detector of two boxes an image, whose boxes are the only float output of two dimensions."""
    graph = """g (float[1,2,4] x) => (float[M,4] boxes, float[M] scores, int64[M] labels)
        <float[4] w = {1, 1, 1, 1}, int64[1] axis = {0}, int64[1] last = {1}> {
          f = Squeeze(x, axis) boxes = Mul(f, w) scores = ReduceMax<keepdims = 0>(boxes, last)
          labels = ArgMax<axis = 1, keepdims = 0>(boxes) }"""
    save("m.onnx", graph)
    np.savez("d.npz", x=np.arange(24, dtype=np.float32).reshape(3, 2, 4))
    for words in ([], ["--output", "boxes"]):
        found = run("inject", "m.onnx", "--site", "w[3]:31", "--data", "d.npz", *words, "-o", "f.onnx", "--json").json
        assert "sdc1" not in found["faulty"] and found["faulty"]["changed"] > 0
    np.savez("l.npz", x=np.ones((3, 2, 4), np.float32), labels=[0, 1, 2])
    assert "no output is sure to hold the scores" in run("eval", "m.onnx", "--data", "l.npz").err
