"""What of the task the input carries."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, get_args

from polylab.data.example import Example
from polylab.data.table import as_table
from polylab.data.tasks import SPLITS, TaskCollection, quote

Prompt = Literal["none", "name", "instruction"]


def check_prompt(prompt: str) -> None:
    """Accept one of none, name, instruction.

    Raises:
        ValueError: If it is another word.
    """
    if prompt not in get_args(Prompt):
        raise ValueError(
            f"data.prompt={prompt!r} · valid: {', '.join(get_args(Prompt))} · choose one of them."
        )


def render_input(example: Example, *, task_name: str, prompt: str) -> str:
    """The text that the model reads: the bare input, `NAME: input`, or with its instruction.

    For `instruction` the example must have one (see `check_instructions`).
    """
    if prompt == "none":
        return example.input
    if prompt == "name":
        return f"{task_name}: {example.input}"
    assert example.instruction is not None
    return example.instruction


def check_instructions(collection: TaskCollection) -> None:
    """Accept tasks whose examples all have an instruction.

    Raises:
        ValueError: If one has none.
    """
    missing = [
        task.name
        for task in collection.tasks
        if not all(as_table(task.split(s)).all_instructed() for s in SPLITS)
    ]
    if missing:
        raise ValueError(
            f"data.prompt=instruction, and examples of {quote(missing)} have no instruction · "
            'give an instructions.json or an "instruction" per row, or set data.prompt=none|name.'
        )


def choose_paraphrase(paraphrases: Sequence[str], text: str) -> str:
    """One of the paraphrases, always the same for the same text."""
    number = int.from_bytes(blake2b(text.encode(), digest_size=8, salt=b"prompt").digest(), "big")
    return paraphrases[number % len(paraphrases)]
