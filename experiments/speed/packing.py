"""Steps on batches of real lengths: padded, in two parts of like lengths, and packed."""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from shapes import SHAPES, make_base
from timing import paired_seconds, ratios
from transformers import ByT5Tokenizer

from polylab import PolyConfig, get_peft_model
from polylab.data import JsonlFolder
from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExamples
from polylab.data.encoding import TextEncoder
from polylab.data.packing import PackingCollator
from polylab.training.lengths import length_parts, take_rows
from polylab.training.losses import example_losses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py packing`."""
    parser.add_argument("--shapes", default="t5-small-cpu", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--data", required=True, help="a folder of JSONL tasks, read as bytes")
    parser.add_argument("--batch", type=int, default=64)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: forward and backward, as ratios to the padded batch of the same round."""
    data, n_tasks = _examples(options.data)
    rows = []
    for name in options.shapes.split(","):
        shape = SHAPES[name]
        base = make_base(shape, device=options.device, dtype=getattr(torch, options.dtype))
        config = PolyConfig(
            r=16, n_skills=8, n_tasks=n_tasks, target_modules=[*shape.targets], noise="none"
        )
        model = get_peft_model(base, config)
        batches = _batches(data, n_tasks, options, is_encoder_decoder=bool(shape.target_seq))
        start = 0 if shape.target_seq else None
        steps = {kind: partial(_step, model, found, start=start) for kind, found in batches.items()}
        seconds = paired_seconds(steps, rounds=options.rounds, warm_up=3, device=options.device)
        for kind, ratio in ratios(seconds, to="padded").items():
            rows.append(
                {
                    "shape": name,
                    "batch": kind,
                    "step ms": round(1000 * statistics.median(seconds[kind]), 1),
                    "ratio": round(ratio.median, 3),
                    "quartiles": ratio.quartiles,
                    "padding": round(statistics.mean(map(_padding, batches[kind])), 3),
                }
            )
    return rows


def _examples(folder: str) -> tuple[EncodedExamples, int]:
    tasks = JsonlFolder(folder)().tasks
    encoder = TextEncoder(
        ByT5Tokenizer(), is_encoder_decoder=True, max_input_length=512, max_target_length=128
    )
    names = [task.name for task in tasks]
    data = EncodedExamples(
        [task.train for task in tasks],
        task_names=names,
        task_ids=[*range(len(names))],
        encoder=encoder,
        prompt="none",
        with_texts=False,
    )
    return data, len(names)


def _batches(
    data: EncodedExamples, n_tasks: int, options: argparse.Namespace, *, is_encoder_decoder: bool
) -> dict[str, list[list[dict[str, Any]]]]:
    """By kind and round: the parts of a batch. Warm-up has the last rounds' batches."""
    kind: Any = {"pad_id": 0, "n_tasks": n_tasks, "is_encoder_decoder": is_encoder_decoder}
    draw = torch.Generator().manual_seed(0)
    found: dict[str, list[list[dict[str, Any]]]] = {"padded": [], "in parts": [], "packed": []}
    for _ in range(options.rounds):
        chosen = torch.randint(len(data), (options.batch,), generator=draw).tolist()
        items = data.__getitems__([(index, row) for row, index in enumerate(chosen)])
        padded = Collator(**kind)(items)
        parts = length_parts(padded["attention_mask"])
        found["padded"].append([padded])
        found["in parts"].append([take_rows(padded, rows) for rows in parts] if parts else [padded])
        found["packed"].append([PackingCollator(**kind)(items)])
    return {
        name: [[_moved(part, options.device) for part in parts] for parts in rounds]
        for name, rounds in found.items()
    }


def _moved(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _step(model: Any, rounds: list[list[dict[str, Any]]], index: int, *, start: int | None) -> None:
    for batch in rounds[index]:
        example_losses(model, batch, start=start, pad=0).losses.sum().backward()
    model.zero_grad(set_to_none=True)


def _padding(parts: list[dict[str, Any]]) -> float:
    """The share of the positions of inputs that hold no token."""
    masks = [part["attention_mask"] for part in parts]
    return 1 - sum(float(m.sum()) for m in masks) / sum(m.numel() for m in masks)
