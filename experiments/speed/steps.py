"""Training steps, side by side: time and memory against PEFT's LoRA."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from checks import compare, same_as_peft, tolerance_of
from contenders import N_TASKS, Contender, makers
from shapes import SHAPES, Shape, make_base, make_batch
from timing import free, paired_seconds, ratios, wait
from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py steps`."""
    parser.add_argument("--shapes", default="t5-small-cpu", help=f"of {', '.join(SHAPES)}")
    parser.add_argument(
        "--contenders",
        default="frozen,peft-lora,peft-poly,poly,poly-q8,poly-s32",
        help=f"of {', '.join(makers())}",
    )
    parser.add_argument("--mode", choices=("eager", "compiled"), default="eager")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: one for each contender on each shape."""
    rows = []
    for name in options.shapes.split(","):
        rows += _on_shape(SHAPES[name], options)
        free(options.device)
    return rows


def _on_shape(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    device = options.device
    base = make_base(shape, device=device, dtype=getattr(torch, options.dtype))
    names = options.contenders.split(",")
    contenders = {name: makers()[name](base, shape) for name in names}
    batches = [make_batch(shape, device=device, n_tasks=N_TASKS, seed=i) for i in range(8)]
    checked = {
        name: same_as_peft(contenders[name], contenders[f"peft-{name}"], batches[0])
        for name in contenders
        if f"peft-{name}" in contenders
    }
    ready = {name: _get_ready(c, batches, options) for name, c in contenders.items()}
    memory = {name: _peak(c, batches[0], device) for name, c in contenders.items()}
    runs = {
        name: lambda i, c=contender: c.step(batches[i % len(batches)])
        for name, contender in contenders.items()
    }
    seconds = paired_seconds(runs, rounds=options.rounds, warm_up=3, device=device)
    to_lora = ratios(seconds, to="peft-lora" if "peft-lora" in names else names[0])
    weights = sum(p.numel() * p.element_size() for p in base.parameters()) / 2**30
    return [
        {
            "shape": shape.name,
            "contender": name,
            "step ms": round(1e3 * statistics.median(seconds[name]), 1),
            "of LoRA": round(to_lora[name].median, 3),
            "quartiles": to_lora[name].quartiles,
            "ready s": round(ready[name], 1),
            "trained M": round(sum(p.numel() for p in contenders[name].trained) / 1e6, 1),
            "GiB": None if memory[name] is None else round(weights + memory[name], 2),
            "gradients off": checked.get(name, {}).get("gradients"),
        }
        for name in names
    ]


def _get_ready(
    contender: Contender, batches: list[dict[str, Tensor]], options: argparse.Namespace
) -> float:
    """Seconds until two steps are done; compiled gradients must be the eager ones."""
    if options.mode == "eager":
        started = time.perf_counter()
    else:
        loss, wanted = contender.gradients(batches[0])
        contender.compile_blocks()
        wait(options.device)
        started = time.perf_counter()
        found = contender.gradients(batches[0])
        wait(options.device)
        compare(
            f"{contender.name}, compiled and eager,",
            (found[0], [*found[1].values()]),
            (loss, [*wanted.values()]),
            tolerance=tolerance_of(contender),
        )
    for batch in batches[:2]:
        contender.step(batch)
    wait(options.device)
    return time.perf_counter() - started


def _peak(contender: Contender, batch: dict[str, Tensor], device: str) -> float | None:
    """GiB that a step needs at most, beside what is there before it.

    That is without the skills' parameters and the optimiser's state: 12 bytes for each number.
    """
    if device == "cpu":
        return None
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step(batch)
    wait(device)
    return (torch.cuda.max_memory_allocated() - before) / 2**30
