"""What types cannot say about a configuration, checked before anything heavy is imported."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError

Rule = tuple[str, Callable[[float], bool]]
_POSITIVE: Rule = ("must be above 0", lambda value: value > 0)
_COUNT: Rule = ("must be at least 1", lambda value: value >= 1)
_NOT_NEGATIVE: Rule = ("must not be negative", lambda value: value >= 0)
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
    "optim.anneal_steps": _NOT_NEGATIVE,
    "data.batch_size": _COUNT,
    "data.temperature": _POSITIVE,
    "data.max_input_length": _COUNT,
    "data.max_target_length": _COUNT,
    "data.eval_batch_size": _COUNT,
    "data.eval_examples_per_task": _COUNT,
    "data.test_examples_per_task": _COUNT,
    "data.steps_per_epoch": _COUNT,
    "data.num_workers": _NOT_NEGATIVE,
    "data.group_by_length": _COUNT,
    "module.max_new_tokens": _COUNT,
    "module.num_beams": _COUNT,
    "trainer.max_steps": _STEPS,
    "trainer.accumulate_grad_batches": _COUNT,
}


def check_config(cfg: DictConfig) -> None:
    """Check values and paths, and report all problems at once.

    Raises:
        ConfigError: Each problem as `KEY=VALUE ...`.
    """
    problems = [*_missing(cfg), *_out_of_range(cfg), *_paths(cfg)]
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


def _paths(cfg: DictConfig) -> Iterator[str]:
    if cfg.get("init_from") is not None:
        yield f"init_from={cfg.init_from}: a warm start is not implemented yet · leave it out"
    path = cfg.get("ckpt_path")
    if path is not None and not Path(path).is_file():
        yield f"ckpt_path={path}: there is no such file · give RUN_DIR/checkpoints/last.ckpt"
