"""Which objects of some classes have come to life since, and live on: a leak, if all is over."""

from __future__ import annotations

import gc
import weakref
from collections import Counter


class Alive:
    """Counts objects of `classes`, apart from those that earlier tests of the process left."""

    def __init__(self, *classes: type) -> None:
        self._classes = classes
        gc.collect()
        self._before = weakref.WeakSet(self._all())

    def count(self) -> Counter[str]:
        """How many there are of each class, if any."""
        gc.collect()
        return Counter(type(one).__name__ for one in self._all() if one not in self._before)

    def _all(self) -> list[object]:
        return [one for one in gc.get_objects() if type(one) in self._classes]
