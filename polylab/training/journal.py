"""What a model answered to evaluation batches, kept on disk as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Answers", "Journal"]


class Answers(NamedTuple):
    """To one batch."""

    losses: Float[Tensor, " batch"]  # summed over the example's tokens
    tokens: Int[Tensor, " batch"]  # of its label
    texts: list[str]
    choices: list[dict[str, float]]  # the scores of each example's options


class Journal:
    """A line for each batch, by its number, in a file that a killed process leaves usable.

    Numbers come back bit for bit, so that an evaluation that went on gives what one at a stretch
    does.

    Args:
        path: Of the file; it may be there already.
        about: What the answers depend on; of a file that is there it must be the same.

    Raises:
        ValueError: If the file is of another evaluation, or damaged before its last line.
    """

    def __init__(self, path: str | os.PathLike[str], *, about: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._found: dict[int, Answers] = {}
        head = json.dumps(about, sort_keys=True)
        lines = self._path.read_bytes().split(b"\n") if self._path.is_file() else []
        whole = lines[:-1]  # what follows the last line break was cut off
        if whole and whole[0].decode() != head:
            raise ValueError(
                f"{path} is of another evaluation ({_difference(whole[0], about)}) · give another "
                "folder, or remove the file."
            )
        for number, line in enumerate(whole[1:], 2):
            try:
                index, losses, tokens, texts, choices = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error} · remove the file.") from None
            self._found[index] = Answers(
                torch.tensor(losses, dtype=torch.float32), torch.tensor(tokens), texts, choices
            )
        kept = b"".join(line + b"\n" for line in whole)
        with self._path.open("r+b" if lines else "wb") as file:
            file.truncate(len(kept))
        if not whole:
            self._append(head)

    def __len__(self) -> int:
        return len(self._found)

    def find(self, index: int) -> Answers | None:
        """The answers to a batch, if they are known."""
        return self._found.get(index)

    def add(self, index: int, answers: Answers) -> None:
        """Keep the answers to a batch."""
        losses, tokens, *rest = answers
        self._append(json.dumps([index, losses.float().tolist(), tokens.tolist(), *rest]))
        self._found[index] = answers

    def _append(self, line: str) -> None:
        with self._path.open("ab") as file:
            file.write(line.encode() + b"\n")


def _difference(line: bytes, about: Mapping[str, Any]) -> str:
    try:
        other: Any = json.loads(line)
    except ValueError:
        other = None
    if not isinstance(other, dict):
        return "its first line does not say which"
    names = sorted(k for k in {*other, *about} if other.get(k) != about.get(k))
    return f"other {', '.join(names)}"
