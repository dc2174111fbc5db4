"""Open pipelines: fault-free runs against numpy, rows of samples, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_pipelines import CASCADE, Weights, cascade, model, opened
from tiny_campaigns import chance

from onnxfi.errors import DataError, InputError, ModelError
from onnxfi.graph.model.loading import load
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.pipeline.open_stages import filled
from onnxfi.runtime.pipeline.pipeline import Source
from onnxfi.tasks.evaluation import evaluate_pipeline


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return cascade(tmp_path)


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file.parent / "d.npz") as held:
        return dict(held)


def test_a_fault_free_run_is_that_of_numpy(file: Path) -> None:
    pipeline = opened(file)
    data = pipeline.open_data(file.parent / "d.npz")
    values = pipeline.front(data)
    expected = [*Weights(file.parent).scores(arrays(file)["x"])]
    assert len({rows for rows, _ in expected}) > 2 and min(rows for rows, _ in expected) == 0
    for found, (rows, scores) in zip(values, expected, strict=True):
        assert len(found[Source("crops", "crop")]) == len(found[Source("reader", "scores")]) == rows
        np.testing.assert_allclose(found[Source("join", "scores")], [scores], rtol=1e-5, atol=1e-6)
    evaluation = evaluate_pipeline(pipeline, data)
    tops = [int(scores.argmax()) for _, scores in expected]
    assert evaluation.metrics["top1"] == np.mean(np.array(tops) == arrays(file)["labels"])
    assert evaluation.output == "scores" and "4 stages" in evaluation.conditions()


def test_evaluations_are_compared(file: Path) -> None:
    pipeline = opened(file)
    data = pipeline.open_data(file.parent / "d.npz")
    golden = evaluate_pipeline(pipeline, data)
    model(file.parent, "r (float[M,3] crop) => (float[M,5] scores) { c = MatMul(crop, v) scores = Add(c, u) }", "zero.onnx",
          v=0 * chance(3, 5), u=chance(5, seed=3))  # fmt: skip
    other = opened(file, instead={"reader": load(file.parent / "zero.onnx")})
    found = evaluate_pipeline(other, data, golden=golden)
    tops, rows = zip(*[(int(s.argmax()), n) for n, s in Weights(file.parent).scores(arrays(file)["x"])], strict=True)
    alone = int(chance(5, seed=3).argmax())
    assert found.metrics["sdc1"] == np.mean([top != alone and n > 0 for top, n in zip(tops, rows, strict=True)])
    assert pipeline.digest != other.digest and evaluate_pipeline(pipeline, data, golden=golden).metrics["sdc1"] == 0


def test_digest_is_of_wiring_models_and_code(file: Path) -> None:
    first = opened(file).digest
    assert opened(file, CASCADE.replace("join", "joined").replace("host:joined", "host:join")).digest != first
    assert opened(file, CASCADE.replace("version: 1", "faults: reader")).digest == first
    (file.parent / "host.py").write_text((file.parent / "host.py").read_text() + "\n")
    assert opened(file, CASCADE).digest != first


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        ("{crop: crops.crop}", "{cropp: crops.crop}", InputError, "the model has no input 'cropp'; closest: 'crop'"),
        ("finder.heat", "finder.heatt", InputError, "stage 'finder' has no output 'heatt'; closest: 'heat'"),
        ("{x: data.x, heat: finder.heat}", "{y: data.x, heat: finder.heat}", InputError, "the function takes x, heat"),
        ("host:crops", "host:cropps", InputError, "module 'host' has no 'cropps'; closest: 'crops'"),
        ("host:crops", "hosts:crops", InputError, "'hosts:crops' cannot be loaded: ModuleNotFoundError"),
        ("host:crops", "host:calls", InputError, "is a dict; name a function"),
        ("crops.crop}", "data.y}", InputError, "stage 'crops' feeds no stage"),
        ("{x: data.x, heat", "{x: data.z, heat", InputError, "no model reads data 'z' of stage 'crops'"),
        ("stages:", "data: {z: 'uint8 [N]'}\nstages:", InputError, "data 'z' is declared, and no stage reads it"),
        ("stages:", "data: {x: 'float32 [N,5]'}\nstages:", InputError, "data.x is float32 [N,5], and input 'x' (float32 [N,6])"),
        ("stages:", "data: {x: 'uint8 [N,6]'}\nstages:", InputError, "data.x is uint8 [N,6], and input 'x'"),
        ("crops.crop", "crops.cropp", DataError, "stage 'crops' has no output 'cropp'; closest: 'crop'"),
        ("{crop: crops.crop}", "{crop: crops.wide}", DataError, "crops.wide is float32 [1,6], and input 'crop' (float32 [M,3])"),
        ("{crop: crops.crop}", "{crop: crops.whole}", DataError, "crops.whole is int64 [1,3], and input 'crop'"),
        ("host:join", "host:lines", DataError, "stage 'join' returned a list; return arrays by name, as a dict"),
        ("host:join", "host:objects", DataError, "output 'scores' holds objects; return numbers or text"),
        ("host:join", "host:ragged", DataError, "output 'scores' is no array"),
        ("host:join", "host:broken", DataError, "stage 'join' failed: ZeroDivisionError: integer division or modulo by zero (sample 0"),
        ("host:join", "host:writes", DataError, "read-only"),
        ("host:join", "host:draws", DataError, "stage 'join' gives other bits when it runs again"),
        ("host:join", "host:words", DataError, "the answer of the pipeline is text; name a task that reads text"),
        ("stages:", "answer: crops\nstages:", InputError, "stage 'join' feeds no stage"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(file: Path, old: str, new: str, kind: type[Exception], says: str) -> None:
    more = """
def crops(x, heat, _before=crops):
    return {**_before(x, heat), "wide": x, "whole": np.zeros((1, 3), np.int64)}
def lines(scores): return [1]
def objects(scores): return {"scores": [{}]}
def ragged(scores): return {"scores": [[1], [1, 2]]}
def broken(scores): return {"scores": 1 // 0}
def words(scores): return {"scores": "a"}
def writes(scores):
    scores[:] = 0
    return {"scores": scores}
"""
    (file.parent / "host.py").write_text((file.parent / "host.py").read_text() + more)
    with pytest.raises(kind) as error:
        pipeline = opened(file, CASCADE.replace(old, new, 1))
        evaluate_pipeline(pipeline, pipeline.open_data(None, limit=3))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_code_is_refused_unless_it_is_allowed(file: Path) -> None:
    from onnxfi.campaign.spec.pipeline_file import load_pipeline
    from onnxfi.runtime.pipeline.open_pipeline import open_pipeline

    with pytest.raises(InputError, match=r"stage 'crops' has code run .*'host:crops'.* --allow-code"):
        open_pipeline(load_pipeline(file))


def test_a_damaged_model_names_its_stage(file: Path) -> None:
    (file.parent / "reader.onnx").unlink()
    (file.parent / "reader.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"stage 'reader': .*the file is empty"):
        opened(file)


def test_numbers_fill_an_input() -> None:
    assert filled(2, Port("x", "int64", ("N", 3)), 0, 4).tolist() == [[2, 2, 2]] * 4


def test_rows_run_in_batches_of_a_stage(file: Path) -> None:
    whole = opened(file)
    data = whole.open_data(file.parent / "d.npz")
    by_one = opened(file, CASCADE.replace("{crop: crops.crop}", "{crop: crops.crop}, batch: 1"))
    for one, other in zip(whole.front(data), by_one.front(data), strict=True):
        np.testing.assert_allclose(one[Source("join", "scores")], other[Source("join", "scores")], rtol=1e-5)
