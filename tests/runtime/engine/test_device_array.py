"""Arrays whose values also lie on a device: what keeps the value, and what is of the host alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxfi.runtime.engine.device_array import DeviceArray
from onnxfi.runtime.engine.ports import same_by, same_bytes

HERE = ("cuda", 0)


def made() -> DeviceArray:
    return DeviceArray.over(np.arange(6, dtype=np.float32).reshape(2, 3), "value", HERE)


@pytest.mark.parametrize(
    "derive",
    [
        lambda a: a[:1], lambda a: a[[0, 1]], lambda a: a.copy(), lambda a: a.view(np.uint32), lambda a: a + 0,
        lambda a: a.reshape(-1), lambda a: np.stack([a, a]), np.array, np.ascontiguousarray,
    ],
)  # fmt: skip
def test_what_is_made_of_it_is_of_the_host(derive: object) -> None:
    found = derive(made())  # type: ignore[operator]
    assert not isinstance(found, DeviceArray) or found.value_on(HERE) is None


def test_it_cannot_be_written_to_and_its_copies_can() -> None:
    array = made()
    for write in (lambda: array.__setitem__((0, 0), 1), lambda: array.fill(0)):
        with pytest.raises(ValueError, match="read-only"):
            write()
    copy = np.array(array)
    copy[0, 0] = 7
    assert array[0, 0] == 0


def test_it_compares_as_any_array() -> None:
    assert same_bytes(made(), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert same_by(made(), made(), 0).all()


def test_leaving_the_device() -> None:
    array = made()
    assert (array.value_on(HERE), array.device_bytes) == ("value", 24)
    array.leave_device()
    assert (array.value_on(HERE), array.device_bytes) == (None, 0)
