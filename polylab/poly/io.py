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
from polylab.poly.injection import layers_of
from polylab.poly.layers import PolyLayer
from polylab.poly.sharding import whole
from polylab.poly.structure import is_causal
from polylab.poly.tensors import adapter_tensors

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "read_adapter",
    "task_type_of",
    "write_adapter",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TASKS_FILE = "tasks.json"
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


def write_adapter(
    directory: str | Path,
    config: PolyConfig,
    *,
    model: nn.Module,
    adapter_name: str,
    is_main_process: bool = True,
) -> None:
    """Write one adapter of the wrapped `model`; a previous one stays whole until all is written.

    The weights' metadata repeats what the configuration says beyond their shapes, so that files of
    two different saves (a kill between the renames) are refused when they are read.

    Raises:
        OSError: If the disk is full, say; the previous adapter is still there then.
    """
    directory = Path(directory)
    layers = layers_of(model, adapter_name)
    values = {**config.to_dict(), "inference_mode": True}
    values["peft_type"] = "POLY" if _is_pefts(config, layers) else "POLYLAB"
    values["task_type"] = config.task_type or task_type_of(model)
    metadata = {_RECORD: json.dumps(_recorded(config), sort_keys=True)}
    if values["peft_type"] == "POLY":
        ours = {name: values.pop(name) for name in _OURS}
        metadata["polylab"] = json.dumps({name: ours[name] for name in _TRAINING_FIELDS})
    values.pop("task_names", None)
    tensors = {name: whole(tensor) for name, tensor in adapter_tensors(model, adapter_name).items()}
    if not is_main_process:
        return
    writers = {WEIGHTS_FILE: write_tensors(tensors, metadata=metadata)}
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
