"""Few-shot adaptation: `python -m polylab.adapt run=RUN_DIR data=... adapt=METHOD [overrides]`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from polylab.config.checks import check_config
from polylab.config.ddp import clean_environment
from polylab.config.errors import ConfigError, explain, user_mistakes, wants_traceback
from polylab.config.files import write_config, write_json
from polylab.config.help import ADAPT_GROUPS, ADAPT_HELP, help_text
from polylab.config.launch import job_folder, launch, sweep_folder
from polylab.config.suggest import hint, listing
from polylab.config.targets import build, check_targets
from polylab.export import folder_names
from polylab.parts import (
    ReadTasks,
    build_data,
    build_optim,
    build_trainer,
    quiet_libraries,
    read_tasks,
)
from polylab.runs import load_run, read_run, task_names

if TYPE_CHECKING:
    from polylab import PolyModel
    from polylab.adaptation.shots import Shots
    from polylab.adaptation.table import Results
    from polylab.backbones import Backbone
    from polylab.data import TaskData

log = logging.getLogger("polylab")

# Keys in which a command that goes on in a folder may differ from the one that began there.
FREE = ("adapt.seeds", "adapt.tasks")


@dataclass(frozen=True)
class Plan:
    """What is adapted to what, checked before anything is written."""

    model: "PolyModel"
    backbone: "Backbone"
    run_tasks: list[str]
    tasks: "list[TaskData]"
    seeds: list[int]
    shots: "Shots"

    @property
    def units(self) -> list[tuple[str, int]]:
        """Every task and seed, in the order of the table."""
        return [(task.name, seed) for task in self.tasks for seed in self.seeds]


def main() -> None:
    """Run the command line."""
    launch(task, config_name="adapt", help_text=lambda: help_text(ADAPT_HELP, groups=ADAPT_GROUPS))


def task(cfg: DictConfig) -> None:
    """Run one job; a mistake of the user ends a single one with one line, and fails a sweep's job.

    Raises:
        SystemExit: With code 1, in a single run.
        ConfigError: In a sweep, whose other jobs go on.
    """
    try:
        run(cfg)
    except (ConfigError, OmegaConfBaseException) as error:
        if wants_traceback():
            raise
        log.error(explain(error))
        if sweep_folder() is not None:
            raise
        raise SystemExit(1) from None


def run(cfg: DictConfig) -> None:
    """Adapt to every task with every seed, each from the run's weights, and write the tables.

    Raises:
        ConfigError: If the run, the configuration, the data or the method is not valid; nothing
            has been written then.
    """
    from polylab.adaptation.table import Results

    folder = job_folder()
    with clean_environment():
        plan = make_plan(cfg)
        check_folder(cfg, folder)
        results = Results.read(folder / "results.csv")
        todo = [unit for unit in plan.units if unit not in results.rows]
        print(facts(cfg, plan, n_todo=len(todo), folder=folder), flush=True)
        write_config(folder / "config.yaml", cfg)
        for name, seed in todo:
            adapt_once(cfg, plan, name=name, seed=seed, results=results, folder=folder)
    finish(cfg, plan, results, folder=folder)


def make_plan(cfg: DictConfig) -> Plan:
    """Read the run and the new tasks, load the backbone once, and try everything out.

    Raises:
        ConfigError: If any of them refuses what it is given.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise ConfigError("run is not set · give run=RUN_DIR of a finished run")
    run_config, names = read_run(Path(cfg.run)), task_names(Path(cfg.run))
    check_config(cfg)
    OmegaConf.resolve(cfg)  # the parts are built from single nodes
    check_adapt(cfg)
    check_targets(cfg.module, key="module")
    quiet_libraries()
    build_optim(cfg)
    tasks = choose_tasks(cfg, names)
    shots = make_shots(cfg)
    check_shots(tasks, shots, seed=cfg.adapt.seeds[0])
    model, backbone = load(cfg, run_config)
    plan = Plan(model, backbone, names, tasks, [*cfg.adapt.seeds], shots)
    check_plan(cfg, plan)
    return plan


def check_adapt(cfg: DictConfig) -> None:
    """Check what the ranges of single keys cannot say.

    Raises:
        ConfigError: Naming the key.
    """
    seeds = [*cfg.adapt.seeds]
    if not seeds or len({*seeds}) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ConfigError(
            f"adapt.seeds={seeds} · valid: one or more different numbers from 0 to 4294967295"
        )
    if cfg.adapt.save and cfg.adapt.method == "full":
        raise ConfigError("adapt.save=true with adapt=full: there is no adapter · leave it out")


def choose_tasks(cfg: DictConfig, run_tasks: list[str]) -> "list[TaskData]":
    """The tasks of the data, or those of them that `adapt.tasks` names.

    Raises:
        ConfigError: If there is no such task, or one is a task of the run.
    """
    source = read_tasks(cfg)
    if source is None:
        raise ConfigError("data has no source of tasks · give data=jsonl data.path=DIR, say")
    found = {task.name: task for task in source().tasks}
    wanted = [*found] if cfg.adapt.tasks is None else [*cfg.adapt.tasks]
    for name in wanted:
        if name not in found:
            raise ConfigError(
                f"adapt.tasks={wanted}: the data have no task {name!r}{hint(name, found)} · valid: "
                f"{listing(found)}"
            )
    if known := [name for name in wanted if name in run_tasks]:
        raise ConfigError(
            f"data: {listing(known, limit=4)}: tasks of run={cfg.run} itself, and an adaptation is "
            "to new ones · choose others with data=... or adapt.tasks=[...]"
        )
    if len({*wanted}) < max(1, len(wanted)):
        raise ConfigError(f"adapt.tasks={wanted} · give each task once, and at least one")
    return [found[name] for name in found if name in wanted]


def make_shots(cfg: DictConfig) -> "Shots":
    """What is drawn of each task."""
    from polylab.adaptation.shots import Shots

    return Shots(
        train=cfg.adapt.shots,
        validation=cfg.adapt.validation_rows if cfg.adapt.select == "best" else 0,
        max_validation=cfg.data.eval_examples_per_task,
        max_test=cfg.data.test_examples_per_task,
        eval_seed=cfg.seed,
    )


def check_shots(tasks: "list[TaskData]", shots: "Shots", *, seed: int) -> None:
    """Refuse tasks with too few rows; how many there are does not depend on the seed.

    Raises:
        ConfigError: Naming the first of them.
    """
    from polylab.adaptation.shots import draw_shots

    with user_mistakes():
        for data in tasks:
            draw_shots(data, shots, seed=seed)


def load(cfg: DictConfig, run_config: DictConfig) -> "tuple[PolyModel, Backbone]":
    """Load the run's backbone with its adapter; to train all weights, in float32."""
    if cfg.adapt.method == "full":
        with open_dict(run_config):
            run_config.backbone.dtype = "float32"
    return load_run(Path(cfg.run), run_config, trust_code=cfg.trust_code)


def check_plan(cfg: DictConfig, plan: Plan) -> None:
    """Make once what every task and seed needs.

    Raises:
        ConfigError: If the method, the data or the trainer refuses.
    """
    trainer = build_trainer(cfg, callbacks=[], logger=None, folder=job_folder())
    if trainer.world_size > 1:
        raise ConfigError(
            f"trainer.devices={cfg.trainer.devices} makes {trainer.world_size} ranks · this "
            "command runs on one device · start one per device, each with adapt.tasks=[...]"
        )
    from polylab.adaptation.methods import attached
    from polylab.training.evaluation import TEXT_METRICS

    monitor, valid = cfg.adapt.monitor, ("loss", *TEXT_METRICS)
    if monitor not in valid:
        raise ConfigError(
            f"adapt.monitor={monitor} is not known{hint(monitor, valid)} · valid: {listing(valid)}"
        )
    first = plan.tasks[0]
    with user_mistakes(), attached(plan.model, **attachment(cfg, first.name)):
        data = build_unit_data(cfg, plan, first, seed=plan.seeds[0])
        data.setup("fit")
        data.train_dataloader()


def attachment(cfg: DictConfig, name: str) -> dict[str, Any]:
    """The arguments of `attached` but the model."""
    settings = cfg.adapt
    return {
        "method": settings.method,
        "task": name,
        "like": settings.router_init,
        "r": settings.r,
    }


def build_unit_data(cfg: DictConfig, plan: Plan, task_data: "TaskData", *, seed: int) -> Any:
    """Make the data module of one task, with the rows of this seed and an id after the run's."""
    from polylab.adaptation.shots import draw_shots
    from polylab.data import TaskCollection

    source = ReadTasks(TaskCollection([draw_shots(task_data, plan.shots, seed=seed)]))
    own: dict[str, Any] = {"known_tasks": plan.run_tasks}
    if "cache" in cfg.data:
        own["cache"] = None  # of the whole tasks, which have been read
    unit = OmegaConf.merge(cfg, {"seed": seed, "data": own})
    assert isinstance(unit, DictConfig)
    return build_data(unit, plan.backbone, source=source)


def check_folder(cfg: DictConfig, folder: Path) -> None:
    """Accept a new folder, or one where the same command has begun.

    Raises:
        ConfigError: If its results are of another configuration.
    """
    path = folder / "config.yaml"
    if not (folder / "results.csv").is_file() and not path.is_file():
        return
    with user_mistakes(str(path)):
        before = dict(_flat(OmegaConf.to_container(OmegaConf.load(path))))
    now = dict(_flat(OmegaConf.to_container(cfg, resolve=True)))
    for key in sorted({*before, *now} - {*FREE}):
        old, new = before.get(key), now.get(key)
        if old != new:
            raise ConfigError(
                f"{folder} has results of {key}={old}, and this command has {key}={new} · go on "
                "with the same settings, or give another folder"
            )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def adapt_once(
    cfg: DictConfig, plan: Plan, *, name: str, seed: int, results: "Results", folder: Path
) -> None:
    """Adapt to one task with one seed, test, and add the row to the table."""
    from lightning.pytorch import seed_everything

    from polylab.adaptation.methods import attached, count_adapted

    started = time.perf_counter()
    seed_everything(seed, workers=True, verbose=False)  # whatever came before
    with attached(plan.model, **attachment(cfg, name)):
        count = count_adapted(plan.model)
        scores = train_and_test(cfg, plan, name=name, seed=seed, folder=folder)
        if cfg.adapt.save:
            save(plan, name=name, seed=seed, folder=folder)
    seconds = round(time.perf_counter() - started, 2)
    row = {"task": name, "method": cfg.adapt.method, "shots": cfg.adapt.shots, "seed": seed}
    row |= {**scores, "parameters": count, "seconds": seconds}
    results.add((name, seed), row, order=plan.units)
    line = " · ".join(f"{metric} {value:.3f}" for metric, value in sorted(scores.items()))
    place = plan.units.index((name, seed)) + 1
    print(f"{place}/{len(plan.units)} {name}, seed {seed}: {line} · {seconds:.1f} s", flush=True)


def train_and_test(
    cfg: DictConfig, plan: Plan, *, name: str, seed: int, folder: Path
) -> Mapping[str, float]:
    """Train what is attached, choose the best weights on validation, and test these."""
    from polylab.adaptation.best import KeepBest

    (task_data,) = [data for data in plan.tasks if data.name == name]
    data = build_unit_data(cfg, plan, task_data, seed=seed)
    parts = {
        "model": plan.model,
        "tokenizer": plan.backbone.tokenizer,
        "task_names": data.task_names,
        "optim": build_optim(cfg),
        "seed": seed,
    }
    module = build(cfg.module, key="module", parts=parts)
    callbacks: list[Any] = [KeepBest(cfg.adapt.monitor)] if plan.shots.validation else []
    trainer = build_trainer(cfg, callbacks=callbacks, logger=None, folder=folder)
    trainer.fit(module, datamodule=data)
    trainer.test(module, data, verbose=False)
    return module.results["test"]["tasks"][name]


def save(plan: Plan, *, name: str, seed: int, folder: Path) -> None:
    """Write the adapter, with the run's tasks and the new one, to `adapters/TASK/seed_SEED`."""
    from polylab.adaptation.methods import ADAPTER
    from polylab.poly.io import write_adapter

    names = [data.name for data in plan.tasks]
    place = dict(zip(names, folder_names(names), strict=True))[name]
    model = plan.model
    write_adapter(
        folder / "adapters" / place / f"seed_{seed}",
        model.config_of(ADAPTER),
        model=model.get_base_model(),
        adapter_name=ADAPTER,
    )


def facts(cfg: DictConfig, plan: Plan, *, n_todo: int, folder: Path) -> str:
    """Return one line about the command."""
    done = len(plan.units) - n_todo
    rest = f" · {done} of {len(plan.units)} are there already" if done else ""
    return (
        f"adapt={cfg.adapt.method} of {cfg.run} · {len(plan.tasks)} tasks x {len(plan.seeds)} "
        f"seeds · {cfg.adapt.shots} shots, {cfg.adapt.steps} steps{rest} · {folder}"
    )


def finish(cfg: DictConfig, plan: Plan, results: "Results", *, folder: Path) -> None:
    """Write `summary.json`, and print the same as a table and a line."""
    from rich.console import Console

    from polylab.adaptation.table import summarise, summary_table

    tasks = [data.name for data in plan.tasks]
    summary = summarise(results, tasks=tasks, seeds=plan.seeds)
    method, shots = cfg.adapt.method, cfg.adapt.shots
    write_json(
        folder / "summary.json",
        {"method": method, "shots": shots, "seeds": plan.seeds, "metrics": summary},
    )
    title = f"adapt={method}, {shots} shots: median and quartiles over {len(plan.seeds)} seeds"
    Console().print(summary_table(summary, title=title))
    means = [f"{metric} {part['mean_of_medians']:.3f}" for metric, part in summary.items()]
    print(f"test, mean over tasks of the medians: {' · '.join(means)} · {folder}", flush=True)


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.adapt import main as run_main

    run_main()
