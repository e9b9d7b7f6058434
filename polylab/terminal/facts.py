"""The facts of a run, on one screen, before it starts; only what is known of it."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from polylab.parts import Parts
from polylab.terminal.rows import Row, format_rows

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer

    from polylab import PolyModel

_KINDS = 8  # of adapted layers that are named


def facts(cfg: DictConfig, parts: Parts, *, folder: Path) -> str:
    """Return some twelve lines: backbone, adapter, data, batch, length, device, where it goes."""
    return format_rows((key, value) for key, value in _rows(cfg, parts, folder) if value)


def device_name(device: "torch.device") -> str:
    """Return `cpu`, or the name of the accelerator."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _rows(cfg: DictConfig, parts: Parts, folder: Path) -> Iterator[Row]:
    from polylab.callbacks.allocations import find_poly_model
    from polylab.training import count_trainable

    adapted, trainable = find_poly_model(parts.module), count_trainable(parts.module)
    total, frozen = _count(parts.module)
    name = cfg.backbone.name_or_path
    yield "backbone", f"{name} · {frozen:,} parameters · {_dtype(cfg, parts)}"
    yield "adapter", "none" if adapted is None else _adapter(adapted)
    yield "layers", "" if adapted is None else _layers(adapted)
    yield "trainable", f"{trainable:,} parameters · {trainable / max(total, 1):.2%} of all"
    yield "data", _data(parts)
    yield "batch", _batch(cfg, parts)
    yield "length", _length(cfg, parts)
    yield "device", _device(parts.trainer)
    yield "seed", str(cfg.seed)
    yield "continues", str(cfg.ckpt_path or "")
    yield "init_from", str(cfg.init_from or "")
    yield "tracker", _tracker(parts)
    yield "folder", str(folder)


def _count(module: "torch.nn.Module") -> tuple[int, int]:
    """Parameters of everything, and of the backbone alone."""
    total = backbone = 0
    for name, parameter in module.named_parameters():
        state = getattr(parameter, "quant_state", None)  # 4 bits: two numbers in each element
        size = parameter.numel() if state is None else math.prod(state.shape)
        total += size
        backbone += 0 if ".poly_" in f".{name}" or ".modules_to_save." in name else size
    return total, backbone


def _dtype(cfg: DictConfig, parts: Parts) -> str:
    dtypes: Counter[str] = Counter()
    for parameter in parts.model.parameters():
        if parameter.is_floating_point() and not parameter.requires_grad:
            dtypes[str(parameter.dtype)] += parameter.numel()
    model_dtype = str(getattr(parts.model, "dtype", ""))  # all is trained: nothing is frozen
    found = (dtypes.most_common(1)[0][0] if dtypes else model_dtype).removeprefix("torch.")
    quantization = cfg.backbone.get("quantization")
    return f"{quantization}, computed in {found}" if quantization else found


def _adapter(model: "PolyModel") -> str:
    config = model.peft_config[model.active_adapter]
    words = [
        config.poly_type,
        f"rank {config.r}",
        _counted(config.bank_size, "skill"),
        _counted(config.n_splits, "split"),
        _counted(config.n_tasks, "task"),
    ]
    if config.granularity != "linear":
        words.append(f"one router per {config.granularity}")
    if config.trainable != "all":
        words.append(f"only the {config.trainable} trained")
    return " · ".join(words)


def _layers(model: "PolyModel") -> str:
    layers = model.active_layers()
    kinds = Counter(name.rpartition(".")[2] for name in layers)
    shown = [f"{kind} {count}" for kind, count in [*kinds.items()][:_KINDS]]
    if len(kinds) > _KINDS:
        shown.append(f"{len(kinds) - _KINDS} more kinds")
    return " · ".join([f"{len(layers)} adapted", *shown])


def _data(parts: Parts) -> str:
    from polylab.data import DataModule

    if isinstance(parts.data, DataModule):
        return parts.data.describe()
    tasks = f" · {_counted(len(parts.task_names), 'task')}" if parts.task_names else ""
    return f"{type(parts.data).__name__}{tasks}"


def _batch(cfg: DictConfig, parts: Parts) -> str:
    from polylab.data import DataModule

    accumulated, devices = parts.trainer.accumulate_grad_batches, parts.trainer.world_size
    if not isinstance(parts.data, DataModule):
        return f"{accumulated} accumulated" if accumulated > 1 else ""
    rows = cfg.data.batch_size
    share = rows // (accumulated * devices)
    return (
        f"{_counted(rows, 'example')} = {share} x {_counted(devices, 'device')} x "
        f"{accumulated} accumulated"
    )


def _length(cfg: DictConfig, parts: Parts) -> str:
    from polylab.data import DataModule

    trainer, words = parts.trainer, []
    steps, epochs = trainer.max_steps, trainer.max_epochs
    if steps > 0:
        words.append(_counted(steps, "step"))
        if isinstance(parts.data, DataModule) and (size := sum(parts.data.sizes.values())):
            words.append(f"{steps * cfg.data.batch_size / size:.3g} x the training examples")
    if epochs is not None and epochs > 0:
        words.append(_counted(epochs, "epoch"))
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        words.append("fast_dev_run")
    return " · ".join(words)


def _device(trainer: "Trainer") -> str:
    count, name = trainer.world_size, device_name(trainer.strategy.root_device)
    several = f"{count} x {name}, {type(trainer.strategy).__name__}" if count > 1 else name
    return f"{several} · precision {trainer.precision}"


def _tracker(parts: Parts) -> str:
    logger = parts.logger
    if logger is None:
        return "none"
    from lightning.pytorch.loggers import WandbLogger

    if not isinstance(logger, WandbLogger):
        return type(logger).__name__
    given = logger._wandb_init
    words = [f"W&B {given.get('mode')}", f"project {given.get('project')}"]
    words += [f"{key} {given[key]}" for key in ("group", "name") if given.get(key)]
    return " · ".join(words)


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
