"""Sequences: how texts are decoded, error rates against jiwer, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from onnxfi.errors import DataError, InputError
from onnxfi.runtime.data.batches import Data
from onnxfi.runtime.data.sample_outputs import Outputs
from onnxfi.runtime.engine.ports import Port
from onnxfi.tasks.kinds.sequence import Charset, joined_words, sequence
from onnxfi.tasks.outcomes import GoldenRun, judge
from onnxfi.tasks.registry import choose_task, find_task
from onnxfi.tasks.task import ModelOutputs, Task


def golden_of(output: Any, labels: Any = None, task: Task | None = None) -> GoldenRun:
    run = (Outputs(np.arange(len(output)), {"y": np.asarray(output)}),)
    labels = None if labels is None else np.array(labels, object)
    return GoldenRun.of(run, labels, task or sequence(), "auto", 0.0, ("nonfinite",))


def ctc(*rows: list[int], classes: int = 4) -> Any:
    return np.eye(classes, dtype=np.float32)[list(rows)]


@pytest.fixture
def letters(tmp_path: Path) -> str:
    (tmp_path / "letters.txt").write_text("a\nb\nc\n")
    return str(tmp_path / "letters.txt")


@pytest.mark.parametrize(
    ("steps", "text"),
    [([0, 0, 0, 0], ""), ([1, 1, 0, 1], "aa"), ([1, 2, 2, 3], "abc"), ([0, 3, 0, 0], "c"), ([1, 1, 1, 1], "a")],
)
def test_ctc_keeps_one_of_equal_steps_and_drops_blanks(steps: list[int], text: str, letters: str) -> None:
    assert golden_of(ctc(steps), task=sequence(charset=letters)).answers.values == (text,)


def test_the_blank_may_be_the_last_class_and_the_space_one_more(letters: str) -> None:
    assert Charset(("a", "b", "c"), -1).texts(ctc([0, 3, 1, 2])) == ["abc"]
    assert Charset(("a", "b", "c")).texts(ctc([1, 4, 4, 2], classes=5)) == ["a b"]


def test_tokens_become_text_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\nhello\nwor\n##ld\n[SEP]\n")
    task = sequence(tokenizer=str(tmp_path / "vocab.txt"), end=4)
    assert golden_of(np.array([[1, 2, 3, 4, 1], [0, 2, 3, 3, 3]]), task=task).answers.values == (
        "hello world",
        "worldldld",
    )
    scores = np.eye(5, dtype=np.float32)[[[1, 4, 2]]]
    assert golden_of(scores, task=task).answers.values == ("hello",)
    assert joined_words(["a"], [7, -1, 0]) == "a", "a token beyond the vocabulary is none"


def test_a_tokenizer_of_hugging_face_makes_text(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hello": 0, "world": 1, "?": 2}, unk_token="?"))
    made.save(str(tmp_path / "tokenizer.json"))
    task = sequence(tokenizer=str(tmp_path / "tokenizer.json"))
    assert golden_of(np.array([[0, 1], [1, -1]]), task=task).answers.values == ("hello world", "world")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(InputError, match=r"is no tokenizer\.json"):
        sequence(tokenizer=str(tmp_path / "tokenizer.json"))


def test_a_sample_is_wrong_where_its_text_changed(letters: str) -> None:
    golden = golden_of(ctc([1, 2, 0, 0], [3, 3, 0, 1]), task=sequence(charset=letters))
    scores = golden.run[0].arrays["y"]
    near = scores * np.float32(0.5)
    assert judge(golden, near).outcome == "masked", "other scores, the same text"
    assert judge(golden, np.roll(scores, 1, axis=1)).metrics["text_changed"] == 0.5, "cac, and ab with other blanks"
    other = scores.copy()
    other[0, 2, 3] = 2
    found = judge(golden, other)
    assert (found.outcome, found.metrics["text_changed"], found.metrics["text_distance"]) == ("sdc", 0.5, 0.25)
    broken = scores.copy()
    broken[0, 0, 0] = np.nan
    assert judge(golden, broken).outcome == "due"


def test_error_rates_are_jiwers_on_a_hundred_random_cases() -> None:
    random = np.random.default_rng(0)
    words = np.array(["cat", "dogs", "a", "über", "x1"])

    def text() -> str:
        return " ".join(random.choice(words, int(random.integers(1, 5))))

    for _ in range(100):
        labels, first = [text() for _ in range(6)], [text() for _ in range(6)]
        faulty = [text() if random.random() < 0.5 else one for one in first]
        found = judge(golden_of(np.array(first, object), labels), np.array(faulty, object)).metrics
        assert found["cer"] == pytest.approx(jiwer.cer(labels, faulty))
        assert found["wer"] == pytest.approx(jiwer.wer(labels, faulty))
        assert found["exact"] == np.mean([a == b for a, b in zip(labels, faulty, strict=True)])
        assert found["text_distance"] == pytest.approx(jiwer.cer(first, faulty))


def test_empty_labels_have_no_error_rate() -> None:
    found = judge(golden_of(np.array(["", "a"], object), ["", ""]), np.array(["", ""], object)).metrics
    assert "cer" not in found and found["exact"] == 1.0


@pytest.mark.parametrize(
    ("task", "output", "labels", "says"),
    [
        ("sequence", np.zeros((2, 4, 3), np.float32), None, "give charset=FILE or tokenizer=FILE"),
        ("sequence:charset=letters.txt", np.zeros((2, 4, 9), np.float32), None, "scores 9 classes, and the charset has 3"),
        ("sequence:charset=letters.txt", np.zeros((2, 4), np.float32), None, "CTC scores have [N,T,classes]"),
        ("sequence:charset=letters.txt,blank=7", np.zeros((2, 4, 4), np.float32), None, "blank is class 7 of 4"),
        ("sequence:tokenizer=letters.txt", np.zeros((2, 4), np.float32), None, "tokens are integers [N,T]"),
        ("sequence", np.array([["a", "b"], ["c", "d"]]), None, "give one per sample"),
        ("sequence", np.array(["a", "b"]), [1, 2], "the task takes texts"),
    ],
)  # fmt: skip
def test_outputs_and_labels_of_another_task_are_refused(
    task: str, output: Any, labels: Any, says: str, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(letters).parent)
    data = Data((), 2, None if labels is None else np.array(labels), False, "", None, None)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        choose_task(task, [Outputs(np.arange(2), {"y": output})], "y", data)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sequence:charset=gone.txt", "cannot read 'gone.txt': No such file"),
        ("sequence:tokenizer=gone.json", "cannot read 'gone.json': No such file"),
        ("sequence:charset=a,tokenizer=b", "give charset or tokenizer, not both"),
        ("sequence:charset=a,blank=x", "blank must be a whole number; given 'x'"),
        ("sequence:chars=a", "no option 'chars'; closest: 'charset'"),
    ],
)
def test_options_that_are_none(spec: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        find_task(spec)
    assert says in str(caught.value)


def test_the_output_is_the_one_that_fits(letters: str) -> None:
    ports = (Port("text", "string", ("N",)), Port("y", "float32", ("N", "T", 4)), Port("n", "int64", ("N", "T")))
    data = Data((), 2, None, False, "", None, None)  # type: ignore[arg-type]
    for task, name in ((sequence(), "text"), (sequence(charset=letters), "y")):
        assert task.reads is not None and task.reads(ModelOutputs(ports, None, data)) == (name,)
