"""Adapters that grow and merge: more tasks, more skills, several into one, all skills into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from polylab.poly.config import PolyConfig
from polylab.poly.injection import layers_of
from polylab.poly.layers import PolyLayer
from polylab.poly.routers import CLOSED, Router, TaskRouter, make_router
from polylab.poly.saved_modules import saved_modules

if TYPE_CHECKING:
    from polylab.poly.adapters import AdaptedModel

__all__ = ["add_skills", "add_tasks", "average_skills", "combine_adapters"]

# What adapters may differ in and yet be combined.
_FREE = ("n_tasks", "n_skills", "task_names", "inference_mode", "init", "init_weights", "trainable")


def add_tasks(
    model: AdaptedModel, name: str, tasks: int | Sequence[str], *, like: int | str
) -> None:
    """See `PolyModel.add_tasks`."""
    old = model.config_of(name)
    names, n_new = _names(old, tasks), tasks if isinstance(tasks, int) else len(tasks)
    if n_new < 1:
        raise ValueError(f"tasks={tasks!r}: give at least one new task.")
    if old.poly_type == "custom":
        raise ValueError(
            "poly_type='custom' has its allocation in the configuration: add a fresh adapter with "
            f"the {n_new} new rows."
        )
    is_word = like in ("fresh", "mean") and like not in (old.task_names or [])
    source = like if is_word else _task_id(old, like)
    _grow(model, name, replace(old, n_tasks=old.n_tasks + n_new, task_names=names), like=source)


def add_skills(model: AdaptedModel, name: str, n_skills: int) -> None:
    """See `PolyModel.add_skills`."""
    old = model.config_of(name)
    if not isinstance(n_skills, int) or n_skills < 1:
        raise ValueError(f"n_skills={n_skills!r}: give the number of new skills, at least 1.")
    if old.uniform_share:
        raise ValueError(
            f"uniform_share={old.uniform_share}: a share of every task's weights goes to all "
            "skills, new ones too, so old outputs would change. Call set_uniform_share(0) first."
        )
    if old.poly_type not in ("poly", "c-poly"):
        raise ValueError(
            f"poly_type={old.poly_type!r} cannot get more skills without changing what its tasks "
            "compute. Valid: poly, c-poly."
        )
    _grow(model, name, replace(old, n_skills=old.n_skills + n_skills), like="fresh")


def combine_adapters(model: AdaptedModel, names: Sequence[str], new_name: str) -> None:
    """See `PolyModel.combine_adapters`."""
    configs = [model.config_of(name) for name in names]
    if len({*names}) < 2:
        raise ValueError(f"adapter_names={[*names]}: give at least two different adapters.")
    config = _combined(names, configs)
    model.add_adapter(new_name, config)
    copied: set[int] = set()
    for layer in layers_of(model.model, new_name).values():
        with torch.no_grad():
            for bank in (layer.poly_lora_A, layer.poly_lora_B):
                bank[new_name].copy_(torch.cat([bank[name] for name in names], dim=1))
        router = layer.router(new_name)
        if id(router) not in copied:
            copied.add(id(router))
            _block_diagonal(router, [layer.router(name) for name in names])


@torch.no_grad()
def average_skills(model: AdaptedModel, name: str, new_name: str) -> None:
    """See `PolyModel.average_skills`."""
    old = model.config_of(name)
    if old.combine != "factors" or old.poly_type in ("c-poly", "private"):
        raise ValueError(
            f"the skills of an adapter with poly_type={old.poly_type!r} and "
            f"combine={old.combine!r} have no average of rank {old.r}. Valid: combine='factors', "
            "and skills that all tasks may use."
        )
    kept: dict[str, Any] = {"inference_mode": False}
    kept |= {"poly_type": "shared", "n_skills": 1, "priors": {}, "router": None, "allocation": None}
    plain = PolyConfig()
    reset = ("router_level", "router_input", "gating", "top_k", "granularity", "uniform_share")
    kept |= {field: getattr(plain, field) for field in (*reset, "trainable", "noise", "noise_per")}
    model.add_adapter(new_name, replace(old, **kept))
    for layer in layers_of(model.model, new_name).values():
        for bank in (layer.poly_lora_A, layer.poly_lora_B):
            bank[new_name].copy_(bank[name].mean(1, keepdim=True))
    for module in saved_modules(model.model).values():
        if name in module.modules_to_save:
            values = module.modules_to_save[name].state_dict()
            module.modules_to_save[new_name].load_state_dict(values)


def _grow(model: AdaptedModel, name: str, config: PolyConfig, *, like: int | str) -> None:
    old, layers = model.config_of(name), layers_of(model.model, name).values()
    routers: dict[int, Router] = {}  # made, and tried, before anything is changed
    for layer in layers:
        before = layer.router(name)
        if id(before) not in routers:
            after = make_router(config, layer.d_router[name] or layer.in_features)
            after.reset()
            after.copy_from(before)
            if like != "fresh":
                after.start_tasks(old.n_tasks, like)
            routers[id(before)] = after
    for layer in layers:
        _regrow(layer, name, config, router=routers[id(layer.router(name))], old=old)
    model.peft_config[name] = config
    model.set_adapter(model.active_adapter)


@torch.no_grad()
def _regrow(
    layer: PolyLayer, name: str, config: PolyConfig, *, router: Router, old: PolyConfig
) -> None:
    before = [layer.poly_lora_A[name], layer.poly_lora_B[name]]
    layer.update_layer(name, config, router=router, d_router=layer.d_router[name])
    layer.cast_adapter(name, before[0].dtype)
    places = _places(old, config).to(before[0].device)
    for bank, values in zip((layer.poly_lora_A, layer.poly_lora_B), before, strict=True):
        bank[name].index_copy_(1, places, values.to(bank[name].device))


def _places(old: PolyConfig, new: PolyConfig) -> Int64[Tensor, " skills"]:
    """Where the skills of the old bank are in the new one."""
    places = torch.arange(old.bank_size)
    if old.poly_type == "c-poly":  # the private ones come after all shared ones
        places[old.n_skills :] += new.n_skills - old.n_skills
    return places


def _names(config: PolyConfig, tasks: int | Sequence[str]) -> list[str] | None:
    if isinstance(tasks, str):
        raise ValueError(f"tasks={tasks!r} is one string: give a list of names, [{tasks!r}].")
    if isinstance(tasks, int):
        if config.task_names is not None:
            raise ValueError(
                f"tasks={tasks}: the adapter's tasks have names ({config.task_names[:4]}...), so "
                "give the names of the new ones."
            )
        return None
    if config.task_names is None:
        raise ValueError(
            f"tasks={[*tasks]}: the adapter's {config.n_tasks} tasks have no names, so give the "
            "number of new ones."
        )
    if taken := sorted({*tasks} & {*config.task_names}):
        raise ValueError(f"tasks={[*tasks]}: the adapter has {taken} already.")
    return [*config.task_names, *tasks]


def _task_id(config: PolyConfig, task: int | str) -> int:
    names = config.task_names or []
    if task in names:
        return names.index(str(task))
    if isinstance(task, int) and 0 <= task < config.n_tasks:
        return task
    raise ValueError(
        f"like={task!r} is no task. Give fresh, mean, an id from 0 to {config.n_tasks - 1}"
        + (f", or one of {names[:8]}." if names else ".")
    )


def _combined(names: Sequence[str], configs: Sequence[PolyConfig]) -> PolyConfig:
    first = configs[0]
    if first.poly_type not in ("poly", "private") or first.router is not None:
        raise ValueError(
            f"adapter {names[0]!r} has poly_type={first.poly_type!r}"
            f"{' and a router of its own' if first.router else ''}: only poly and private adapters "
            "can be combined."
        )
    if shares := [config.uniform_share for config in configs if config.uniform_share]:
        raise ValueError(
            f"adapters {[*names]} have uniform_share={shares}: it would mix the skills of one into "
            "the tasks of another. Call set_uniform_share(0) first."
        )
    if any(config.modules_to_save for config in configs):
        saved = [config.modules_to_save for config in configs]
        raise ValueError(
            f"adapters {[*names]} have modules_to_save={saved}: their copies of a module cannot "
            "be combined."
        )
    for name, config in zip(names[1:], configs[1:], strict=True):
        for field, value in config.to_dict().items():
            if field not in _FREE and value != getattr(first, field):
                raise ValueError(
                    f"adapters {names[0]!r} and {name!r} differ in {field}: "
                    f"{getattr(first, field)!r} and {value!r}. Combine adapters that are alike."
                )
    named = all(config.task_names is not None for config in configs)
    if not named and any(config.task_names is not None for config in configs):
        raise ValueError(
            f"adapters {[*names]}: some have task names and some none. Name the tasks of all."
        )
    tasks = [task for config in configs for task in config.task_names or []]
    return replace(
        first,
        n_tasks=sum(config.n_tasks for config in configs),
        n_skills=sum(config.n_skills for config in configs),
        task_names=tasks if named else None,
        inference_mode=False,
    )


@torch.no_grad()
def _block_diagonal(router: Router, parts: Sequence[Router]) -> None:
    if not isinstance(router, TaskRouter):  # private: nothing is learnt
        return
    table = router.module_logits.unflatten(1, (router.n_splits, -1))
    nn.init.constant_(router.module_logits, CLOSED)
    task = skill = 0
    for part in parts:
        assert isinstance(part, TaskRouter)
        logits = part.module_logits.unflatten(1, (part.n_splits, -1))
        rows, _, columns = logits.shape
        table[task : task + rows, :, skill : skill + columns] = logits.to(table)
        task, skill = task + rows, skill + columns
