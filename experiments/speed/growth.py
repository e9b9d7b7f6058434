"""Steps with many tasks and many skills, all router rows stepped or only those of the batch."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from checks import compare
from contenders import Contender, poly
from shapes import SHAPES, Shape, make_base, make_batch
from timing import Ratio, free, paired_seconds, ratios, wait
from torch import Tensor, nn

from polylab.training.lazy_rows import LazyRows
from polylab.training.optim import ROUTERS, OptimConfig, build_optimizer, parameter_groups

Batches = list[dict[str, Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench.py growth`."""
    parser.add_argument("--shapes", default="t5-small-cpu", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--tasks", type=_numbers, default="16,256,1600")
    parser.add_argument("--skills", type=_numbers, default="8,32,128")
    parser.add_argument("--n-splits", type=int, default=1)
    parser.add_argument("--routers", default=",".join(ROUTERS), help="optim.router: dense, lazy")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table.

    For each number of tasks and skills, paired ratios of a step's time: `ratio` to the first
    numbers of both, `of fewest tasks` to the first number of tasks, each under the same optimiser;
    `of dense` to the other optimiser; `adapter MB` with the optimiser's state. Then `mope` by
    sequence, and by token as a ratio to it.
    """
    rows = []
    for name in options.shapes.split(","):
        shape = SHAPES[name]
        base = make_base(shape, device=options.device, dtype=getattr(torch, options.dtype))
        rows += _by_task(base, shape, options)
        rows += _by_input(base, shape, options)
    return rows


class Growing(Contender):
    """A contender with the optimiser of polylab's training.

    Args:
        contender: Whose model it is.
        router: `optim.router`.
    """

    def __init__(self, contender: Contender, router: str) -> None:
        self.__dict__ |= contender.__dict__
        config = OptimConfig(lr=1e-4, router_lr=1e-4, router=router)
        self.router, self.optimizer = router, build_optimizer(self.model, config)
        self.batches: Batches = []

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One training step."""
        if isinstance(self.optimizer, LazyRows):
            self.optimizer.mark(batch["task_ids"])
        return super().step(batch)


def _by_task(base: nn.Module, shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    routers = options.routers.split(",")

    def make(n_tasks: int, n_skills: int) -> dict[str, Growing]:
        found = {}
        for router in routers:
            torch.manual_seed(0)
            made = poly(
                base,
                shape,
                n_tasks=n_tasks,
                name=f"{n_tasks} tasks, {n_skills} skills, {router}",
                n_skills=n_skills,
                n_splits=options.n_splits,
            )
            found[router] = Growing(made, router)
            found[router].batches = _batches(shape, n_tasks, options.device)
        for router in routers[1:]:
            _check_first_step(found[router], found[routers[0]])
        return found

    fewest, rows = options.tasks[0], []
    least = make(fewest, options.skills[0])
    for n_skills in options.skills:
        few = least if n_skills == options.skills[0] else make(fewest, n_skills)
        for n_tasks in options.tasks:
            own = few if n_tasks == fewest else make(n_tasks, n_skills)
            beside = _beside(own, few, least, numbers=(n_tasks, n_skills), options=options)
            for row, contender in zip(beside, own.values(), strict=True):
                gib = _gib(base, contender, options.device)
                held = round(_bytes(_state(contender)) / 2**20, 1)
                rows.append({"shape": shape.name, **row, "adapter MB": held, "GiB": gib})
            del own
            free(options.device)
    return rows


def _beside(
    own: Mapping[str, Growing],
    few: Mapping[str, Growing],
    least: Mapping[str, Growing],
    *,
    numbers: tuple[int, int],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A row for each optimiser, timed beside those of fewest tasks, and skills, in one run."""
    runs = {
        (size, router): _steps(contender)
        for size, found in (("least", least), ("few", few), ("own", own))
        for router, contender in found.items()
    }
    seconds = _seconds(runs, options)
    rows, reference = [], next(iter(own))
    for router, contender in own.items():
        key = ("own", router)
        to_least, to_few = (ratios(seconds, to=(size, router))[key] for size in ("least", "few"))
        to_reference = ratios(seconds, to=("own", reference))[key]
        row = _row("poly", contender, seconds[key], numbers) | _ratio(to_least)
        row |= {"of fewest tasks": round(to_few.median, 3)}
        rows.append(row | {f"of {reference}": round(to_reference.median, 3)})
    return rows


def _by_input(base: nn.Module, shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    n_skills, made = options.skills[0], {}
    for name, level in (("mope", "sequence"), ("mope-tokens", "token")):
        settings = {"poly_type": "mope", "router_level": level, "n_splits": options.n_splits}
        plain = poly(base, shape, n_tasks=1, name=name, n_skills=n_skills, **settings)
        made[name] = Growing(plain, "dense")
        made[name].batches = _batches(shape, 1, options.device)
    memory = {name: _gib(base, contender, options.device) for name, contender in made.items()}
    seconds = _seconds({name: _steps(contender) for name, contender in made.items()}, options)
    rows = []
    for name, ratio in ratios(seconds, to="mope").items():
        row = _row(name, made[name], seconds[name], (None, n_skills)) | _ratio(ratio)
        rows.append({"shape": shape.name, **row, "GiB": memory[name]})
    return rows


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return {
        "ratio": round(ratio.median, 3),
        "quartiles": ratio.quartiles,
    }


def _row(
    kind: str, own: Growing, seconds: list[float], numbers: tuple[int | None, int]
) -> dict[str, Any]:
    millions = {
        group: round(sum(p.numel() for p in members.values()) / 1e6, 3)
        for group, members in parameter_groups(own.model).items()
    }
    return {
        "contender": kind,
        "tasks": numbers[0],
        "skills": numbers[1],
        "router": own.router,
        "step ms": round(1e3 * statistics.median(seconds), 1),
        "skills M": millions["skills"],
        "router M": millions.get("router", 0.0),
    }


def _check_first_step(lazy: Growing, dense: Growing) -> None:
    """From no momentum, a first lazy step is a dense one.

    Raises:
        SystemExit: If it is not.
    """
    stepped = []
    for contender in (lazy, dense):
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in contender.model.named_parameters():
                if "poly_lora_B" in name:  # while B is 0, routers have no gradient
                    parameter.normal_(std=0.02)
        before = [parameter.detach().clone() for parameter in contender.trained]
        loss = contender.step(contender.batches[0])
        pairs = zip(contender.trained, before, strict=True)
        stepped.append((loss, [(own.detach() - old) for own, old in pairs]))
    compare(f"steps of {lazy.name} and {dense.name}", *stepped, tolerance=1e-3)


def _steps(contender: Growing) -> Callable[[int], object]:
    batches = contender.batches
    return lambda index: contender.step(batches[index % len(batches)])


def _batches(shape: Shape, n_tasks: int, device: str) -> Batches:
    return [make_batch(shape, device=device, n_tasks=n_tasks, seed=seed) for seed in range(8)]


def _seconds(
    runs: Mapping[Any, Callable[[int], object]], options: argparse.Namespace
) -> dict[Any, list[float]]:
    return paired_seconds(runs, rounds=options.rounds, warm_up=3, device=options.device)


def _gib(base: nn.Module, contender: Growing, device: str) -> float | None:
    """GiB of a run: the backbone, the adapter with its optimiser's state, and a step's peak."""
    if device == "cpu":
        return None
    contender.step(contender.batches[0])  # makes the state
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step(contender.batches[0])
    wait(device)
    kept = _bytes([*base.parameters(), *_state(contender)])
    return round((kept + torch.cuda.max_memory_allocated() - before) / 2**30, 2)


def _state(contender: Growing) -> list[Tensor]:
    """The adapter, and what the optimiser keeps of it between steps."""
    assert contender.optimizer is not None
    kept = [value for own in contender.optimizer.state.values() for value in own.values()]
    return [*contender.trained, *(value for value in kept if torch.is_tensor(value))]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
