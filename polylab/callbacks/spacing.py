"""A bounded choice out of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["evenly_spaced"]

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, first and last among them."""
    if len(items) <= most:
        return [*items]
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]
