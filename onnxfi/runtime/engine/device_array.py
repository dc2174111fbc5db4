"""Arrays whose values also lie on a device, so that they go from one session to the next without the host."""

from __future__ import annotations

from typing import Any, Self

import numpy as np


class DeviceArray(np.ndarray[Any, np.dtype[Any]]):
    """An output of a session: an array of the host, and the same values on the device that computed them.

    A session on that device takes the values from there. The array cannot be written to, and what is made of it (a
    view, a copy, a result) is of the host alone: so faults are put into arrays of the host, and are copied to the
    device when they are fed.

    Examples
    --------
    >>> array = DeviceArray.over(np.zeros(2, np.float32), "a value of the runtime", ("cuda", 0))
    >>> array.value_on(("cuda", 0)), array.value_on(("cuda", 1)), (array + 1).value_on(("cuda", 0))
    ('a value of the runtime', None, None)
    """

    _value: Any = None
    _device: tuple[str, int] | None = None

    @classmethod
    def over(cls, array: np.ndarray[Any, Any], value: Any, device: tuple[str, int]) -> Self:
        """Return the array with its value on a device."""
        found = array.view(cls)
        found._value, found._device = value, device
        found.setflags(write=False)
        return found

    def value_on(self, device: tuple[str, int]) -> Any:
        """Return the value on a device; None if it does not exist."""
        return self._value if self._device == device else None

    @property
    def device_bytes(self) -> int:
        """Return the bytes that it takes on a device."""
        return self.nbytes if self._device is not None else 0

    def leave_device(self) -> None:
        """Give the memory of the device back."""
        self._value = self._device = None
