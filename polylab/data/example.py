"""One example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One text-to-text pair.

    `input` is the bare content. `instruction`, where there is one, is the whole input with the
    instruction already in it. Any of `references` is a correct answer; training uses `target`. Of a
    conversation `messages` has the whole, as roles and contents; `target` is its last answer, and
    `input` what comes before it, as plain text.
    """

    input: str
    target: str
    references: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None
    instruction: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.target,))
