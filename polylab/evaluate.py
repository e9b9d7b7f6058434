"""Metrics of a finished run: `python -m polylab.evaluate run=RUN_DIR [data=...] [routing=...]`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polylab.config.errors import ConfigError, explain, user_mistakes, wants_traceback
from polylab.config.files import read_json, write_config, write_text
from polylab.config.help import evaluate_help
from polylab.config.launch import job_folder, launch
from polylab.config.suggest import hint, listing
from polylab.config.targets import build
from polylab.evaluating.ways import WAYS
from polylab.parts import (
    ReadTasks,
    build_data,
    build_optim,
    build_trainer,
    classifies,
    quiet_libraries,
    read_tasks,
)
from polylab.runs import label_sets, load_run, read_run, task_names
from polylab.terminal.outcome import say_outcome

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule

    from polylab import PolyModel
    from polylab.training import PolyModule

SPLITS = {"test": "test", "validation": "val", "train": "train"}  # and their names in metrics.json
JOURNAL = "answers.jsonl"
# How the run's inputs look, which other data take over unless they are told otherwise
_INPUT_KEYS = ("prompt", "max_input_length", "max_target_length", "keep_input", "separator", "chat")


def main() -> None:
    """Run the command line."""
    launch(task, config_name="evaluate", help_text=evaluate_help)


def task(cfg: DictConfig) -> None:
    """Run one evaluation; a mistake of the user ends it with one line.

    Raises:
        SystemExit: With code 1.
    """
    try:
        run(cfg)
    except (ConfigError, OmegaConfBaseException) as error:
        if wants_traceback():
            raise
        print(explain(error), file=sys.stderr)
        raise SystemExit(1) from None


def run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as `cfg` says; write `metrics.json` and `predictions.jsonl`, and return the first.

    Raises:
        ConfigError: If the run, the data or a setting is not valid.
    """
    check_choices(cfg)
    started, folder = time.perf_counter(), job_folder()
    check_folder(folder)
    config = run_config(cfg)
    known, labels = task_names(Path(cfg.run)), label_sets(Path(cfg.run), config)
    quiet_libraries()
    source = chosen_tasks(cfg, read_tasks(config))
    model, backbone = load_run(Path(cfg.run), config, trust_code=cfg.trust_code)
    neighbours = route_unknown(cfg, config, model, backbone.tokenizer, known=known, source=source)
    config.data.known_tasks = known
    data = build_data(config, backbone, source=source, known_labels=labels)
    from polylab.callbacks import Progress

    trainer = build_trainer(config, callbacks=[Progress()], logger=None, folder=folder)
    data.trainer = trainer
    with user_mistakes("data"):
        names: list[str] = list(data.task_names)  # type: ignore[attr-defined]
    parts = {
        "model": model,
        "tokenizer": backbone.tokenizer,
        "task_names": names,
        "label_sets": None if labels is None else [*labels.values()],
        "categories": data.categories,  # type: ignore[attr-defined]
        "optim": build_optim(config),
        "seed": config.seed,
    }
    module = build(config.module, key="module", parts=parts)
    module.trainer = trainer
    loader = check_answerable(cfg, model, data)
    say_notes(cfg, data)
    keep_answers(cfg, config, module, loader, folder=folder)
    write_config(folder / "config.yaml", config)
    answer(cfg, module, loader)
    return save(cfg, module, folder=folder, neighbours=neighbours, started=started)


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
    for key in ("batch_size", "examples_per_task"):
        if cfg[key] is not None and cfg[key] < 1:
            problems.append(f"{key}={cfg[key]} must be at least 1")
    if problems:
        raise ConfigError("; ".join(problems))


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


def run_config(cfg: DictConfig) -> DictConfig:
    """Return the run's configuration with what this evaluation changes.

    Raises:
        ConfigError: If the folder is no finished run's.
    """
    config = read_run(Path(cfg.run))
    if cfg.data is not None:
        given = {o.lstrip("+").split("=")[0] for o in HydraConfig.get().overrides.task}
        kept = {k: config.data[k] for k in _INPUT_KEYS if f"data.{k}" not in given}
        config.data = OmegaConf.merge(cfg.data, kept)
    changes: dict[str, Any] = {
        "trainer": {
            "accelerator": cfg.accelerator,
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "compile": False,
            "precision": cfg.precision or config.trainer.precision,
        },
        "module": {"predictions_per_task": None},
        "data": {},
    }
    if cfg.batch_size is not None:
        changes["data"]["eval_batch_size"] = cfg.batch_size
    if cfg.examples_per_task is not None:
        key = "test_examples_per_task" if cfg.split == "test" else "eval_examples_per_task"
        changes["data"][key] = cfg.examples_per_task
    merged = OmegaConf.merge(config, changes)
    assert isinstance(merged, DictConfig)
    return merged


def chosen_tasks(cfg: DictConfig, source: ReadTasks | None) -> ReadTasks:
    """Return the tasks that `task` names, all if it names none.

    Raises:
        ConfigError: If there is no such task.
    """
    if source is None:
        raise ConfigError("this run's data has no tasks to evaluate · give data=...")
    if cfg.task is None:
        return source
    collection = source()
    wanted = [cfg.task] if isinstance(cfg.task, str) else [*cfg.task]
    for name in wanted:
        if name not in collection.names:
            near = hint(str(name), collection.names)
            raise ConfigError(
                f"task={name}: the data has no such task{near} · valid: {listing(collection.names)}"
            )
    tasks = [task for task in collection.tasks if task.name in wanted]
    skills = {n: v for n, v in (collection.skills or {}).items() if n in wanted} or None
    return ReadTasks(replace(collection, tasks=tasks, skills=skills))


def route_unknown(
    cfg: DictConfig,
    config: DictConfig,
    model: "PolyModel",
    tokenizer: Any,
    *,
    known: Sequence[str],
    source: ReadTasks,
) -> dict[str, str]:
    """Give ids to tasks that the run does not know, as `zero_shot` says.

    Returns:
        For `zero_shot=nearest` the trained neighbour of each.

    Raises:
        ConfigError: If it says nothing, or what does not fit.
    """
    from polylab.evaluating.zero_shot import add_unknown_tasks

    trained = None
    if cfg.zero_shot == "nearest":
        before = read_tasks(read_run(Path(cfg.run)))
        with user_mistakes(f"run={cfg.run}: its data"):
            trained = None if before is None else before()
    with user_mistakes(""):
        return add_unknown_tasks(
            model,
            tokenizer,
            known=known,
            tasks=source(),
            trained=trained,
            way=cfg.zero_shot,
            has_heads=classifies(config),
        )


def check_answerable(cfg: DictConfig, model: "PolyModel", data: "LightningDataModule") -> Any:
    """Return the split's batches.

    Raises:
        ConfigError: If there are none, or `routing` is unknown.
    """
    with user_mistakes(""), model.routing(cfg.routing):
        pass
    with user_mistakes("data"):
        loader: Any = data.evaluation_dataloader(cfg.split)  # type: ignore[attr-defined]
    if not loader:
        raise ConfigError(f"split={cfg.split}: no task has such examples · give another split")
    return loader


def say_notes(cfg: DictConfig, data: "LightningDataModule") -> None:
    """Say which targets are no labels of a classification."""
    labels, tasks = data.label_sets, data.collection.tasks  # type: ignore[attr-defined]
    if labels is not None:
        ids = {name: i for i, name in enumerate(data.task_names)}  # type: ignore[attr-defined]
        for note in labels.notes(tasks, ids, splits=[cfg.split]):
            print(note, flush=True)


def keep_answers(
    cfg: DictConfig, config: DictConfig, module: "PolyModule", loader: Any, *, folder: Path
) -> None:
    """Have the module write its answers down, and take those that an earlier process wrote down.

    Raises:
        ConfigError: If the folder is of another evaluation.
    """
    from polylab.evaluating.identity import adapter_digest, config_digest, examples_digest
    from polylab.training.journal import Journal

    about = {
        "run": str(Path(cfg.run).resolve()),
        "split": cfg.split,
        "routing": cfg.routing,
        "zero_shot": cfg.zero_shot,
        "tasks": module.task_names,
        "batches": len(loader),
        "config": config_digest(config),
        "adapter": adapter_digest(Path(cfg.run) / "adapter"),
        "examples": examples_digest(loader),
    }
    with user_mistakes(f"hydra.run.dir={folder}"):
        module.journal = Journal(folder / JOURNAL, about=about)
    if found := len(module.journal):
        print(f"going on after {found} of {len(loader)} batches", flush=True)


def answer(cfg: DictConfig, module: "PolyModule", loader: Any) -> None:
    """Have the module answer the batches that have no answers yet."""
    with module.model.routing(cfg.routing):
        ask = module.trainer.test if cfg.split == "test" else module.trainer.validate
        ask(module, dataloaders=loader, verbose=False)


def save(
    cfg: DictConfig,
    module: "PolyModule",
    *,
    folder: Path,
    neighbours: dict[str, str],
    started: float,
) -> dict[str, Any]:
    """Write the results, say them, and remove the journal."""
    from polylab.training import write_metrics

    passed = "test" if cfg.split == "test" else "val"  # what the module calls it
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in module.predictions[passed]]
    write_text(folder / "predictions.jsonl", "".join(lines))
    trained = read_json(Path(cfg.run) / "metrics.json")
    write_metrics(
        folder / "metrics.json",
        splits={SPLITS[cfg.split]: module.results[passed]},
        checkpoint=trained["checkpoint"],
        seconds=round(time.perf_counter() - started, 2),
        trainable_parameters=trained["trainable_parameters"],
        neighbours=neighbours or None,
    )
    (folder / JOURNAL).unlink()
    say_outcome(folder, commands=False)
    return read_json(folder / "metrics.json")


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.evaluate import main as run_main

    run_main()
