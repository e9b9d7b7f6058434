"""The inputs of Tk-Instruct (https://arxiv.org/abs/2204.07705): definition, examples, instance."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polylab.data.sources.sni_files import definition, texts


@dataclass(frozen=True)
class Prompting:
    """What an input with its instruction holds.

    Args:
        positive: Positive examples at most.
        negative: Negative examples at most.
        explanations: Whether examples come with theirs.
        max_words: An example that would make the whole longer is left out, with all after it of
            its kind.
    """

    positive: int
    negative: int
    explanations: bool
    max_words: int


@dataclass(frozen=True)
class Beginning:
    """What is before every input of a task.

    Args:
        definition: What the task is.
        kinds: Positive and negative examples, in their order.
        max_words: Of the whole input.
    """

    definition: str
    kinds: Sequence[Sequence[str]]
    max_words: int

    def before(self, text: str) -> str:
        """The whole input: definition, as many examples of each kind as fit, the instance."""
        end = f"Now complete the following example -\nInput: {_ended(text)}\nOutput: "
        words = len(self.definition.split()) + len(end.split())
        kept = []
        for examples in self.kinds:  # a negative one may fit where a positive one does not
            for example in examples:
                longer = words + len(example.split())
                if longer > self.max_words:
                    break
                words = longer
                kept.append(example)
        return "".join([self.definition, *kept, end])


def beginning(content: Mapping[str, Any], prompting: Prompting, path: Path) -> Beginning:
    """What is before the inputs of the task in a file.

    Raises:
        ValueError: If its definition or an example is malformed.
    """
    counts = {"Positive": prompting.positive, "Negative": prompting.negative}
    kinds = [
        [
            _example(row, f"{kind} Example {number}", prompting, path)
            for number, row in enumerate(_rows(content, f"{kind} Examples", path)[:count], 1)
        ]
        for kind, count in counts.items()
    ]
    start = f"Definition: {_ended(definition(content, path))}\n\n"
    return Beginning(start, kinds, prompting.max_words)


def _rows(content: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    found = content.get(key) or []
    if not isinstance(found, list):
        raise ValueError(
            f"{path}: {key!r} is a {type(found).__name__} · it must be a list · mend or remove "
            "the file."
        )
    return found


def _example(row: Any, name: str, prompting: Prompting, path: Path) -> str:
    lines = [f" {name} -"]
    lines.append(f"Input: {_first(row, 'input', name, path)}")
    lines.append(f" Output: {_first(row, 'output', name, path)}")
    if prompting.explanations and row.get("explanation"):
        lines.append(f" Explanation: {_first(row, 'explanation', name, path)}")
    return "\n".join(lines) + "\n\n"


def _first(row: Any, key: str, name: str, path: Path) -> str:
    found = texts(row, key, f"{path}: {name}") if isinstance(row, dict) else []
    if not found:
        raise ValueError(
            f"{path}: {name} has no {key!r} · an example has an input and an output · mend or "
            "remove it."
        )
    return _ended(found[0])


def _ended(text: str) -> str:
    """Stripped, with a full stop unless it ends with punctuation."""
    text = text.strip()
    return text if text and text[-1] in string.punctuation else f"{text}."
