"""Take a task's update elsewhere: as a plain PEFT LoRA, or inside the base model's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from polylab.poly.files import capped, write_files, write_json, write_tensors
from polylab.poly.injection import layers_of, poly_layers
from polylab.poly.io import CONFIG_FILE, WEIGHTS_FILE, task_type_of
from polylab.poly.routing import Override, override_of
from polylab.poly.saved_modules import saved_modules

if TYPE_CHECKING:
    from polylab.poly.adapters import AdaptedModel
    from polylab.poly.layers import PolyLayer

__all__ = ["export_lora", "merge_task", "task_id_of", "unwrap"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_Factors = tuple[Float[Tensor, "d_in k"], Float[Tensor, "k d_out"]]


def export_lora(
    model: AdaptedModel,
    task: str | int,
    directory: str | Path,
    *,
    adapter_name: str | None = None,
) -> None:
    """Write one task's adapter as a plain LoRA, which `peft.PeftModel.from_pretrained` loads.

    `lora_A.weight = A*^T`, `lora_B.weight = B*^T` and `lora_alpha = scale * k` for the mixed
    factors `A* [d_in, k]`, `B* [k, d_out]` of evaluation: PEFT's `lora_alpha / k` is our scale.
    Layers whose k or scale differs have entries in `rank_pattern` and `alpha_pattern`.

    Args:
        model: Unchanged.
        task: Name or id.
        directory: Gets `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: The active one by default.

    Raises:
        ValueError: If the adapter is routed by the input or switched off, the task is unknown, or
            a weight is not finite.
        OSError: If the files cannot be written; those of a previous export are there then.
    """
    name = adapter_name if adapter_name is not None else model.active_adapter
    layers, index = _exported(model, task, name=name)
    share = model.config_of(name).uniform_share
    factors = {
        key: layer.task_factors(name, index, uniform_share=share) for key, layer in layers.items()
    }
    tensors: dict[str, Tensor] = {}
    for key, (a, b) in factors.items():
        tensors[f"base_model.model.{key}.lora_A.weight"] = a.T
        tensors[f"base_model.model.{key}.lora_B.weight"] = b.T
    for key, module in _copies(model.model, name).items():
        for part, tensor in module.state_dict().items():
            tensors[f"base_model.model.{key}.{part}"] = tensor
    bad = [f"not finite: {key}" for key, t in tensors.items() if not torch.isfinite(t).all()]
    if bad:
        raise ValueError("\n".join([f"task {task!r} cannot be exported:", *capped(bad)]))
    ranks = {key: a.shape[1] for key, (a, _) in factors.items()}
    alphas = {key: layer.scaling[name] * ranks[key] for key, layer in layers.items()}
    values = {
        **_PLAIN_LORA,
        **_with_patterns("r", "rank_pattern", ranks),
        **_with_patterns("lora_alpha", "alpha_pattern", alphas),
        "base_model_name_or_path": model.peft_config[name].base_model_name_or_path,
        "fan_in_fan_out": any(isinstance(la.base_layer, Conv1D) for la in layers.values()),
        "target_modules": [*layers],
        "modules_to_save": model.peft_config[name].modules_to_save,
        "task_type": model.peft_config[name].task_type or task_type_of(model.model),
    }
    writers = {WEIGHTS_FILE: write_tensors(tensors), CONFIG_FILE: write_json(values)}
    write_files(Path(directory), writers)


_PLAIN_LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "use_dora": False,
    "use_rslora": False,
}


def _with_patterns(key: str, pattern: str, values: Mapping[str, float]) -> dict[str, Any]:
    """The most common value for all layers, and a pattern for each layer that differs from it."""
    plain = {n: float(f"{v:.12g}") for n, v in values.items()}  # 49 * (1 / 49) is below 1
    plain = {n: int(v) if v.is_integer() else v for n, v in plain.items()}
    common = Counter(plain.values()).most_common(1)[0][0]
    # PEFT reads the keys as regular expressions that end the name
    others = {f"^{n.replace('.', '[.]')}": v for n, v in plain.items() if v != common}
    return {key: common, pattern: others}


@torch.no_grad()
def merge_task(
    model: AdaptedModel, task: str | int, *, adapter_name: str | None = None
) -> nn.Module:
    """The plain base model with the task's update in its weights, changed in place.

    `W + scale * (A* B*)^T`, added in float32 (double for a double model) and rounded once to the
    weight's own dtype. Nothing is changed if a layer is refused. `model` is spent afterwards.

    Raises:
        ValueError: As `export_lora`; or if a weight is quantised, or tied to another module's.
    """
    name = adapter_name if adapter_name is not None else model.active_adapter
    layers, index = _exported(model, task, name=name)
    _check_weights(model.model, layers)
    share = model.config_of(name).uniform_share
    for layer in layers.values():
        a, b = layer.task_factors(name, index, uniform_share=share)
        weight = layer.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        update = layer.scaling[name] * (a.to(wide) @ b.to(wide))  # d_in d_out, as Conv1D's weight
        update = update if isinstance(layer.base_layer, Conv1D) else update.T
        weight.copy_(weight.to(wide) + update.to(weight.device))
    return unwrap(model, copies_of=name)


def unwrap(model: AdaptedModel, *, copies_of: str | None = None) -> nn.Module:
    """Put every base layer back in its place and return the base model; `model` is spent.

    It stays frozen, as PEFT leaves it.

    Args:
        model: Its adapted layers' weights are as they were.
        copies_of: The adapter whose copies (`modules_to_save`) replace the modules they are of.
    """
    base = model.model
    inside: dict[str, nn.Module] = {n: la.base_layer for n, la in poly_layers(base).items()}
    inside |= {n: module.original_module for n, module in saved_modules(base).items()}
    inside |= {} if copies_of is None else _copies(base, copies_of)
    for name, module in inside.items():
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, module.requires_grad_(False))
    model.forget()
    return base


def _copies(base: nn.Module, adapter_name: str) -> dict[str, nn.Module]:
    """An adapter's trained copies of modules (`modules_to_save`) by name."""
    return {
        name: module.modules_to_save[adapter_name]
        for name, module in saved_modules(base).items()
        if adapter_name in module.modules_to_save
    }


def task_id_of(task: str | int, *, n_tasks: int, task_names: list[str] | None) -> int:
    """The id of a task given by name or id (also as digits, where no task has that name).

    Raises:
        ValueError: If there is no such task, with the nearest names.
    """
    names = task_names or []
    if isinstance(task, str) and task in names:
        return names.index(task)
    number = int(task) if isinstance(task, str) and task.isdecimal() else task
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < n_tasks:
        return number
    near = get_close_matches(str(task), names, n=3, cutoff=0.5)
    hint = f" Near misses: {near}." if near else ""
    named = f", or a name: {capped(names)}" if names else ""
    raise ValueError(
        f"task={task!r} is not a task of this adapter.{hint} Give an id, 0 to {n_tasks - 1}{named}."
    )


def _exported(
    model: AdaptedModel, task: str | int, *, name: str
) -> tuple[dict[str, PolyLayer], int]:
    """The layers of an adapter that can be exported, and the task's id."""
    config = model.config_of(name)
    if override_of(model) != Override():
        raise ValueError(
            f"adapter {name!r} is disabled, or under a routing(...) that is not its own: what is "
            "exported is the learned routing. Leave the context first."
        )
    layers = layers_of(model.model, name)
    if any(layer.router(name).reads is not None for layer in layers.values()):
        raise ValueError(
            f"adapter {name!r} has poly_type={config.poly_type!r}: it is routed by the input, so a "
            "task has no weights of its own to export. Save it with save_pretrained."
        )
    return layers, task_id_of(task, n_tasks=config.n_tasks, task_names=config.task_names)


def _check_weights(base: nn.Module, layers: Mapping[str, PolyLayer]) -> None:
    users: dict[int, list[str]] = {}
    for key, parameter in base.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(key)
    problems = []
    for name, layer in layers.items():
        if layer.weight.dtype not in _FLOATS:
            problems.append(
                f"layer {name!r} has a weight of {layer.weight.dtype}: an update cannot be added "
                "to a quantised weight. Load the base in 16 or 32 bits, or use export_lora."
            )
        shared = users[id(layer.weight)]
        if len(shared) > 1:
            problems.append(
                f"layer {name!r} shares its weight ({', '.join(shared)}): merging would change "
                "the other too. Use export_lora."
            )
    if problems:
        raise ValueError("\n".join(capped(problems)))
