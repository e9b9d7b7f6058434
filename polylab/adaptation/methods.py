"""What trains in an adaptation: made beside the run's adapter, and gone without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polylab.poly import PolyConfig, PolyModel
from polylab.poly.injection import layers_of
from polylab.poly.routers import CPolyRouter
from polylab.poly.saved_modules import saved_modules
from polylab.poly.tensors import adapter_tensors, copy_tensors

__all__ = ["ADAPTER", "METHODS", "attached", "check_method", "count_adapted", "trains_routing"]

ADAPTER = "few_shot"
METHODS = ("poly", "z", "mu", "shared", "private", "lora", "full")
_ROUTING = ("poly", "z")  # methods that train the run's routers
_ROUTED = ("poly", "c-poly", "mope", "uniform")
_OWN_PARTS = {"poly_lora_A", "poly_lora_B", "poly_router", "modules_to_save"}


def check_method(model: PolyModel, method: str) -> None:
    """Refuse a method that the run's adapter gives no start for.

    Raises:
        ValueError: Saying which method would do.
    """
    kind, own = model.config_of(model.active_adapter).poly_type, "adapt=shared, lora and full"
    if method == "poly" and kind not in _ROUTED:
        raise ValueError(
            f"adapt=poly: the run has poly_type={kind!r}, whose skills no router mixes for a new "
            f"task · valid for it: {own if kind == 'shared' else 'adapt=lora and full'}."
        )
    if method == "z" and not _has_rows_only(model):
        raise ValueError(
            f"adapt=z: the run has poly_type={kind!r}, whose router has no row of a task's own "
            "that could train alone · give another method, adapt=lora for example."
        )
    if method == "z" and not _has_choice(model):
        raise ValueError(
            "adapt=z: the run has n_skills=1, whose weight is 1 whatever the router's row is, so "
            "that nothing would train · give adapt=poly or adapt=mu, which train the skill."
        )
    if method == "shared" and kind != "shared":
        raise ValueError(
            f"adapt=shared: the run has poly_type={kind!r} and no adapter that all tasks share "
            "(adapter=lora has one) · adapt=mu averages the skills of the run into one."
        )
    if method == "full":
        _check_trainable(model)


@contextmanager
def attached(
    model: PolyModel, method: str, *, task: str, like: int | str = "fresh", r: int | None = None
) -> Iterator[None]:
    """Have `model` compute with, and train, what `method` adapts to `task`, inside.

    The new task's id is the one after those of the run. Afterwards the model is what it was, bit
    for bit: every method but `full` trains an adapter of its own beside the run's. What trains the
    routing starts without the run's `uniform_share`: where that is 1 (the run was annealed),
    routers get no gradient.

    Args:
        model: With the run's adapter active, frozen.
        method: One of `METHODS`.
        task: The new task's name.
        like: Where its routing starts: `fresh`, `mean` of the run's tasks, or one of them.
        r: `lora` and `private`: their rank, by default that of one of the run's skills.

    Raises:
        ValueError: If the run's adapter does not fit the method.
    """
    check_method(model, method)
    if method == "full":
        with _trained_backbone(model):
            yield
        return
    before = model.active_adapter
    try:
        _add(model, method, task=task, like=like, r=r)
        model.set_adapter(ADAPTER)
        _freeze_rest(model, method)
        yield
    finally:
        model.set_adapter(before)
        if ADAPTER in model.peft_config:
            model.delete_adapter(ADAPTER)
        model.zero_grad(set_to_none=True)
        model.eval()


def trains_routing(method: str) -> bool:
    """Whether the run's routers learn in it, where there is more than one skill to choose from."""
    return method in _ROUTING


def count_adapted(model: PolyModel) -> int:
    """The parameters that the new task's loss moves.

    Of a router's table that is the task's own row; of a bank with private skills (C-Poly) the
    shared ones and the task's own.
    """
    trainable = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    for table in _task_tables(model):
        if id(table) in trainable:
            trainable[id(table)] = table.numel() // len(table)
    name = model.active_adapter
    for layer in layers_of(model.model, name).values():
        router = layer.router(name)
        for bank in (layer.poly_lora_A[name], layer.poly_lora_B[name]):
            if id(bank) in trainable and isinstance(router, CPolyRouter):
                trainable[id(bank)] = bank.numel() // router.n_skills * router.n_gates
    return sum(trainable.values())


def _add(model: PolyModel, method: str, *, task: str, like: int | str, r: int | None) -> None:
    before, old = model.active_adapter, model.config_of(model.active_adapter)
    # a prior on the whole table would move the rows of the run's tasks
    fields: dict[str, Any] = {"inference_mode": False, "priors": {}}
    if method in ("lora", "private"):
        model.add_adapter(ADAPTER, replace(_fresh_lora(old, r), **fields))
    elif method == "mu":
        model.average_skills(ADAPTER)
    else:
        fields["trainable"] = "router" if method == "z" else "all"
        if trains_routing(method):
            fields["uniform_share"] = 0.0
        model.add_adapter(ADAPTER, replace(old, **fields))
        tensors = adapter_tensors(model.model, before)
        copy_tensors(tensors, model.model, adapter_name=ADAPTER)
    new: Any = 1 if old.task_names is None else [task]
    model.add_tasks(new, like=like if trains_routing(method) else "fresh", adapter_name=ADAPTER)


def _freeze_rest(model: PolyModel, method: str) -> None:
    """Freeze what `method` leaves alone, and routers that have nothing to choose.

    The gradient of the latter is 0 but for rounding, which Adam would make whole steps of.
    """
    if method == "z":
        for module in saved_modules(model.model).values():
            module.requires_grad_(False)
    if not _has_choice(model):
        for router in _routers(model):
            router.requires_grad_(False)


def _fresh_lora(config: PolyConfig, r: int | None) -> PolyConfig:
    """A plain LoRA in the layers of `config`, that starts with B = 0."""
    plain = PolyConfig()
    kept = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    kept += ("alpha", "use_rslora", "alpha_pattern", "dropout", "init", "modules_to_save")
    kept += ("n_tasks", "task_names", "task_type", "base_model_name_or_path")
    fields = {name: getattr(config, name) for name in kept}
    ranks = {"r": config.r, "rank_pattern": config.rank_pattern} if r is None else {"r": r}
    return replace(plain, poly_type="shared", n_skills=1, noise="none", **fields, **ranks)


def _has_choice(model: PolyModel) -> bool:
    """Whether the weights of a task's or a row's skills are not 1 in any case."""
    top_k = model.config_of(model.active_adapter).top_k
    return top_k != 1 and any(router.n_skills > 1 for router in _routers(model))


def _has_rows_only(model: PolyModel) -> bool:
    """Whether all that the routers learn are tables with a row for each task."""
    routers = _routers(model)
    learned = {id(p) for router in routers for p in router.parameters()}
    return bool(learned) and learned == {id(table) for table in _task_tables(model)}


def _task_tables(model: PolyModel) -> list[nn.Parameter]:
    return [t for router in _routers(model) for t in router.task_tables().values()]


def _routers(model: PolyModel) -> list[Any]:
    name = model.active_adapter
    return [layer.router(name) for layer in layers_of(model.model, name).values()]


def _check_trainable(model: PolyModel) -> None:
    kinds = {str(p.dtype) for _, p in _backbone_parameters(model) if p.dtype != torch.float32}
    if kinds:
        raise ValueError(
            f"adapt=full trains the backbone's weights, some of which are {sorted(kinds)} · they "
            "must be torch.float32 · give another method, or adapt a run whose backbone is not "
            "quantized."
        )


def _backbone_parameters(model: PolyModel) -> list[tuple[str, nn.Parameter]]:
    named = model.model.named_parameters()
    return [(name, p) for name, p in named if not _OWN_PARTS & {*name.split(".")}]


@contextmanager
def _trained_backbone(model: PolyModel) -> Iterator[None]:
    before: dict[str, Tensor] = {
        name: tensor.detach().cpu().clone() for name, tensor in model.model.state_dict().items()
    }
    try:
        for _, parameter in _backbone_parameters(model):
            parameter.requires_grad_(True)
        with model.disable_adapter():
            yield
    finally:
        model.model.requires_grad_(False)
        model.set_adapter(model.active_adapter)
        model.zero_grad(set_to_none=True)
        model.model.load_state_dict(before)
        model.eval()
