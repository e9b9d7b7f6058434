"""Adapters on disk, in PEFT's format.

`adapter_config.json`, `adapter_model.safetensors` with PEFT's key names, and `tasks.json` (task
name to id). `peft_type` is POLY only where PEFT's Poly computes the same function from these files,
else POLYLAB, which PEFT refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polylab.poly.classes import refuse_code
from polylab.poly.config import BOOKKEEPING, PolyConfig
from polylab.poly.granularity import Seat, router_seats
from polylab.poly.injection import find_targets
from polylab.poly.layers import PolyLayer
from polylab.poly.linears import features_of
from polylab.poly.routers import make_router
from polylab.poly.structure import is_causal

__all__ = ["adapter_tensors", "check_tensors", "copy_tensors", "read_adapter", "write_adapter"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TASKS_FILE = "tasks.json"
_PREFIX = "base_model.model."
_PEFTS = (
    *("r", "target_modules", "exclude_modules", "modules_to_save", "init_weights", "poly_type"),
    *("n_tasks", "n_skills", "n_splits", "inference_mode"),
)
# Ours, and without effect on what a trained adapter computes: kept out of a POLY config (PEFT warns
# of unknown keys) and in the weights' metadata.
_TRAINING_FIELDS = (
    *("init", "noise", "noise_per", "noise_source", "temperature"),
    *("dropout", "trainable", "priors"),
)
# Ours, and at their defaults in every adapter that PEFT computes alike.
_OURS = tuple(item.name for item in fields(PolyConfig) if item.name not in (*BOOKKEEPING, *_PEFTS))


def write_adapter(
    directory: str | Path, config: PolyConfig, *, model: nn.Module, adapter_name: str
) -> None:
    """Write one adapter of the wrapped `model`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    layers = _layers_of(model, adapter_name)
    values = {**config.to_dict(), "inference_mode": True}
    values["peft_type"] = "POLY" if _is_pefts(config, layers) else "POLYLAB"
    values["task_type"] = config.task_type or _task_type(model)
    metadata = {"format": "pt"}
    if values["peft_type"] == "POLY":
        ours = {name: values.pop(name) for name in _OURS}
        metadata["polylab"] = json.dumps({name: ours[name] for name in _TRAINING_FIELDS})
    values.pop("task_names", None)
    if config.task_names is not None:
        ids = {name: i for i, name in enumerate(config.task_names)}
        (directory / TASKS_FILE).write_text(json.dumps(ids, indent=2, ensure_ascii=False) + "\n")
    tensors = {
        key: t.detach().cpu().contiguous() for key, t in _named(layers, adapter_name).items()
    }
    save_file(tensors, directory / WEIGHTS_FILE, metadata=metadata)
    (directory / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_adapter(
    directory: str | Path, *, trust_code: bool = False
) -> tuple[PolyConfig, dict[str, Tensor]]:
    """Configuration and tensors of a folder written by `write_adapter` or by PEFT's Poly.

    Args:
        directory: The folder.
        trust_code: Accept classes that the files name: making the adapter imports and runs them.

    Raises:
        FileNotFoundError: If the folder, or one of the two files, is missing.
        ValueError: If a file is damaged, of another kind of adapter, or names code unasked.
    """
    directory = Path(directory)
    values = _read_json(directory, CONFIG_FILE)
    if values.get("peft_type") not in ("POLY", "POLYLAB"):
        raise ValueError(
            f"{directory / CONFIG_FILE} has peft_type={values.get('peft_type')!r}. Valid: POLY "
            "(PEFT's Poly) and POLYLAB."
        )
    path = _existing(directory, WEIGHTS_FILE)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            values |= json.loads((file.metadata() or {}).get("polylab", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not trust_code:
        refuse_code(values, directory)
    if (directory / TASKS_FILE).exists():
        ids = _read_json(directory, TASKS_FILE)
        values["task_names"] = sorted(ids, key=ids.__getitem__)
        if sorted(ids.values()) != [*range(len(ids))]:
            raise ValueError(
                f"{directory / TASKS_FILE} has ids {sorted(ids.values())}; they must run from 0 to "
                f"{len(ids) - 1}."
            )
    return PolyConfig.from_dict(values), tensors


def check_tensors(tensors: Mapping[str, Tensor], config: PolyConfig, *, model: nn.Module) -> None:
    """Refuse tensors that are not exactly the adapter that `config` means on `model`.

    Raises:
        ValueError: With the difference.
    """
    targets = find_targets(model, config)
    seats = router_seats(model, targets, config)
    want: dict[str, tuple[int, ...]] = {}
    for name, module in targets.items():
        want |= _shapes(name, module, config=config, seat=seats[name])
    have = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    lines = [f"missing: {key} {[*want[key]]}" for key in want if key not in have]
    lines += [f"unexpected: {key} {[*have[key]]}" for key in have if key not in want]
    lines += [
        f"shape: {key} is {[*have[key]]} in the file, {[*want[key]]} in the model"
        for key in want
        if key in have and have[key] != want[key]
    ]
    lines += [f"not finite: {k}" for k, t in tensors.items() if not torch.isfinite(t).all()]
    if lines:
        rest = [f"... and {len(lines) - 12} more"] if len(lines) > 12 else []
        raise ValueError("\n".join(["the adapter's file does not fit:", *lines[:12], *rest]))


def copy_tensors(tensors: Mapping[str, Tensor], model: nn.Module, *, adapter_name: str) -> None:
    """Copy checked tensors into an adapter of the wrapped `model`."""
    with torch.no_grad():
        for key, parameter in adapter_tensors(model, adapter_name).items():
            parameter.copy_(tensors[key])


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """One adapter's tensors under PEFT's key names, sharing memory with the model."""
    return _named(_layers_of(model, adapter_name), adapter_name)


def _layers_of(model: nn.Module, adapter_name: str) -> dict[str, PolyLayer]:
    modules = model.named_modules()
    layers = {name: layer for name, layer in modules if isinstance(layer, PolyLayer)}
    return {name: layer for name, layer in layers.items() if adapter_name in layer.poly_lora_A}


def _named(layers: Mapping[str, PolyLayer], adapter_name: str) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, layer in layers.items():
        key = f"{_PREFIX}{name}"
        named[f"{key}.poly_lora_A"] = layer.poly_lora_A[adapter_name]
        named[f"{key}.poly_lora_B"] = layer.poly_lora_B[adapter_name]
        router = layer.router(adapter_name)
        if id(router) in seen:  # saved with the first layer of its group
            continue
        seen.add(id(router))
        for part, tensor in router.state_dict(keep_vars=True).items():
            named[f"{key}.poly_router.{part}"] = tensor
    return named


def _shapes(
    name: str, module: nn.Module, *, config: PolyConfig, seat: Seat
) -> dict[str, tuple[int, ...]]:
    (d_in, d_out), key = features_of(module), f"{_PREFIX}{name}"
    splits, skills, rank = config.n_splits, config.bank_size, config.r
    router: dict[str, Tensor] = {}
    if seat.leads:
        with torch.device("meta"):
            router = make_router(config, seat.d_router or d_in).state_dict()
    return {
        f"{key}.poly_lora_A": (splits, skills, d_in // splits, rank),
        f"{key}.poly_lora_B": (splits, skills, rank, d_out // splits),
        **{f"{key}.poly_router.{part}": tuple(t.shape) for part, t in router.items()},
    }


def _is_pefts(config: PolyConfig, layers: Mapping[str, PolyLayer]) -> bool:
    only_linear = all(isinstance(layer.base_layer, nn.Linear) for layer in layers.values())
    plain = PolyConfig()
    free = (*_TRAINING_FIELDS, "task_names")
    differ = any(getattr(config, f) != getattr(plain, f) for f in _OURS if f not in free)
    return config.poly_type == "poly" and only_linear and not differ


def _task_type(model: nn.Module) -> str | None:
    # PEFT passes task_ids on only through its model class for a task type.
    if is_causal(model):
        return "CAUSAL_LM"
    can_generate = getattr(model, "can_generate", None)
    return "SEQ_2_SEQ_LM" if can_generate is not None and can_generate() else None


def _existing(directory: Path, name: str) -> Path:
    if not directory.is_dir():
        raise FileNotFoundError(f"no folder {directory}: give the folder of a saved adapter.")
    if not (directory / name).is_file():
        here = sorted(path.name for path in directory.iterdir())
        raise FileNotFoundError(f"no {name} in {directory}, which holds {here}.")
    return directory / name


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = _existing(directory, name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; an object is needed.")
    return values
