"""What is adapted to what: the command's configuration, checked before anything is written.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from polylab.config.checks import check_config
from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.files import folder_names
from polylab.config.launch import job_folder
from polylab.config.suggest import hint, listing
from polylab.config.targets import check_targets
from polylab.finished import load_run, read_generating_run, task_names
from polylab.parts import (
    ReadTasks,
    build_data,
    build_optim,
    check_packing,
    read_tasks,
)
from polylab.trainers import build_trainer, quiet_libraries

if TYPE_CHECKING:
    from polylab import PolyModel
    from polylab.adaptation.shots import Shots
    from polylab.backbones import Backbone
    from polylab.data import TaskData

__all__ = ["Plan", "attachment", "build_unit_data", "check_command", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """What is adapted to what, checked before anything is written."""

    model: "PolyModel"
    backbone: "Backbone"
    run_tasks: list[str]
    tasks: "list[TaskData]"
    seeds: list[int]
    shots: "Shots"
    places: dict[str, str]
    """Names of folders for all tasks of the data, so that `adapt.tasks` changes none."""

    @property
    def units(self) -> list[tuple[str, int]]:
        """Every task and seed, in the order of the table."""
        return [(task.name, seed) for task in self.tasks for seed in self.seeds]


def check_command(cfg: DictConfig) -> None:
    """Check the configuration by itself, and resolve it.

    Raises:
        ConfigError: If the run is none, or a key of the configuration is wrong.
    """
    if OmegaConf.is_missing(cfg, "run"):
        raise ConfigError("run is not set · give run=RUN_DIR of a finished run")
    read_generating_run(Path(cfg.run))
    check_config(cfg)
    OmegaConf.resolve(cfg)  # the parts are built from single nodes
    _check_adapt(cfg)
    check_targets(cfg.module, key="module")
    quiet_libraries()
    build_optim(cfg)
    _check_monitor(cfg.adapt.monitor)


def make_plan(cfg: DictConfig) -> Plan:
    """Read the run and the new tasks, load the backbone once, and try everything out.

    Args:
        cfg: As `check_command` leaves it.

    Raises:
        ConfigError: If any of them refuses what it is given.
    """
    run_config, names = read_generating_run(Path(cfg.run)), task_names(Path(cfg.run))
    found = _read_new_tasks(cfg)
    tasks = _choose_tasks(cfg, found, names)
    shots = _make_shots(cfg)
    _check_shots(tasks, shots, seed=cfg.adapt.seeds[0])
    model, backbone = _load(cfg, run_config)
    places = dict(zip(found, folder_names([*found]), strict=True))
    plan = Plan(model, backbone, names, tasks, [*cfg.adapt.seeds], shots, places)
    _check_plan(cfg, plan)
    return plan


def _check_adapt(cfg: DictConfig) -> None:
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
    if cfg.trainer.max_steps != cfg.adapt.steps:
        raise ConfigError(
            f"trainer.max_steps={cfg.trainer.max_steps} with adapt.steps={cfg.adapt.steps} · give "
            "adapt.steps alone"
        )
    if cfg.trainer.compile:
        raise ConfigError("trainer.compile=true: an adaptation is not compiled · leave it out")
    precision = str(cfg.trainer.precision)
    if precision.startswith(("64", "transformer-engine")) or precision in ("16-true", "bf16-true"):
        raise ConfigError(
            f"trainer.precision={precision} casts the run's weights, and the next adaptation would "
            "start from cast ones · give 32-true, bf16-mixed or 16-mixed; the backbone's dtype is "
            "the run's"
        )
    if cfg.optim.anneal_steps:
        raise ConfigError(
            f"optim.anneal_steps={cfg.optim.anneal_steps}: an adaptation does not anneal its "
            "routing · leave it out; adapt=mu trains the averaged skills"
        )


def _check_monitor(monitor: str) -> None:
    from polylab.training.evaluation import TEXT_METRICS

    valid = ("loss", *TEXT_METRICS)
    if monitor not in valid:
        raise ConfigError(
            f"adapt.monitor={monitor} is not known{hint(monitor, valid)} · valid: {listing(valid)}"
        )


def _read_new_tasks(cfg: DictConfig) -> "dict[str, TaskData]":
    """All tasks of the data, by name."""
    source = read_tasks(cfg)
    if source is None:
        raise ConfigError("data has no source of tasks · give data=jsonl data.path=DIR, say")
    return {task.name: task for task in source().tasks}


def _choose_tasks(
    cfg: DictConfig, found: "dict[str, TaskData]", run_tasks: list[str]
) -> "list[TaskData]":
    """The tasks of the data, or those of them that `adapt.tasks` names.

    Raises:
        ConfigError: If there is no such task, or one is a task of the run.
    """
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


def _make_shots(cfg: DictConfig) -> "Shots":
    """What is drawn of each task."""
    from polylab.adaptation.shots import Shots

    return Shots(
        train=cfg.adapt.shots,
        validation=cfg.adapt.validation_rows if cfg.adapt.select == "best" else 0,
        max_validation=cfg.data.eval_examples_per_task,
        max_test=cfg.data.test_examples_per_task,
        eval_seed=cfg.seed,
    )


def _check_shots(tasks: "list[TaskData]", shots: "Shots", *, seed: int) -> None:
    """Refuse tasks with too few rows; how many there are does not depend on the seed.

    Raises:
        ConfigError: Naming the first of them.
    """
    from polylab.adaptation.shots import draw_shots

    with user_mistakes():
        for data in tasks:
            draw_shots(data, shots, seed=seed)


def _load(cfg: DictConfig, run_config: DictConfig) -> "tuple[PolyModel, Backbone]":
    """Load the run's backbone with its adapter; to train all weights, in float32."""
    if cfg.adapt.method == "full":
        with open_dict(run_config):
            run_config.backbone.dtype = "float32"
    return load_run(Path(cfg.run), run_config, trust_code=cfg.trust_code)


def _check_plan(cfg: DictConfig, plan: Plan) -> None:
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
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"trainer.strategy={type(trainer.strategy).__name__} · this command adapts one model "
            "that is whole, again and again · give trainer=default, cpu or gpu"
        )
    from polylab.adaptation.methods import attached

    check_packing(cfg, plan.model)
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
