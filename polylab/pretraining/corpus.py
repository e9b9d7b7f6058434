"""The text that the embedded backbone is pretrained on.

A source line is a set of code tokens (ByT5's sentinels, one an operation), then the content between
nonsense filler; the target is what the operations make of the content. No code gives a copy.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from polylab.pretraining.drills import (
    OPERATIONS,
    Content,
    Drill,
    all_drills,
    filler,
    sample_content,
    solve,
)

# ByT5: ids 0..2 are pad, eos and unk, then 256 bytes, then 125 sentinels.
BYTE_OFFSET, FIRST_SENTINEL, EOS = 3, 259, 1


@dataclass(frozen=True)
class Line:
    """One example: `codes` (indices of `OPERATIONS`), `body` text and `target` text."""

    codes: tuple[int, ...]
    body: str
    target: str
    content: Content
    drill: Drill


class LineSampler:
    """Draws lines: a random drill on random content in random filler."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        self._drills = all_drills()

    def __call__(self) -> Line:
        """The next line."""
        rng = self._rng
        drill = rng.choice(self._drills)
        content = sample_content(rng, drill)
        codes = [i for i, name in enumerate(OPERATIONS) if name in drill.operations]
        rng.shuffle(codes)
        return Line(tuple(codes), _body(rng, content), solve(drill, content), content, drill)


def encode(line: Line) -> tuple[list[int], list[int]]:
    """Token ids of source and target, as ByT5 numbers them."""
    source = [FIRST_SENTINEL + code for code in line.codes]
    source += [BYTE_OFFSET + byte for byte in line.body.encode()]
    return [*source, EOS], [*(BYTE_OFFSET + byte for byte in line.target.encode()), EOS]


class PretrainingCorpus(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches of pretraining text, of fixed width; each worker has its own stream.

    Args:
        batch_size: Lines a batch.
        input_length: Tokens a source; longer ones are drawn again.
        target_length: Tokens a target, likewise.
        seed: Chooses the lines, together with the worker's index.

    Yields:
        `input_ids` and `attention_mask` `[batch, input_length]`, `labels` `[batch, target_length]`
        (-100 where padded).
    """

    def __init__(
        self, *, batch_size: int, input_length: int, target_length: int, seed: str = "0"
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.input_length, self.target_length = input_length, target_length
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Endless."""
        info = get_worker_info()
        sampler = LineSampler(f"{self.seed}/{info.id if info else 0}")
        while True:
            yield self._batch(sampler)

    def _batch(self, sampler: LineSampler) -> dict[str, torch.Tensor]:
        source = np.zeros((self.batch_size, self.input_length), dtype=np.int64)
        labels = np.full((self.batch_size, self.target_length), -100, dtype=np.int64)
        row = 0
        while row < self.batch_size:
            ids, target = encode(sampler())
            if len(ids) > self.input_length or len(target) > self.target_length:
                continue
            source[row, : len(ids)], labels[row, : len(target)] = ids, target
            row += 1
        ids = torch.from_numpy(source)
        return {
            "input_ids": ids,
            "attention_mask": (ids != 0).long(),
            "labels": torch.from_numpy(labels),
        }


def _body(rng: random.Random, content: Content) -> str:
    parts = _with_filler(rng, [_quoted(item) for item in content.items])
    if content.note:
        facts = ", ".join(f"{name}: {value}" for name, value in content.note)
        parts = [f"[{facts}]", *parts] if rng.random() < 0.5 else [*parts, f"[{facts}]"]
    if content.claim:
        parts += _with_filler(rng, [_quoted(content.claim)])
    head = [filler(rng) for _ in range(rng.randint(0, 2))]
    return " ".join([*head, *parts])


def _with_filler(rng: random.Random, parts: list[str]) -> list[str]:
    mixed = [filler(rng) for _ in range(rng.randint(0, 4))]
    for part in parts:
        mixed.append(part + rng.choice(["", "", "", ",", ".", "?", ":"]))
        mixed += [filler(rng) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    return mixed


def _quoted(text: str) -> str:
    return text if text.isdigit() else f'"{text}"'
