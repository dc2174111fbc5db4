"""Values that are kept within a limit, where the one that was used longest ago is dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


def one(value: object) -> int:
    """Return the cost of values that are counted."""
    return 1


class RecentlyUsed(Generic[Value]):
    """Values by key, as many as cost no more than `limit` together; the last one stays whatever it costs.

    >>> kept = RecentlyUsed[str](2)
    >>> [kept.of(key, lambda: key.upper()) for key in "abac"], [*kept.values]
    (['A', 'B', 'A', 'C'], ['a', 'c'])
    """

    def __init__(self, limit: int, cost: Callable[[Value], int] = one) -> None:
        self.limit, self.cost, self.total = limit, cost, 0
        self.values: OrderedDict[Hashable, Value] = OrderedDict()

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made where none is kept."""
        if key not in self.values:
            found = make()
            if key in self.values:  # of two threads that made it the first one's is kept
                return self.values[key]
            self.values[key] = found
            self.total += self.cost(found)
            while self.total > self.limit and len(self.values) > 1:
                self.total -= self.cost(self.values.popitem(last=False)[1])
        self.values.move_to_end(key)
        return self.values[key]
