"""What the input measurements take in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from input_data import natural_instructions, some_texts, subword_tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from polylab.data import DataModule, JsonlFolder, TaskCollection

Result = dict[str, Any]


def loading(
    *,
    folder: str,
    tokenizer: str,
    batch_size: int,
    workers: int,
    group: int,
    stretch: int,
    needed: float,
) -> Result:
    """Start-up, speed and memory of a DataModule alone, in its first pass over the data.

    The first `stretch` batches, a window, are left out of the speed, since grouping has their
    lengths found before the first batch; the next two stretches are taken as fast as they come, and
    two more at the pace of an accelerator that needs `needed` tokens a second, of which the second
    counts: in the first the loader gets ahead again.
    """
    before = memory_mb("self", "Rss")
    tasks, read = timed(JsonlFolder(folder))
    source = memory_mb("self", "Rss")
    examples = sum(len(task.train) for task in tasks.tasks)
    module = DataModule(
        lambda: tasks,
        AutoTokenizer.from_pretrained(tokenizer),
        is_encoder_decoder=True,
        batch_size=batch_size,
        num_workers=workers,
        steps_per_epoch=max(5 * stretch, examples // batch_size),
        group_by_length=group or None,
    )
    batches, iterating = timed(lambda: iter(module.train_dataloader()))
    _, first = timed(lambda: next(batches))
    _take(batches, stretch - 1)
    tokens, seconds = timed(lambda: _take(batches, 2 * stretch))
    _paced(batches, stretch, needed=needed)
    waited = _paced(batches, stretch, needed=needed)
    return {
        "examples": examples,
        "read_seconds": read,
        "first_batch_seconds": iterating + first,
        "tokens_per_second": tokens[0] / seconds,
        "padding": 1 - tokens[0] / tokens[1],
        "waiting_share": waited,
        "source_mb": source - before,
        "main_mb": memory_mb("self", "Rss"),
        "worker_private_mb": [
            memory_mb(str(process.pid), "Private_Clean", "Private_Dirty")
            for process in multiprocessing.active_children()
        ],
    }


def cached(*, folder: str, tokenizer: str, cache: str, batch_size: int) -> Result:
    """Start-up of a DataModule with `data.cache`, and its speed over 500 batches."""
    before = memory_mb("self", "Anonymous")
    module = DataModule(
        JsonlFolder(folder),
        AutoTokenizer.from_pretrained(tokenizer),
        is_encoder_decoder=True,
        batch_size=batch_size,
        steps_per_epoch=1000,
        cache=cache,
    )
    _, opening = timed(lambda: module.collection)
    batches, iterating = timed(lambda: iter(module.train_dataloader()))
    _, first = timed(lambda: next(batches))
    tokens, seconds = timed(lambda: _take(batches, 500))
    return {
        "opening": opening,
        "first_batch": iterating + first,
        "own_mb": memory_mb("self", "Anonymous") - before,  # what is mapped can be dropped
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens_per_second": tokens[0] / seconds,
    }


def padding(*, folder: str, data: str, kind: str, prompt: str, batch_size: int, group: int) -> Any:
    """Shares of padding among the positions of inputs and targets of real data, over an epoch.

    A row for an epoch of one pass and one for an epoch of `group` steps.
    """
    tasks = _real(Path(folder), data)
    tokenizer = _tokenizer(kind, tasks)

    def share(window: int | None, steps: int | None) -> tuple[int, float]:
        loader = DataModule(
            lambda: tasks,
            tokenizer,
            is_encoder_decoder=True,
            batch_size=batch_size,
            prompt=prompt,
            steps_per_epoch=steps,
            group_by_length=window,
        ).train_dataloader()
        tokens, positions = _take(iter(loader), len(loader))
        return len(loader), 1 - tokens / positions

    found = [(share(None, steps), share(group, steps)) for steps in (None, group)]
    return [
        {"steps": steps, "drawn": drawn, "grouped": grouped}
        for (steps, drawn), (_, grouped) in found
    ]


def prepare(*, folder: str, tokenizer: str) -> Result:
    """Save a tokenizer made from the generated text."""
    subword_tokenizer(some_texts(Path(folder))).save_pretrained(tokenizer)
    return {}


RUNS: dict[str, Callable[..., Any]] = {
    "cached": cached,
    "loading": loading,
    "padding": padding,
    "prepare": prepare,
}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the seconds that it took."""
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def memory_mb(process: str, *fields: str) -> float:
    """Sum of some fields of a process's memory; NaN where the system does not tell (not Linux)."""
    path = Path("/proc") / process / "smaps_rollup"
    if not os.access(path, os.R_OK):
        return float("nan")
    lines = (line.split() for line in path.read_text().splitlines()[1:])
    return sum(int(line[1]) for line in lines if line[0].rstrip(":") in fields) / 1024


def _take(batches: Iterator[Any], number: int) -> tuple[int, int]:
    # tokens and positions of the next batches
    tokens = positions = 0
    for _ in range(number):
        batch = next(batches)
        tokens += int(batch["attention_mask"].sum()) + int((batch["labels"] != -100).sum())
        positions += batch["input_ids"].numel() + batch["labels"].numel()
    return tokens, positions


def _paced(batches: Iterator[Any], number: int, *, needed: float) -> float:
    # share of the time in which a consumer of `needed` tokens per second waits for a batch
    waited = worked = 0.0
    for _ in range(number):
        taken, seconds = timed(lambda: _take(batches, 1))
        waited += seconds
        worked += taken[0] / needed
        time.sleep(taken[0] / needed)
    return waited / (waited + worked)


def _real(folder: Path, data: str) -> TaskCollection:
    if data == "instruction_induction":
        return JsonlFolder(folder / data)()
    return natural_instructions(folder / data / "tasks")


def _tokenizer(kind: str, tasks: TaskCollection) -> PreTrainedTokenizerBase:
    if kind == "bytes":
        return ByT5Tokenizer()
    texts = [example.instruction or example.input for t in tasks.tasks for example in t.train]
    return subword_tokenizer([text[-500:] for text in texts[:: 1 + len(texts) // 4000]])
