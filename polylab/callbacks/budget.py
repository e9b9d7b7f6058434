"""A share of the training's time that something may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["TimeBudget"]


class TimeBudget:
    """Says whether something may be done once more, by what it took before.

    It may where what was spent and the last time together stay within `max_share` of the time
    since `begin`. None: always.

    Args:
        max_share: From 0 (never) to 1.
    """

    def __init__(self, max_share: float | None) -> None:
        self._max_share = max_share
        self.spent = 0.0
        self.last = 0.0
        self.begin()

    def begin(self) -> None:
        """Count from now on; what the last time took stays known."""
        self.spent, self._began = 0.0, time.perf_counter()

    @property
    def allows(self) -> bool:
        """Whether it may be done now."""
        if self._max_share is None:
            return True
        since = time.perf_counter() - self._began
        return self.spent + self.last <= self._max_share * since

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done inside counts."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.last = time.perf_counter() - began
            self.spent += self.last
