"""The value of a pipeline: order, names, circles, and what is declared of the data."""

from __future__ import annotations

from itertools import permutations

import pytest

from onnxfi.errors import SpecError
from onnxfi.runtime.pipeline.pipeline import Pipeline, PipelineLoop, Source, Stage, parse_port


def stage(name: str, *sources: str, **fields: object) -> Stage:
    inputs = {f"x{k}": source for k, source in enumerate(sources)}
    return Stage(name, **{"model": f"{name}.onnx", "inputs": inputs, **fields})  # type: ignore[arg-type]


A, B, C, D = stage("a", "data.x"), stage("b", "a.y"), stage("c", "a.y", "data.z"), stage("d", "b.y", "c.y")


@pytest.mark.parametrize("stages", [*permutations([A, B, C, D])])
def test_stages_run_behind_all_that_feed_them(stages: tuple[Stage, ...]) -> None:
    order = [one.name for one in Pipeline(stages, answer="d").order]
    assert sorted(order) == list("abcd")
    assert all(order.index(s) < order.index(t) for s, t in ("ab", "ac", "bd", "cd"))


def test_stages_behind_one_and_in_front_of_it() -> None:
    made = Pipeline([A, B, C, D])
    assert [one.name for one in made.behind("b")] == ["d"]
    assert [one.name for one in made.front("b")] == ["a", "c"]
    assert {one.name for one in made.behind("a")} == {"b", "c", "d"} and not made.front("a")
    assert made.front() == made.order


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Pipeline([]), "a pipeline has stages"),
        (lambda: Pipeline([A, A]), "2 stages are named 'a'"),
        (lambda: Pipeline([stage("a", "b.y"), stage("b", "a.y")]), "in a circle: (a → b → a|b → a → b)"),
        (lambda: Pipeline([stage("a", "a.y")]), "in a circle: a → a"),
        (lambda: Pipeline([A, stage("b", "aa.y")]), "there is no stage 'aa'; closest: 'a'"),
        (lambda: Pipeline([A, B], answer="e"), "there is no stage 'e'"),
        (lambda: Pipeline([A, B], answer="a"), "stage 'b' feeds no stage and is not in the answer"),
        (lambda: Pipeline([A], faults="b"), "there is no stage 'b'"),
        (lambda: Pipeline([stage("f", "data.x", model=None, function=dict)], faults="f"), "'f' is host code"),
        (lambda: Pipeline([A], data={"x": "fload32 [N]"}), "no type 'fload32'; closest: 'float32'"),
        (lambda: stage("data", "data.x"), "'data' is not a name of a stage"),
        (lambda: stage("a b", "data.x"), "'a b' is not a name of a stage"),
        (lambda: stage("a", "x"), "'x' is no source; give data.NAME, STAGE.OUTPUT or a number"),
        (lambda: stage("a", "data."), "'data.' is no source"),
        (lambda: stage("a"), "stage 'a' has no inputs"),
        (lambda: stage("a", "data.x", batch=0), "batch 0 of stage 'a' is out of range"),
        (lambda: stage("a", "data.x", function="m:f"), "has both of model and function"),
        (lambda: stage("a", "data.x", model=None), "has neither of model and function"),
        (lambda: stage("a", "data.x", model=None, function="m.f"), "not of the form module:function"),
        (lambda: stage("a", "data.x", loop=PipelineLoop(1, "x1", {})), "'x1' is none of its inputs; closest: 'x0'"),
        (lambda: stage("a", "data.x", model=None, function="m:f", loop=PipelineLoop(1, "x0", {})), "a loop and no model"),
        (lambda: PipelineLoop(1, (), {"state": "next"}), "add over"),
        (lambda: PipelineLoop(1, "x", {"x": "y"}), "both in over and in carry"),
    ],
)  # fmt: skip
def test_what_is_no_pipeline_is_refused(make: object, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make()  # type: ignore[operator]


def test_the_stage_of_faults_is_named_where_there_are_several() -> None:
    made = Pipeline([A, B, C, D], faults=["a", "b"])
    assert made.faulty_stage("b") is B and Pipeline([A]).faulty_stage(None) is A
    with pytest.raises(SpecError, match="name it with --stage: a, b"):
        made.faulty_stage(None)
    with pytest.raises(SpecError, match="no faults go into stage 'c' of this pipeline; they may go into a, b"):
        made.faulty_stage("c")


def test_numbers_are_no_sources() -> None:
    made = stage("a", "data.x", "b.y.z")
    assert made.sources == (Source("data", "x"), Source("b", "y.z"))
    made = Stage("a", model="a.onnx", inputs={"rate": 16000, "x": "data.x"})
    assert made.numbers == {"rate": 16000} and list(made.reads) == ["x"]


@pytest.mark.parametrize("text", ["", "uint8", "uint8 [N,]", "uint8 [N,-1]", "uint8 [[N]]", "object [N]", 8])
def test_what_is_no_type_and_shape_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="data 'x'"):
        parse_port("x", text)
