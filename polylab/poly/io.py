"""Adapters on disk, in PEFT's format.

`adapter_config.json`, `adapter_model.safetensors` with PEFT's key names, and `tasks.json` (task
name to id). `peft_type` is POLY only where PEFT's Poly computes the same function from these files,
else POLYLAB, which PEFT refuses.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polylab.poly.classes import refuse_code
from polylab.poly.config import BOOKKEEPING, PolyConfig
from polylab.poly.fieldtypes import check_types
from polylab.poly.files import (
    capped,
    read_json,
    read_tensors,
    write_files,
    write_json,
    write_tensors,
)
from polylab.poly.granularity import Seat, router_seats
from polylab.poly.injection import find_targets
from polylab.poly.layers import PolyLayer
from polylab.poly.linears import features_of
from polylab.poly.patterns import rank_of
from polylab.poly.routers import make_router
from polylab.poly.saved_modules import find_saved, saved_modules, tied_groups
from polylab.poly.structure import is_causal

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "adapter_tensors",
    "check_tensors",
    "copy_tensors",
    "is_storable",
    "read_adapter",
    "task_type_of",
    "write_adapter",
]

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
# A change of these shows in the tensors' names and shapes.
_SHAPE_FIELDS = (
    *("r", "n_tasks", "n_skills", "n_private", "n_splits", "poly_type"),
    *("target_modules", "exclude_modules", "modules_to_save", "init_weights"),
)
_RECORD = "polylab_record"  # of the configuration, in the weights' metadata
# What an adapter may be stored in; integers and 8-bit floats are some quantisation's own.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def write_adapter(
    directory: str | Path, config: PolyConfig, *, model: nn.Module, adapter_name: str
) -> None:
    """Write one adapter of the wrapped `model`; a previous one stays whole until all is written.

    The weights' metadata repeats what the configuration says beyond their shapes, so that files of
    two different saves (a kill between the renames) are refused when they are read.

    Raises:
        OSError: If the disk is full, say; the previous adapter is still there then.
    """
    directory = Path(directory)
    layers = _layers_of(model, adapter_name)
    values = {**config.to_dict(), "inference_mode": True}
    values["peft_type"] = "POLY" if _is_pefts(config, layers) else "POLYLAB"
    values["task_type"] = config.task_type or task_type_of(model)
    metadata = {_RECORD: json.dumps(_recorded(config), sort_keys=True)}
    if values["peft_type"] == "POLY":
        ours = {name: values.pop(name) for name in _OURS}
        metadata["polylab"] = json.dumps({name: ours[name] for name in _TRAINING_FIELDS})
    values.pop("task_names", None)
    writers = {WEIGHTS_FILE: write_tensors(adapter_tensors(model, adapter_name), metadata=metadata)}
    if config.task_names is not None:
        writers[TASKS_FILE] = write_json({name: i for i, name in enumerate(config.task_names)})
    writers[CONFIG_FILE] = write_json(dict(sorted(values.items())))
    write_files(directory, writers)
    if config.task_names is None:
        (directory / TASKS_FILE).unlink(missing_ok=True)


def read_adapter(
    directory: str | Path, *, trust_code: bool = False
) -> tuple[PolyConfig, dict[str, Tensor]]:
    """Configuration and tensors of a folder written by `write_adapter` or by PEFT's Poly.

    Nothing in the folder is executed: JSON and safetensors only.

    Args:
        directory: The folder.
        trust_code: Accept classes that the files name (`_target_`), among what is installed here:
            making the adapter imports and runs them.

    Raises:
        FileNotFoundError: If the folder, or one of the two files, is missing.
        ValueError: If a file is damaged, of another kind of adapter, or of another save, or names
            a class that is not trusted.
    """
    directory = Path(directory)
    values = read_json(directory, CONFIG_FILE)
    if values.get("peft_type") not in ("POLY", "POLYLAB"):
        raise ValueError(
            f"{directory / CONFIG_FILE} has peft_type={values.get('peft_type')!r}. Valid: POLY "
            "(PEFT's Poly) and POLYLAB."
        )
    tensors, metadata = read_tensors(directory, WEIGHTS_FILE)
    values |= _metadata(metadata, "polylab", path=directory / WEIGHTS_FILE)
    if os.path.lexists(directory / TASKS_FILE):
        values["task_names"] = _read_tasks(directory)
    check_types(values, PolyConfig, path=directory / CONFIG_FILE)
    if not trust_code:
        refuse_code(values, directory)
    config = PolyConfig.from_dict(values)
    _check_record(config, _metadata(metadata, _RECORD, path=directory / WEIGHTS_FILE), directory)
    return config, tensors


def _metadata(metadata: Mapping[str, str], key: str, *, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has metadata {key!r} that is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} has metadata {key!r} that is no object: {reprlib.repr(values)}.")
    return values


def _read_tasks(directory: Path) -> list[str]:
    ids = read_json(directory, TASKS_FILE)
    numbers = [*ids.values()]
    is_whole = all(type(number) is int for number in numbers)
    if not is_whole or sorted(numbers) != [*range(len(ids))]:
        shown = sorted(numbers) if is_whole else numbers
        raise ValueError(
            f"{directory / TASKS_FILE} has ids {reprlib.repr(shown)}; they must run from 0 to "
            f"{len(ids) - 1}, each a whole number and there once."
        )
    return sorted(ids, key=ids.__getitem__)


def _recorded(config: PolyConfig) -> dict[str, Any]:
    """The fields that decide what the weights compute and that their shapes do not show."""
    unrecorded = {*BOOKKEEPING, *_TRAINING_FIELDS, *_SHAPE_FIELDS, "inference_mode"}
    return {name: value for name, value in config.to_dict().items() if name not in unrecorded}


def _check_record(config: PolyConfig, record: Mapping[str, Any], directory: Path) -> None:
    have = _recorded(config)
    lines = [
        f"{name}: {reprlib.repr(have[name])} in the folder, {reprlib.repr(value)} when the weights "
        "were saved"
        for name, value in record.items()
        if name in have and have[name] != value
    ]
    if lines:
        raise ValueError(
            "\n".join(
                [
                    f"{directory / CONFIG_FILE} or {TASKS_FILE} is not of the same save as "
                    f"{WEIGHTS_FILE}; save the adapter again:",
                    *capped(lines),
                ]
            )
        )


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
    copied, counts = find_saved(model, config), set[str]()
    for name, module in copied.items():
        for part, tensor in module.state_dict().items():
            want[f"{_PREFIX}{name}.{part}"] = tuple(tensor.shape)
            if not tensor.is_floating_point():  # a norm's number of batches
                counts.add(f"{_PREFIX}{name}.{part}")
    have = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    lines = [f"missing: {key} {[*want[key]]}" for key in want if key not in have]
    lines += [f"unexpected: {key} {[*have[key]]}" for key in have if key not in want]
    lines += [
        f"shape: {key} is {[*have[key]]} in the file, {[*want[key]]} in the model"
        for key in want
        if key in have and have[key] != want[key]
    ]
    for group in tied_groups(copied):
        one, *others = (tensors.get(f"{_PREFIX}{name}") for name in group)
        if any(t is not None and one is not None and not _equal(t, one) for t in others):
            lines.append(f"tied in the model, but not equal in the file: {group}")
    valid = ", ".join(str(dtype) for dtype in _DTYPES)
    lines += [
        f"dtype: {key} is {tensor.dtype}; valid: {valid}"
        for key, tensor in tensors.items()
        if tensor.dtype not in _DTYPES and key not in counts
    ]
    lines += [
        f"not finite: {key}"
        for key, tensor in tensors.items()
        if tensor.dtype in _DTYPES and not is_storable(tensor)
    ]
    if lines:
        raise ValueError("\n".join(["the adapter's file does not fit:", *capped(lines)]))


def copy_tensors(tensors: Mapping[str, Tensor], model: nn.Module, *, adapter_name: str) -> None:
    """Copy checked tensors into an adapter of the wrapped `model`."""
    with torch.no_grad():
        for key, parameter in adapter_tensors(model, adapter_name).items():
            parameter.copy_(tensors[key])


def is_storable(tensor: Tensor) -> bool:
    """Whether an adapter may hold this: finite numbers of 16 to 64 bits."""
    return tensor.dtype in _DTYPES and bool(torch.isfinite(tensor).all())


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """One adapter's tensors under PEFT's key names, sharing memory with the model."""
    tensors = _named(_layers_of(model, adapter_name), adapter_name)
    for name, module in saved_modules(model).items():
        if adapter_name in module.modules_to_save:
            copied = module.modules_to_save[adapter_name].state_dict(keep_vars=True)
            tensors |= {f"{_PREFIX}{name}.{part}": tensor for part, tensor in copied.items()}
    return tensors


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
    splits, skills, rank = config.n_splits, config.bank_size, rank_of(name, config)
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


def task_type_of(model: nn.Module) -> str | None:
    """PEFT's task type: it passes task_ids on only through its model class for one."""
    if is_causal(model):
        return "CAUSAL_LM"
    can_generate = getattr(model, "can_generate", None)
    return "SEQ_2_SEQ_LM" if can_generate is not None and can_generate() else None


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) if one.shape == other.shape else True  # said already
