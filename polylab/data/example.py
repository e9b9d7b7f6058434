"""One example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One text-to-text pair.

    `input` is the bare content. `instruction`, where there is one, is the whole input with the
    instruction already in it. Any of `references` is a correct answer; training uses `target`.
    """

    input: str
    target: str
    references: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.target,))
