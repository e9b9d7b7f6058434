"""What types cannot say about a configuration, checked before anything heavy is imported.

What is built checks itself once more, and says all that depends on other parts. Ranges and choices
are repeated here because importing these parts takes seconds; a test compares the two.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.suggest import hint

Rule = tuple[str, Callable[[float], bool]]
_POSITIVE: Rule = ("must be above 0", lambda value: value > 0)
_COUNT: Rule = ("must be at least 1", lambda value: value >= 1)
_NOT_NEGATIVE: Rule = ("must not be negative", lambda value: value >= 0)
_FINITE: Rule = (
    "must be a finite number of at least 0",
    lambda value: math.isfinite(value) and value >= 0,
)
_SHARE: Rule = ("must be from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_ONE: Rule = ("must be from 0 to below 1", lambda value: 0 <= value < 1)
_STEPS: Rule = ("must be at least 1, or -1 for no limit", lambda value: value == -1 or value >= 1)

RULES: dict[str, Rule] = {
    "seed": ("must be from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "adapter.r": _COUNT,
    "adapter.n_skills": _COUNT,
    "adapter.n_splits": _COUNT,
    "adapter.alpha": _POSITIVE,
    "adapter.temperature": _POSITIVE,
    "adapter.n_private": _COUNT,
    "adapter.top_k": _COUNT,
    "adapter.dropout": _BELOW_ONE,
    "adapter.uniform_share": _SHARE,
    "optim.lr": _FINITE,
    "optim.router_lr": _FINITE,
    "optim.other_lr": _FINITE,
    "optim.weight_decay": _FINITE,
    "optim.warmup": _FINITE,
    "optim.eps": _FINITE,
    "optim.clip": _POSITIVE,
    "optim.total_steps": _POSITIVE,
    "optim.anneal_steps": _NOT_NEGATIVE,
    "data.batch_size": _COUNT,
    "data.temperature": _POSITIVE,
    "data.cap": _COUNT,
    "data.max_input_length": _COUNT,
    "data.max_target_length": _COUNT,
    "data.eval_batch_size": _COUNT,
    "data.eval_examples_per_task": _COUNT,
    "data.test_examples_per_task": _COUNT,
    "data.steps_per_epoch": _COUNT,
    "data.num_workers": _NOT_NEGATIVE,
    "data.group_by_length": _COUNT,
    "data.tasks_per_batch": _COUNT,
    "data.max_labels": _COUNT,
    "data.max_examples_per_task": _COUNT,
    "data.shots": _COUNT,
    "module.max_new_tokens": _COUNT,
    "module.num_beams": _COUNT,
    "module.generate_every_n_validations": _NOT_NEGATIVE,
    "module.label_smoothing": _BELOW_ONE,
    "trainer.max_steps": _STEPS,
    "trainer.accumulate_grad_batches": _COUNT,
    "callbacks.routing.max_layers": _NOT_NEGATIVE,
    "callbacks.routing.still": _SHARE,
    "callbacks.routing.warn_after": _COUNT,
    "callbacks.redundancy.dead_below": _SHARE,
    "callbacks.redundancy.duplicate_above": _SHARE,
    "callbacks.history.max_cells": _COUNT,
    "callbacks.history.max_heads": _NOT_NEGATIVE,
    "callbacks.gradients.every_n_validations": _COUNT,
    "callbacks.gradients.examples_per_task": _COUNT,
    "callbacks.gradients.max_tasks": ("must be at least 2", lambda value: value >= 2),
    "callbacks.recovery.n_permutations": _NOT_NEGATIVE,
    "callbacks.figures.every_n_validations": _NOT_NEGATIVE,
    "callbacks.figures.max_share": _SHARE,
    "callbacks.use.examples_per_task": _NOT_NEGATIVE,
    "callbacks.use.max_examples": _NOT_NEGATIVE,
    "callbacks.use.margin": _SHARE,
    "callbacks.table.max_rows": ("must be from 1 to 200000", lambda value: 1 <= value <= 200_000),
    "callbacks.checkpoint.every_n_steps": _COUNT,
    "adapt.shots": _COUNT,
    "adapt.steps": _COUNT,
    "adapt.validate_every": _COUNT,
    "adapt.validation_rows": _COUNT,
    "adapt.r": _COUNT,
}

# Words only: noise, combine and others also take a class of the user's own.
CHOICES: dict[str, tuple[str, ...]] = {
    "backbone.dtype": ("auto", "float32", "bfloat16", "float16", "float64"),
    "backbone.quantization": ("4bit", "8bit"),
    "adapter.poly_type": (
        "poly", "c-poly", "mope", "shared", "private", "uniform", "custom",
    ),
    "adapter.trainable": ("all", "skills", "router"),
    "adapter.init": ("peft", "mttl"),
    "adapter.combine": ("factors", "products"),
    "adapter.noise": ("relaxed_bernoulli", "straight_through", "none"),
    "adapter.noise_per": ("example", "task"),
    "adapter.noise_source": ("global", "keyed"),
    "adapter.router_input": ("layer", "embeddings"),
    "module.rank_options": ("mean", "sum"),
    "adapter.router_level": ("sequence", "token"),
    "adapter.gating": ("softmax", "sigmoid"),
    "data.prompt": ("none", "name", "instruction"),
    "data.keep_input": ("end", "start"),
    "data.p3.tasks": ("templates", "datasets"),
    "optim.name": ("adamw", "adam", "adafactor"),
    "optim.schedule": ("constant", "linear", "cosine"),
    "optim.router": ("dense", "lazy"),
    "callbacks.checkpoint.mode": ("max", "min"),
    "adapt.method": ("poly", "z", "mu", "shared", "private", "lora", "full"),
    "adapt.select": ("best", "last"),
}  # fmt: skip


def check_config(cfg: DictConfig) -> None:
    """Check values and paths, and report all problems at once.

    Raises:
        ConfigError: Each problem as `KEY=VALUE ...`.
    """
    problems = [*_missing(cfg), *_out_of_range(cfg), *_unknown_words(cfg), *_paths(cfg)]
    if not problems:  # what only makes sense of valid numbers
        problems = [*_steps(cfg), *_batches(cfg), *_monitor(cfg), *_gradients(cfg), *_packing(cfg)]
    if problems:
        raise ConfigError("; ".join(problems))


def _missing(cfg: DictConfig) -> Iterator[str]:
    plain = OmegaConf.to_container(cfg, resolve=False)  # keeps the references to missing values
    for key in _missing_keys(plain):
        yield f"{key} is not set · give {key}=VALUE"


def _missing_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if node == "???":
        yield prefix
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _missing_keys(value, f"{prefix}.{key}" if prefix else str(key))


def _out_of_range(cfg: DictConfig) -> Iterator[str]:
    for key, (requirement, holds) in RULES.items():
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(value, int | float) and not holds(value):
            yield f"{key}={value} {requirement}"


def _unknown_words(cfg: DictConfig) -> Iterator[str]:
    for key, valid in CHOICES.items():
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(value, str) and value not in valid:
            yield f"{key}={value!r} is not known{hint(value, valid)} · valid: {', '.join(valid)}"


def _steps(cfg: DictConfig) -> Iterator[str]:
    """What the optimiser's schedule needs to know of the run's length."""
    keys = ("optim.total_steps", "optim.warmup", "optim.anneal_steps", "trainer.max_steps")
    given, warmup, anneal, steps = (OmegaConf.select(cfg, key) for key in keys)
    total, schedule = given or steps or -1, OmegaConf.select(cfg, "optim.schedule")
    if total < 1 and (schedule not in (None, "constant") or 0 < (warmup or 0) < 1):
        yield (
            f"optim.schedule={schedule} with optim.warmup={warmup} needs the number of steps ·"
            " set trainer.max_steps or optim.total_steps"
        )
    elif 0 < total < (warmup or 0):
        yield f"optim.warmup={warmup} exceeds the {total} steps of the run · lower it"
    if anneal and not anneal <= (steps or -1):
        yield f"optim.anneal_steps={anneal} exceeds trainer.max_steps={steps} · lower it"


def _batches(cfg: DictConfig) -> Iterator[str]:
    """How batches are filled."""
    keys = ("data.tasks_per_batch", "data.batch_size", "data.group_by_length")
    tasks, size, window = (OmegaConf.select(cfg, key) for key in keys)
    if tasks and size and tasks > size:
        yield (
            f"data.tasks_per_batch={tasks} · a batch of data.batch_size={size} rows holds {size} "
            "tasks at most · lower the one or raise the other"
        )
    if tasks and window:
        yield (
            f"data.tasks_per_batch={tasks} with data.group_by_length={window} · batches are filled "
            "by task or by length · set one of them to null"
        )


def _monitor(cfg: DictConfig) -> Iterator[str]:
    """What the best weights are chosen by must be known in training."""
    keys = ("module.generate_every_n_validations", "callbacks.checkpoint.monitor")
    every, monitor = (OmegaConf.select(cfg, key) for key in keys)
    if every == 0 and monitor not in (None, "val/loss"):
        yield (
            f"callbacks.checkpoint.monitor={monitor} with module.generate_every_n_validations=0: "
            "nothing is generated before the last step · set callbacks.checkpoint.monitor=val/loss "
            "and callbacks.checkpoint.mode=min, or generate every few validations"
        )


def _gradients(cfg: DictConfig) -> Iterator[str]:
    """What is compared must be trained."""
    node, trained = (OmegaConf.select(cfg, k) for k in ("callbacks.gradients", "adapter.trainable"))
    if node and trained == "router":
        yield (
            "callbacks=gradients with adapter.trainable=router: gradients of the skills are "
            "compared, and they are frozen · use callbacks=default, or train the skills"
        )


def check_choices(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Refuse an option that other settings have undone.

    Args:
        cfg: The configuration.
        choices: The options of the groups that it was composed of.

    Raises:
        ConfigError: If `adapter=none` was chosen and there is an adapter.
    """
    if choices.get("adapter") == "none" and cfg.get("adapter") is not None:
        recipe = choices.get("experiment") or "none"
        raise ConfigError(
            f"adapter=none with keys of adapter in experiment={recipe} or on the command line, "
            "which make an adapter again · leave them out, or choose adapter=lora"
        )


def _packing(cfg: DictConfig) -> Iterator[str]:
    """What packed rows do not go with."""
    if not OmegaConf.select(cfg, "data.packing"):
        return
    if OmegaConf.select(cfg, "trainer.compile"):
        yield (
            "data.packing=true with trainer.compile=true: the lengths in the rows differ from step "
            "to step, and each would be compiled anew · leave one of them false"
        )
    if "adapter" in cfg and cfg.adapter is None:
        yield (
            "data.packing=true with adapter=none: only a model with an adapter reads packed rows · "
            "set data.packing=false"
        )


def _paths(cfg: DictConfig) -> Iterator[str]:
    folder = cfg.get("init_from")
    if folder is not None and not (Path(folder) / "adapter").is_dir():
        yield f"init_from={folder}: there is no adapter/ in it · give RUN_DIR of a finished run"
    path = cfg.get("ckpt_path")
    if path is not None and not Path(path).is_file():
        yield f"ckpt_path={path}: there is no such file · give RUN_DIR/checkpoints/last.ckpt"
