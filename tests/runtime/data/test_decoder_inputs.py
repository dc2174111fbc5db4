"""Inputs of decoders that follow from tokens, in data of every kind; numbers beyond the tables that they look up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxfi.errors import DataError
from onnxfi.graph.dataflow.lookup_tables import LookupTable
from onnxfi.runtime.data.decoder_inputs import check_rows, completed, is_cache, is_decoder
from onnxfi.runtime.data.open_data import open_data
from onnxfi.runtime.engine.ports import Port

PORTS = (
    Port("input_ids", "int64", ("batch", "sequence")),
    Port("attention_mask", "int64", ("batch", "total")),
    Port("position_ids", "int64", ("batch", "sequence")),
    Port("past_key_values.0.key", "float16", ("batch", 4, "past", 24)),
    Port("past_key_values.0.value", "float16", ("batch", 4, "past", 24)),
)
IDS = np.arange(12).reshape(2, 6) % 5


def test_masks_positions_and_an_empty_cache_follow_from_tokens() -> None:
    found = completed({"input_ids": IDS}, PORTS)
    assert (found["attention_mask"] == np.ones((2, 6))).all() and found["attention_mask"].dtype == np.int64
    assert (found["position_ids"] == [range(6)] * 2).all()
    cache = found["past_key_values.0.value"]
    assert (cache.shape, cache.dtype) == ((2, 4, 0, 24), np.float16)
    assert list(found) == [port.name for port in PORTS]


def test_positions_count_what_a_mask_shows() -> None:
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    found = completed({"input_ids": IDS, "attention_mask": mask}, PORTS)
    assert found["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]]
    assert found["attention_mask"] is mask


def test_what_is_given_stays_and_other_models_get_nothing() -> None:
    cache = np.ones((2, 4, 3, 24), np.float16)
    assert completed({"input_ids": IDS, "past_key_values.0.key": cache}, PORTS)["past_key_values.0.key"] is cache
    assert completed({"input_ids": IDS}, PORTS[:2]).keys() == {"input_ids"}, "an encoder has no cache"
    assert completed({"x": IDS}, PORTS).keys() == {"x"}
    branch = Port("use_cache_branch", "bool", (1,))
    assert completed({"input_ids": IDS}, (*PORTS, branch))["use_cache_branch"].tolist() == [False]


def test_caches_are_known_by_their_names() -> None:
    dims = ("N", 2, "past", 8)
    names = ("past_key_values.11.encoder.key", "past_key_values_3_key", "past_0_key", "past.1")
    assert all(is_cache(Port(name, "float32", dims)) for name in names)
    assert not any(is_cache(Port(name, "float32", dims)) for name in ("past", "passed_0", "input"))
    assert not is_cache(Port("past_key_values.0.key", "float32", None))
    assert is_decoder(PORTS) and not is_decoder(PORTS[3:])


@pytest.mark.parametrize("source", ["arrays", "archive", "synthetic"])
def test_data_of_every_kind_is_completed(source: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", input_ids=IDS)
    given: Any = {"arrays": {"input_ids": IDS}, "archive": tmp_path / "ids.npz", "synthetic": None}[source]
    data = open_data(given, PORTS)
    assert data.inputs == tuple(port.name for port in PORTS)
    for size in (1, 2):
        feeds = [batch.feeds for batch in data.batches(size)]
        assert all(one["past_key_values.0.key"].shape == (size, 4, 0, 24) for one in feeds)
        assert all(one["position_ids"][0, -1] == one["input_ids"].shape[1] - 1 for one in feeds)
    assert len(data.digest) == 64


def test_numbers_beyond_a_table_are_refused_with_what_helps() -> None:
    data = open_data({"input_ids": IDS}, PORTS)
    check_rows(data, [LookupTable("input_ids", "w", 5), LookupTable("position_ids", "p", 6), LookupTable("no", "n", 1)])
    with pytest.raises(DataError, match="another vocabulary: take the tokenizer of the model"):
        check_rows(data, [LookupTable("input_ids", "w", 4)])
    with pytest.raises(DataError, match="take windows of 5 tokens or fewer"):
        check_rows(data, [LookupTable("position_ids", "p", 5)])
    with pytest.raises(DataError, match="goes below its end"):
        check_rows(open_data({"input_ids": IDS - 9}, PORTS), [LookupTable("input_ids", "w", 5)])
    check_rows(open_data(None, PORTS), [LookupTable("input_ids", "w", 1)])
