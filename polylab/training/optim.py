"""Two-speed optimisation: a parameter group per kind, optimiser, schedule, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from polylab.poly.sharding import whole
from polylab.training.lazy_rows import LazyRows, task_tables

Number = float | int  # YAML writes whole numbers without a point
GROUPS = ("skills", "router", "other")
OPTIMIZERS = ("adamw", "adam", "adafactor")
ROUTERS = ("dense", "lazy")
SCHEDULES = ("constant", "linear", "cosine")
_SKILL_NAMES = ("poly_lora_A", "poly_lora_B")
_ROUTER_NAME = "poly_router"
_FUSED_ON = ("cuda",)  # CPUs too would take it, and no longer give the bits they gave


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the trainable part is optimised; the fields are the keys of the `optim` group.

    Raises:
        ValueError: Naming every field that is out of range at once.
    """

    name: str = "adamw"
    """`adamw`, `adam` or `adafactor` (without relative steps and parameter scaling)."""
    lr: Number = 1e-3
    """Learning rate of the skills (A and B)."""
    router_lr: Number = 0.1
    """Learning rate of the routers."""
    other_lr: Number | None = None
    """Learning rate of `modules_to_save`; `lr` if None."""
    weight_decay: Number = 0.01
    """Of the skills and of `modules_to_save`; the routers never have any."""
    betas: Sequence[float] = (0.9, 0.999)
    """Of adamw and adam."""
    eps: Number = 1e-8
    """Of adamw and adam."""
    schedule: str = "constant"
    """After the warm-up: `constant`, or `linear` or `cosine` down to 0 at the last step."""
    warmup: Number = 0.0
    """Below 1 a fraction of all steps, else a number of steps."""
    total_steps: int | None = None
    """Length of the schedule; `trainer.max_steps` if None."""
    clip: Number | None = None
    """Largest gradient norm, of each group by itself; None does not clip."""
    router: str = "dense"
    """`dense`: the optimiser steps every router row, also of tasks that a batch lacks; `lazy`: only
    those of tasks that were in the batches since the last step (adamw and adam)."""
    anneal_steps: int = 0
    """Over the last so many steps the routing is annealed to uniform (Poly-mu, MHR-mu)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _problems(self) -> Iterable[str]:
        choices = (("name", OPTIMIZERS), ("schedule", SCHEDULES), ("router", ROUTERS))
        for field, valid in choices:
            if getattr(self, field) not in valid:
                given, names = getattr(self, field), ", ".join(valid)
                yield f"optim.{field}={given} is not available; choose one of: {names}"
        if self.router == "lazy" and self.name == "adafactor":
            yield (
                "optim.router=lazy does not go with optim.name=adafactor; give optim.name=adamw or "
                "adam, or optim.router=dense"
            )
        for field in ("lr", "router_lr", "other_lr", "weight_decay", "warmup", "eps"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value >= 0):
                yield f"optim.{field}={value} must be a finite number of at least 0"
        if self.anneal_steps < 0:
            yield f"optim.anneal_steps={self.anneal_steps} must not be negative"
        for field in ("clip", "total_steps"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                yield f"optim.{field}={value} must be above 0, or null"
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"optim.betas={list(self.betas)} must be two numbers in [0, 1)"

    def group_lr(self, group: str) -> Number:
        """The base learning rate of one of `GROUPS`."""
        if group == "router":
            return self.router_lr
        return self.lr if group == "skills" or self.other_lr is None else self.other_lr

    def group_weight_decay(self, group: str) -> Number:
        """Routers are never decayed: a logit of 0 means half a skill, not no skill."""
        return 0.0 if group == "router" else self.weight_decay


def parameter_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Split the trainable parameters into `skills`, `router` and `other`, by where they are.

    Everything below a `poly_router` is a router, everything below `poly_lora_A` or `poly_lora_B`
    a skill, the rest (`modules_to_save`) other. Empty groups are left out.

    Raises:
        ValueError: If nothing is trainable.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(name)][name] = parameter
    found = [id(p) for members in groups.values() for p in members.values()]
    assert sorted(found) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    if not found:
        raise ValueError(
            "The model has no trainable parameter; wrap the backbone with get_peft_model and leave "
            "inference_mode=false."
        )
    return {group: members for group, members in groups.items() if members}


def _group_of(name: str) -> str:
    parts = name.split(".")
    if _ROUTER_NAME in parts:
        return "router"
    return "skills" if any(part in parts for part in _SKILL_NAMES) else "other"


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """One optimiser with a parameter group per non-empty group, called by its name.

    With `optim.router=lazy` a `LazyRows`, which must be told the tasks of each step.
    """
    groups = [
        {
            "params": list(members.values()),
            "name": group,
            "lr": config.group_lr(group),
            "weight_decay": config.group_weight_decay(group),
        }
        for group, members in parameter_groups(model).items()
    ]
    if config.name == "adafactor":
        from transformers.optimization import Adafactor  # imports peft and bitsandbytes: a second

        # with parameter scaling the step of B would start at B's own size, which is 0
        return Adafactor(groups, lr=config.lr, scale_parameter=False, relative_step=False)
    kind: Any = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    optimizer = kind(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if config.router == "lazy":
        optimizer = LazyRows(optimizer, task_tables(model))
    _fuse(optimizer)
    return optimizer


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Step in one kernel on a GPU: otherwise the host asks each parameter for its step's number.

    By group, not for the optimiser as a whole: its gradients would come to clipping and norms still
    scaled for float16.
    """
    for group in optimizer.param_groups:
        if all(p.device.type in _FUSED_ON and p.is_floating_point() for p in group["params"]):
            group["fused"] = True
    optimizer.register_load_state_dict_pre_hook(_keep_fused)


def _keep_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint says how it was stepped where it was written, which may be another device."""
    groups = [{**group} for group in state["param_groups"]]
    for group, own in zip(groups, optimizer.param_groups, strict=False):  # torch refuses the rest
        group["fused"] = own["fused"]
    return {**state, "param_groups": groups}


def check_router_steps(saved: str, config: OptimConfig) -> None:
    """Refuse a checkpoint whose optimiser counts the routers' steps in another way.

    Raises:
        ValueError: If its `optim.router` differs.
    """
    if saved != config.router:
        raise ValueError(
            f"the checkpoint was trained with optim.router={saved}, and this run has "
            f"optim.router={config.router}: give optim.router={saved} to continue it."
        )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, *, max_steps: int
) -> LambdaLR:
    """One factor for all groups; step 0 already has a positive rate, and so has the last step.

    Args:
        optimizer: Gets the schedule.
        config: Says which.
        max_steps: `trainer.max_steps`, -1 if unlimited. Never the trainer's estimate of it: asking
            for that builds the loaders, and a resumed run silently loses its place in the data.

    Raises:
        ValueError: If the schedule needs a length and there is none, or the warm-up exceeds it.
    """
    total = config.total_steps or max_steps
    needs_total = config.schedule != "constant" or 0 < config.warmup < 1
    if needs_total and total <= 0:
        raise ValueError(
            f"optim.schedule={config.schedule} with optim.warmup={config.warmup} needs the number "
            f"of steps, but trainer.max_steps={max_steps}; set trainer.max_steps or "
            "optim.total_steps."
        )
    warmup = round(config.warmup * total) if config.warmup < 1 else round(config.warmup)
    if 0 < total < warmup:
        raise ValueError(
            f"optim.warmup={config.warmup:g} steps exceed the {total} steps of the run; lower it."
        )
    return LambdaLR(optimizer, schedule_factor(config.schedule, warmup=warmup, total=total))


def schedule_factor(schedule: str, *, warmup: int, total: int) -> Callable[[int], float]:
    """The factor of the learning rate as a function of the 0-based step."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    return factor


def uniform_share(step: int, *, anneal_steps: int, max_steps: int) -> float:
    """How uniform the routing is after `step` of `max_steps` steps: `1 - cos(pi/2 * done)`.

    `done` runs from 0 to 1 over the last `anneal_steps` steps: the schedule of MHR's released code
    (https://arxiv.org/abs/2211.03831), after which the average of the skills is one LoRA.

    Raises:
        ValueError: If the run has no last step, or is shorter than the annealing.
    """
    if not 0 < anneal_steps <= max_steps:
        raise ValueError(
            f"optim.anneal_steps={anneal_steps} must lie in 1 to trainer.max_steps={max_steps}."
        )
    done = min(1.0, max(0.0, 1 - (max_steps - step) / anneal_steps))
    return 1.0 if done == 1 else 1 - math.cos(math.pi / 2 * done)


def clip_by_group(optimizer: torch.optim.Optimizer, clip: Number | None) -> None:
    """Scale each group's gradients down to norm `clip` by itself; None leaves them."""
    if clip is not None:
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], clip)


def scale_gradients(optimizer: torch.optim.Optimizer, scale: Tensor) -> None:
    """Multiply all gradients, in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)


def grad_norms(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The gradient norm of each group, on its device (no transfer to the host)."""
    norms = {}
    for group in optimizer.param_groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        if gradients:
            norms[group["name"]] = whole(nn.utils.get_total_norm(gradients))
    return norms
