"""What a source noticed, turned into sentences."""

from __future__ import annotations

from collections import Counter


class Notes:
    """Counts per task of what was left out, and other sentences for the user."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._first: list[str] = []
        self._last: list[str] = []

    def add(self, what: str, name: str, number: int) -> None:
        """Count `number` more of `what` for the task `name`."""
        if number:
            self._counts.setdefault(what, Counter())[name] += number

    def say(self, sentence: str, *, first: bool = False) -> None:
        """Add a sentence after the counts, or before them."""
        (self._first if first else self._last).append(sentence)

    def sentences(self) -> list[str]:
        """All of them."""
        counts = [
            f"{what}: {sum(found.values())} ("
            + ", ".join(f"{name} {number}" for name, number in sorted(found.items()))
            + ")"
            for what, found in self._counts.items()
        ]
        return [*self._first, *counts, *self._last]
