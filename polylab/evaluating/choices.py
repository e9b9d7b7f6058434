"""What is wrong with an evaluation's settings, said before a run is read."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.schema import EvaluateSchema
from polylab.config.suggest import hint, listing
from polylab.parts import ReadTasks

LEARNED, STUDY = "learned", "study"
SPLITS = {"test": "test", "validation": "val", "train": "train"}  # and their names in metrics.json
CHANGES = ("rounded", "top1", "uniform", "shuffled")
ROUTINGS = (LEARNED, *CHANGES, "task:NAME", "drop:SKILL", "drop:LAYER/SKILL", STUDY)
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
    read = ["data", *(field.name for field in fields(EvaluateSchema))]
    for key in sorted({*map(str, cfg)} - {*read}):  # added with a +
        problems.append(
            f"{key} is not read{hint(key, read)} · the run is evaluated on one device · valid: "
            f"{listing(read)}"
        )
    problems += unknown("split", cfg.split, SPLITS)
    if cfg.zero_shot is not None:
        problems += unknown("zero_shot", cfg.zero_shot, WAYS)
    problems += routing_problems(cfg.routing)
    for key in ("batch_size", "examples_per_task"):
        if cfg[key] is not None and cfg[key] < 1:
            problems.append(f"{key}={cfg[key]} must be at least 1")
    if problems:
        raise ConfigError("; ".join(problems))


def unknown(key: str, value: Any, valid: Collection[str]) -> list[str]:
    """Say so if the value is none of the valid ones."""
    if value in valid:
        return []
    return [f"{key}={value} is not known{hint(str(value), [*valid])} · valid: {', '.join(valid)}"]


def routing_problems(routing: Any) -> list[str]:
    """Say what is wrong with `routing` whatever the run is."""
    names = [*routing] if isinstance(routing, Sequence) and routing != str(routing) else [routing]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong or not names:
        return [f"routing={routing} must be a name or a list of them, e.g. [uniform,shuffled]"]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        return [f"routing={routing} holds {', '.join(twice)} twice"]
    if len(names) > 1 and STUDY in names:
        return [f"routing={routing}: {STUDY} holds all of them · give it alone"]
    plain = [name for name in names if ":" not in name]
    return [problem for name in plain for problem in unknown("routing", name, ROUTINGS)]


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


def chosen_tasks(names: str | Sequence[str] | None, source: ReadTasks | None) -> ReadTasks:
    """Return the tasks with these names, all for None.

    Raises:
        ConfigError: If there is no such task.
    """
    if source is None:
        raise ConfigError("this run's data has no tasks to evaluate · give data=...")
    if names is None:
        return source
    collection = source()
    wanted = [names] if isinstance(names, str) else [*names]
    for name in wanted:
        if name not in collection.names:
            near = hint(str(name), collection.names)
            raise ConfigError(
                f"task={name}: the data has no such task{near} · valid: {listing(collection.names)}"
            )
    tasks = [task for task in collection.tasks if task.name in wanted]
    skills = {n: v for n, v in (collection.skills or {}).items() if n in wanted} or None
    return ReadTasks(replace(collection, tasks=tasks, skills=skills))


def evaluation_config(
    config: DictConfig,
    *,
    split: str,
    examples_per_task: int | None = None,
    batch_size: int | None = None,
    **trainer: Any,
) -> DictConfig:
    """A run's configuration on one device, with all predictions.

    Args:
        config: The run's.
        split: `test`, `validation` or `train`.
        examples_per_task: Bounds the split; None is as in the run.
        batch_size: None is the run's.
        trainer: What else is changed of it; None leaves a value.
    """
    changes: dict[str, Any] = {
        "trainer": {"devices": 1, "num_nodes": 1, "strategy": "auto", "compile": False}
        | {name: value for name, value in trainer.items() if value is not None},
        "module": {"predictions_per_task": None},
        "data": {},
    }
    if batch_size is not None:
        changes["data"]["eval_batch_size"] = batch_size
    if examples_per_task is not None:
        key = "test_examples_per_task" if split == "test" else "eval_examples_per_task"
        changes["data"][key] = examples_per_task
    merged = OmegaConf.merge(config, changes)
    assert isinstance(merged, DictConfig)
    return merged
