"""Losses of one training with a 16-bit backbone, beside the same in float32."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import Any

import torch
from contenders import N_TASKS, Contender, poly
from shapes import SHAPES, Shape, make_base, make_batch
from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py curve`."""
    parser.add_argument("--shapes", default="t5-tiny", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--figure", type=Path, help="a PNG of the curves")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: means of the loss over tenths of the run.

    Each task has an answer of its own, to be learnt by heart. The runs share weights, batches and
    the noise of the routing; `other noise` is the float32 run with another seed of that noise: what
    a difference is to be compared with.
    """
    (name,) = options.shapes.split(",")
    shape = SHAPES[name]
    runs = {
        "float32": _train(shape, torch.float32, options, seed=0),
        "bfloat16": _train(shape, torch.bfloat16, options, seed=0),
        "float32, other noise": _train(shape, torch.float32, options, seed=1),
    }
    if options.figure:
        _draw(runs, options.figure, title=name)
    tenth = max(1, options.steps // 10)
    rows = []
    for start in range(0, options.steps, tenth):
        means = {kind: sum(x[start : start + tenth]) / tenth for kind, x in runs.items()}
        rows.append({"steps": f"{start} to {start + tenth - 1}", **means})
    return rows


def _train(
    shape: Shape, dtype: torch.dtype, options: argparse.Namespace, *, seed: int
) -> list[float]:
    base = make_base(shape, device=options.device, dtype=torch.float32).to(dtype)
    torch.manual_seed(0)
    contender = poly(base, shape, n_tasks=N_TASKS, name="poly", noise_source="keyed")
    losses = []
    answers = make_batch(shape, device=options.device, n_tasks=N_TASKS, seed=10**6)["labels"]
    contender.optimizer = _optimizer(contender)
    for step in range(options.steps):
        batch = make_batch(shape, device=options.device, n_tasks=N_TASKS, seed=step)
        if shape.target_seq:
            batch["labels"] = answers[batch["task_ids"] % len(answers)]
        contender.model.set_noise_key(seed, step)  # type: ignore[operator]
        losses.append(contender.step(batch))
    found: Tensor = torch.stack(losses).float().cpu()
    del contender, base
    gc.collect()
    return found.tolist()


def _optimizer(contender: Contender) -> torch.optim.Optimizer:
    routers = [
        p for n, p in contender.model.named_parameters() if "router" in n and p.requires_grad
    ]
    known = {id(p) for p in routers}
    skills = [p for p in contender.trained if id(p) not in known]
    groups = [{"params": skills, "lr": 1e-3}, {"params": routers, "lr": 0.1, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups)


def _draw(runs: dict[str, list[float]], path: Path, *, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    styles = ({"lw": 3, "alpha": 0.4}, {"lw": 1}, {"lw": 1, "ls": ":"})
    for (name, losses), style in zip(runs.items(), styles, strict=True):
        axes.plot(losses, label=name, **style)
    axes.set(xlabel="step", ylabel="training loss", title=f"{title}, 8 skills, 16 tasks")
    axes.legend()
    figure.savefig(path, dpi=120)
