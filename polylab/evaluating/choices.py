"""What is wrong with an evaluation's settings, said before a run is read."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.suggest import hint

LEARNED, STUDY = "learned", "study"
SPLITS = {"test": "test", "validation": "val", "train": "train"}  # and their names in metrics.json
WAYS = ("mean", "nearest", "input")  # in which tasks can be routed that a run does not know


def is_study(cfg: DictConfig) -> bool:
    """Whether several routings are to be compared."""
    return cfg.routing == STUDY or OmegaConf.is_list(cfg.routing)


def check_choices(cfg: DictConfig) -> None:
    """Check what needs no run.

    Raises:
        ConfigError: All problems at once.
    """
    problems = []
    if OmegaConf.is_missing(cfg, "run") or not cfg.run:
        problems.append("run is not set · give run=RUN_DIR")
    for key, valid in (("split", tuple(SPLITS)), ("zero_shot", WAYS)):
        value = cfg[key]
        if value is not None and value not in valid:
            near = hint(str(value), valid)
            problems.append(f"{key}={value} is not known{near} · valid: {', '.join(valid)}")
    problems += routing_problems(cfg.routing)
    for key in ("batch_size", "examples_per_task"):
        if cfg[key] is not None and cfg[key] < 1:
            problems.append(f"{key}={cfg[key]} must be at least 1")
    if problems:
        raise ConfigError("; ".join(problems))


def routing_problems(routing: Any) -> list[str]:
    """Say what is wrong with `routing` whatever the run is."""
    names = list(routing) if OmegaConf.is_list(routing) else [routing]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong or not names:
        return [f"routing={routing} must be a name or a list of them, e.g. [uniform,shuffled]"]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return [f"routing={routing} holds {', '.join(twice)} twice"]
    if len(names) > 1 and STUDY in names:
        return [f"routing={routing}: {STUDY} holds all of them · give it alone"]
    return []


def check_folder(folder: Path) -> None:
    """Refuse to write over a run.

    Raises:
        ConfigError: If the folder is one.
    """
    if (folder / "adapter").exists():
        raise ConfigError(
            f"hydra.run.dir={folder} is a run's folder, whose metrics.json would be overwritten · "
            "give a folder of its own"
        )
