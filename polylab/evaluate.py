"""Metrics of a finished run: `python -m polylab.evaluate run=RUN_DIR [data=...] [routing=...]`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import functools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import mistakes_in_one_line, user_mistakes
from polylab.config.files import folder_names, read_json, write_config, write_text
from polylab.config.help import evaluate_help
from polylab.config.launch import job_folder, launch
from polylab.evaluating.choices import (
    SPLITS,
    STUDY,
    check_choices,
    check_folder,
    chosen_tasks,
    evaluation_config,
    is_study,
)
from polylab.finished import label_sets, load_run, read_run, task_names
from polylab.parts import ReadTasks, classifies, read_tasks
from polylab.terminal.outcome import say_outcome
from polylab.trainers import quiet_libraries

if TYPE_CHECKING:
    from polylab import PolyModel
    from polylab.evaluating.preparation import Evaluation
    from polylab.training.journal import Journal

JOURNAL, JOURNALS = "answers.jsonl", "answers"  # of one routing, and of several
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
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as `cfg` says; write what it gives into the folder, and return `metrics.json`.

    Raises:
        ConfigError: If the run, the data or a setting is not valid.
    """
    check_choices(cfg)
    started, folder = time.perf_counter(), job_folder()
    check_folder(folder)
    config = run_config(cfg)
    known, labels = task_names(Path(cfg.run)), label_sets(Path(cfg.run), config)
    quiet_libraries()
    source = chosen_tasks(cfg.task, read_tasks(config))
    model, backbone = load_run(Path(cfg.run), config, trust_code=cfg.trust_code)
    neighbours = route_unknown(cfg, config, model, backbone.tokenizer, known=known, source=source)
    config.data.known_tasks = known
    from polylab.evaluating.preparation import prepare

    evaluation = prepare(
        config,
        model,
        backbone,
        source=source,
        labels=labels,
        split=cfg.split,
        folder=folder,
        asks_answers=cfg.answers,
    )
    say_notes(evaluation)
    about = evaluation.identity(Path(cfg.run))
    about |= {"zero_shot": cfg.zero_shot, "answers": cfg.answers}
    if is_study(cfg):
        found = run_study(cfg, evaluation, folder=folder, about=about)
    else:
        found = run_one(cfg, evaluation, folder=folder, about=about)
    return save(cfg, *found, folder=folder, neighbours=neighbours, started=started)


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
    return evaluation_config(
        config,
        split=cfg.split,
        examples_per_task=cfg.examples_per_task,
        batch_size=cfg.batch_size,
        accelerator=cfg.accelerator,
        precision=cfg.precision,
        enable_progress_bar=False if is_study(cfg) else None,
    )


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


def say_notes(evaluation: "Evaluation") -> None:
    """Say which targets are no labels of a classification."""
    data = evaluation.data
    if data.label_sets is not None:
        ids = {name: i for i, name in enumerate(data.task_names)}
        for note in data.label_sets.notes(data.collection.tasks, ids, splits=[evaluation.split]):
            print(note, flush=True)


def run_one(
    cfg: DictConfig, evaluation: "Evaluation", *, folder: Path, about: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """Ask under one routing; return the result and the answers.

    Raises:
        ConfigError: If the routing is unknown, or the folder is of another evaluation.
    """
    evaluation.check_routing(cfg.routing)
    journal = open_journal(folder, JOURNAL, {**about, "routing": cfg.routing})
    if found := len(journal):
        print(f"going on after {found} of {len(evaluation.loader)} batches", flush=True)
    write_config(folder / "config.yaml", evaluation.config)
    evaluation.ask(cfg.routing, journal)
    return evaluation.result, evaluation.predictions


def run_study(
    cfg: DictConfig, evaluation: "Evaluation", *, folder: Path, about: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """Ask under several routings and write what they change; return what `learned` gives.

    Raises:
        ConfigError: If a routing or the metric is unknown, or the folder is of another evaluation.
    """
    from polylab.evaluating.asking import choose_metric, study, study_routings, with_learned
    from polylab.evaluating.output import show, write

    if cfg.routing == STUDY:
        routings, note = study_routings(evaluation)
    else:
        routings, note = with_learned(cfg.routing), None
    for routing in routings:
        evaluation.check_routing(routing)
    choose_metric(evaluation, cfg.metric)
    files = folder_names(routings)
    journals = {
        routing: open_journal(folder, f"{JOURNALS}/{name}.jsonl", {**about, "routing": routing})
        for routing, name in zip(routings, files, strict=True)
    }
    write_config(folder / "config.yaml", evaluation.config)
    say = functools.partial(print, flush=True)
    found = study(evaluation, journals, metric=cfg.metric, note=note, say=say)
    write(found, folder)
    show(found)
    return found.result, found.predictions


def open_journal(folder: Path, name: str, about: Mapping[str, Any]) -> "Journal":
    """Open the answers that an earlier process wrote down, or new ones.

    Raises:
        ConfigError: If they are of another evaluation.
    """
    from polylab.training.journal import Journal

    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with user_mistakes(f"hydra.run.dir={folder}"):
        return Journal(folder / name, about=about)


def save(
    cfg: DictConfig,
    result: Mapping[str, Any],
    predictions: Sequence[Any],
    *,
    folder: Path,
    neighbours: dict[str, str],
    started: float,
) -> dict[str, Any]:
    """Write the results, say them, and remove the journals."""
    from polylab.training import write_metrics

    if cfg.answers:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in predictions]
        write_text(folder / "predictions.jsonl", "".join(lines))
    trained = read_json(Path(cfg.run) / "metrics.json")
    write_metrics(
        folder / "metrics.json",
        splits={SPLITS[cfg.split]: result},
        checkpoint=trained["checkpoint"],
        seconds=round(time.perf_counter() - started, 2),
        trainable_parameters=trained["trainable_parameters"],
        neighbours=neighbours or None,
    )
    (folder / JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(folder / JOURNALS, ignore_errors=True)
    say_outcome(folder, commands=False, table=not is_study(cfg))
    return read_json(folder / "metrics.json")


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.evaluate import main as run_main

    run_main()
