"""Tokens of greedy decoding: batches of many tasks, and of one, whose skills are merged."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from contenders import N_TASKS, Contender, makers
from shapes import SHAPES, Shape, make_base, make_batch
from timing import free, paired_seconds, ratios
from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py decode`."""
    parser.add_argument("--shapes", default="t5-small-cpu", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--contenders", default="frozen,peft-lora,peft-poly,poly,poly-s32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="that each row decodes")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: contenders, those with tasks on a mixed batch and on one of one task."""
    rows = []
    for name in options.shapes.split(","):
        rows += _on_shape(SHAPES[name], options)
        free(options.device)
    return rows


def _on_shape(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    base = make_base(shape, device=options.device, dtype=getattr(torch, options.dtype)).eval()
    contenders = {name: makers()[name](base, shape) for name in options.contenders.split(",")}
    batch = make_batch(shape, device=options.device, n_tasks=N_TASKS, seed=0)
    prompts = batch["input_ids"][: options.batch, : options.prompt]
    mixed = torch.arange(len(prompts), device=prompts.device) % N_TASKS
    runs = {}
    for name, contender in contenders.items():
        contender.model.eval()
        _give_skills_a_life(contender)
        kinds = {"mixed": mixed, "one task": torch.full_like(mixed, 3)}
        for kind, ids in kinds.items() if contender.takes_ids else [("", None)]:
            label = f"{name}, {kind}" if kind else name
            runs[label] = lambda _, c=contender, t=ids: _decode(c, prompts, t, options.tokens)
    if options.dtype == "float32":  # in 16 bits tokens part by rounding
        _check_one_task(contenders, prompts)
    seconds = paired_seconds(runs, rounds=options.rounds, warm_up=2, device=options.device)
    to_lora, to_base = ratios(seconds, to="peft-lora"), ratios(seconds, to="frozen")
    return [
        {
            "shape": shape.name,
            "contender": label,
            "ms a token": round(1e3 * statistics.median(seconds[label]) / options.tokens, 2),
            "of LoRA": round(to_lora[label].median, 3),
            "quartiles": to_lora[label].quartiles,
            "of the backbone": round(to_base[label].median, 3),
        }
        for label in runs
    ]


@torch.no_grad()
def _give_skills_a_life(contender: Contender) -> None:
    """At the start B is zero, and nothing would be seen to go wrong."""
    torch.manual_seed(0)
    for name, parameter in contender.model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.02)


@torch.no_grad()
def _decode(contender: Contender, prompts: Tensor, ids: Tensor | None, tokens: int) -> Tensor:
    given = {} if ids is None else {"task_ids": ids}
    return contender.model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        **given,
    )


@torch.no_grad()
def _check_one_task(contenders: dict[str, Contender], prompts: Tensor) -> None:
    """Merged or not, a task's first tokens are the same; later ones may part by rounding.

    Raises:
        SystemExit: If they are not.
    """
    for name, contender in contenders.items():
        if not contender.is_ours:
            continue
        ids = torch.full((len(prompts),), 3, device=prompts.device)
        merged = _decode(contender, prompts, ids, 4)
        ids[1] = 5
        mixed = _decode(contender, prompts, ids, 4)
        if not torch.equal(merged[0], mixed[0]):
            raise SystemExit(f"{name} decodes other tokens for a task when it is merged.")
