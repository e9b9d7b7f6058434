"""Splits that leak nothing: which side an example is on follows from its text alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from polylab.data.example import Example
from polylab.data.tasks import TaskData

Side = Literal["train", "validation", "test"]


def split_text(example: Example) -> str:
    """The text that decides the side: the input (or, if empty, the instruction), spaces unified."""
    return " ".join((example.input if example.input.strip() else example.instruction or "").split())


def side_of(text: str, *, validation_share: float, test_share: float) -> Side:
    """The side that a text is on, the same for every task, machine and order of rows."""
    position = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "train"


def check_shares(validation_share: float, test_share: float) -> None:
    """Accept shares that leave something to train on.

    Raises:
        ValueError: If a share is negative or both together reach 1.
    """
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise ValueError(
            f"data.validation_share={validation_share} and data.test_share={test_share} · neither "
            "may be negative and their sum must be below 1 · lower them."
        )


def split_task(
    task: TaskData, *, validation_share: float, test_share: float, min_inputs: int
) -> TaskData:
    """Move shares of the training rows to validation and test; a tiny task keeps all in train.

    Tiny is one with fewer than `min_inputs` distinct inputs. Rows with the same input stay
    together, so that their targets stay each other's references.
    """
    texts = [split_text(example) for example in task.train]
    if len(set(texts)) < min_inputs or validation_share == test_share == 0:
        return task
    sides: dict[Side, list[Example]] = {"train": [], "validation": [], "test": []}
    for example, text in zip(task.train, texts, strict=True):
        side = side_of(text, validation_share=validation_share, test_share=test_share)
        sides[side].append(example)
    return replace(
        task,
        train=sides["train"],
        validation=[*task.validation, *sides["validation"]],
        test=[*task.test, *sides["test"]],
    )


def dedupe(examples: Sequence[Example]) -> list[Example]:
    """Without exact duplicates (instruction, input and target), in the order given."""
    first: dict[tuple[str | None, str, str], Example] = {}
    for example in examples:
        first.setdefault((example.instruction, example.input, example.target), example)
    return list(first.values())


def share_references(examples: Sequence[Example]) -> list[Example]:
    """Every row kept; rows with the same input have the references of all of them.

    An example's own target stays its first reference.
    """
    answers: dict[tuple[str | None, str], list[str]] = {}
    for example in examples:
        answers.setdefault((example.instruction, example.input), []).extend(example.references)
    return [
        _referring(example, answers[example.instruction, example.input]) for example in examples
    ]


def _referring(example: Example, answers: Sequence[str]) -> Example:
    references = tuple(dict.fromkeys((example.target, *answers)))
    return example if references == example.references else replace(example, references=references)


def pairs_of(examples: Iterable[Example]) -> set[bytes]:
    """Text and target of every example, as 16 bytes each: there may be millions."""
    return {_pair(split_text(example), example.target) for example in examples}


def _pair(text: str, target: str) -> bytes:
    return blake2b(f"{len(text)} {text}{target}".encode(), digest_size=16).digest()


def without_held_out(
    train: Sequence[Example], held_out: Sequence[Example], pairs: set[bytes]
) -> list[Example]:
    """Rows whose text is in none of the task's `held_out`, nor whose text and target in `pairs`.

    `pairs` are the held-out examples of all tasks: another task may ask something else of the same
    input, but the very same example must not be trained on.
    """
    if not held_out and not pairs:
        return list(train)
    texts = {split_text(example) for example in held_out}
    return [
        example
        for example in train
        if (text := split_text(example)) not in texts and _pair(text, example.target) not in pairs
    ]
