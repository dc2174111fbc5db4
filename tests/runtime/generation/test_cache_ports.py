"""The cache of a decoder, found by name and shape."""

from __future__ import annotations

import pytest

from onnxfi.errors import InputError
from onnxfi.runtime.engine.ports import Port
from onnxfi.runtime.generation.cache_ports import check_sizes, match_cache

SHAPE = ("N", 2, "P", 8)


@pytest.mark.parametrize(
    ("past", "present"),
    [("past_key_values.3.key", "present.3.key"), ("past_key_values.3.decoder.value", "present.3.decoder.value"),
     ("past_key_3", "present_key_3"), ("past_3.key", "present_3.key"), ("past.3.value", "present.3.value")],
)  # fmt: skip
def test_names_of_exporters_are_matched(past: str, present: str) -> None:
    (one,) = match_cache([Port("input_ids", "int64", ("N", "T")), Port(past, "float16", SHAPE)],
                         [Port("logits", "float32", None), Port(present, "float16", SHAPE)])  # fmt: skip
    assert (one.past.name, one.present, one.layer, one.part) == (
        past,
        present,
        3,
        "V" if past.endswith("value") else "K",
    )
    assert one.empty().shape == (1, 2, 0, 8)


def test_the_cache_of_an_encoder_has_no_output_of_its_own() -> None:
    (one,) = match_cache([Port("past_key_values.0.encoder.key", "float32", SHAPE)], [])
    assert one.cross and one.present is None


@pytest.mark.parametrize(
    ("outputs", "words"),
    [([Port("kept.0.key", "float32", SHAPE)], ("'past_key_values.0.key' has no output", "outputs 'kept.0.key'")),
     ([Port("present.0.key", "float16", SHAPE)], ("float16", "does not fit")),
     ([Port("present.0.key", "float32", ("N", 4, "P", 8))], ("[N,4,P,8]", "does not fit"))],
)  # fmt: skip
def test_a_cache_without_its_output_is_refused_with_both_names(outputs: list[Port], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        match_cache([Port("past_key_values.0.key", "float32", SHAPE)], outputs)
    assert all(word in str(caught.value) for word in words)


def test_joined_keys_and_values_are_refused() -> None:
    with pytest.raises(InputError, match="one tensor for keys and one for values"):
        match_cache([Port("past_0", "float32", (2, "N", 2, "P", 8))], [Port("present_0", "float32", None)])


def test_open_sizes_are_refused() -> None:
    port = Port("past_key_values.0.key", "float32", ("N", "H", "P", 8))
    with pytest.raises(InputError, match="numbers of heads"):
        check_sizes(match_cache([port], [Port("present.0.key", "float32", None)]), "the model")
