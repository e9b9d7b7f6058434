"""Paired rounds: every contender once a round, in random order, on the same batch."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """Median of the per-round ratios, and their quartiles."""

    median: float
    low: float
    high: float

    @property
    def quartiles(self) -> str:
        """As text."""
        return f"{self.low:.3f} to {self.high:.3f}"


def paired_seconds(
    runs: Mapping[str, Callable[[int], object]], *, rounds: int, warm_up: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each run in each round.

    Args:
        runs: What is timed, by name; gets the number of the round.
        rounds: How many.
        warm_up: Rounds before them that are not timed.
        device: Its work is waited for before a clock is read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = [*runs]
    shuffle = random.Random(0)
    for index in range(-warm_up, rounds):
        shuffle.shuffle(order)
        for name in order:
            wait(device)
            started = time.perf_counter()
            runs[name](index)
            wait(device)
            if index >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: Mapping[str, list[float]], *, to: str) -> dict[str, Ratio]:
    """Each run against one of them, round by round."""
    found = {}
    for name, own in seconds.items():
        pairs = [a / b for a, b in zip(own, seconds[to], strict=True)]
        low, _, high = statistics.quantiles(pairs, n=4, method="inclusive")
        found[name] = Ratio(statistics.median(pairs), low, high)
    return found


def free(device: str) -> None:
    """Give back what models that are gone have left."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def wait(device: str) -> None:
    """Wait for an accelerator."""
    if device != "cpu":
        torch.cuda.synchronize()
