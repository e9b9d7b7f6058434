"""The main job: `python -m polylab.train experiment=NAME [overrides]`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from polylab.config.checks import check_choices, check_config
from polylab.config.ddp import (
    await_first,
    children_config,
    clean_environment,
    is_child,
    starts_children_alone,
)
from polylab.config.environment import describe_environment
from polylab.config.errors import ConfigError, explain, wants_traceback
from polylab.config.files import read_json, write_config, write_json
from polylab.config.help import help_text
from polylab.config.jobs import pick_up, recorded
from polylab.config.launch import job_folder, launch, sweep_folder
from polylab.config.ranks import match_ranks
from polylab.config.requeue import ASKED, NO_ADVANCE, is_done, requeue, requeue_signal
from polylab.config.sweeps import closing_sweep
from polylab.parts import Parts, build_parts
from polylab.ranks.wire import FailedRank
from polylab.terminal.facts import device_name, facts
from polylab.terminal.outcome import say_outcome, split_results, stopped_line
from polylab.tracked import finished_logger

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

log = logging.getLogger("polylab")

_BY_SIGTERM = 143  # as a shell reports it: 128 + 15


def main() -> None:
    """Run the command line."""
    with closing_sweep():
        launch(task, config_name="train", help_text=help_text)


@recorded
def task(cfg: DictConfig) -> float | None:
    """Run one job; a mistake of the user ends a single run with one line, and fails a sweep's job.

    Raises:
        SystemExit: With code 1, in a single run.
        ConfigError: In a sweep, whose other jobs go on; also if another rank of the job failed.
        FloatingPointError: In a sweep, if the training diverged.
    """
    try:
        return run(cfg)
    except (ConfigError, OmegaConfBaseException, FloatingPointError, FailedRank) as error:
        if wants_traceback():
            raise
        await_first()
        log.error(explain(error))
        if sweep_folder() is not None and isinstance(error, FailedRank):
            raise ConfigError(str(error)) from None  # whose traceback would be of no use
        if sweep_folder() is not None:
            raise
        raise SystemExit(1) from None


def run(cfg: DictConfig) -> float | None:
    """Train, validate, test and save as `cfg` says; return the metric that a search optimises.

    Raises:
        ConfigError: If the configuration, data, backbone or adapter is not valid; nothing has been
            written then.
    """
    folder, started = job_folder(), time.perf_counter()
    match_ranks(cfg.trainer)
    if is_done(cfg, folder):
        return None
    asked = cfg.copy()
    pick_up(cfg, folder)
    check_config(cfg)
    check_choices(cfg, HydraConfig.get().runtime.choices)
    from polylab.ranks.together import ending_together  # and with it torch

    with clean_environment():
        parts = build_parts(cfg, folder=folder)
        lead = parts.trainer.is_global_zero
        if lead:
            print(facts(cfg, parts, folder=folder), flush=True)
        if cfg.validate_only:
            print("the configuration, data, backbone and adapter are valid", flush=True)
            return None
        if not is_child():
            write_config(folder / ASKED, asked)
            write_config(folder / "config.yaml", cfg)
            write_json(folder / "environment.json", surroundings(parts))
            carry_best(parts, ckpt_path=cfg.ckpt_path)
        elif starts_children_alone():
            write_config(children_config(folder), cfg)
        tracked = finished_logger(parts.logger, folder=folder)
        with stopped_in_order(parts, cfg), tracked, ending_together(parts.trainer):
            kept = fit_and_test(parts, folder=folder, ckpt_path=cfg.ckpt_path)
            save_trained(parts, folder=folder)
            if lead:
                seconds = round(time.perf_counter() - started, 2)
                save_results(parts, folder=folder, kept=kept, seconds=seconds)
                track_results(parts, folder=folder, kept=kept)
        if lead:
            say_outcome(folder, commands=True)
        return optimized_value(parts, cfg.optimized_metric)


@contextmanager
def stopped_in_order(parts: Parts, cfg: DictConfig) -> Iterator[None]:
    """Let a signal end the training in order; one that SLURM sends has the job requeued then.

    Unless the job has come no further, which the next attempt would not either.
    """
    from polylab.training import Stopping

    stopping = Stopping(also=requeue_signal(cfg))
    parts.trainer.callbacks.insert(0, stopping)  # type: ignore[attr-defined]
    try:
        yield
    except SystemExit as stop:
        is_asked = stopping.also is not None and stop.code == 128 + stopping.also
        if is_asked and parts.trainer.is_global_zero:
            log.error(requeue() if stopping.has_advanced else NO_ADVANCE)
        raise


def carry_best(parts: Parts, *, ckpt_path: str | None) -> None:
    """Copy the `best.ckpt` of the run that is continued: the best so far is part of its state."""
    from polylab.training import RunCheckpoint

    checkpoints = parts.trainer.checkpoint_callback
    if ckpt_path is None or not isinstance(checkpoints, RunCheckpoint):
        return
    best, copy = Path(ckpt_path).with_name("best.ckpt"), checkpoints.best_path
    if best.is_file() and best.resolve() != copy.resolve():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, copy)


def fit_and_test(parts: Parts, *, folder: Path, ckpt_path: str | None) -> str:
    """Train, then validate and test the best weights, or the last ones where no best were kept.

    Returns:
        Which weights these are, `best` or `last`; the module holds them.

    Raises:
        SystemExit: With a code, if a signal ends the training.
    """
    from polylab.training import Stopping

    trainer, module, data = parts.trainer, parts.module, parts.data
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Stopping):
                callback.end_if_agreed()
    except SystemExit as stop:  # Lightning's answer to ctrl-C, and to SIGTERM without a code
        if trainer.is_global_zero:
            log.error(stopped_line(folder, steps=trainer.global_step))
        raise SystemExit(stop.code or _BY_SIGTERM) from None
    finally:
        save_mix(parts, folder=folder)
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    trainer.validate(module, data, ckpt_path=best, weights_only=True, verbose=False)
    if _has_test(module):
        trainer.test(module, data, verbose=False)
    return "last" if best is None else "best"


def save_mix(parts: Parts, *, folder: Path) -> None:
    """Write `mix.csv`: what was seen of each task, by the end of training or by its error."""
    from polylab.data import DataModule
    from polylab.training import PolyModule, write_mix

    module, data, trainer = parts.module, parts.data, parts.trainer
    if not (isinstance(module, PolyModule) and isinstance(data, DataModule)):
        return
    # after an error nobody knows what the other ranks have seen since the previous log line
    is_exact = trainer.state.finished or trainer.world_size == 1
    if trainer.is_global_zero and is_exact and any(module.examples_seen.values()):
        write_mix(folder / "mix.csv", data.mix, module.examples_seen)


def save_trained(parts: Parts, *, folder: Path) -> None:
    """Write the adapter, if there is one; all ranks call this, since each may hold a part."""
    from polylab import PolyModel
    from polylab.training import ClassificationModule, save_adapter

    if not isinstance(parts.model, PolyModel):
        return
    lead = parts.trainer.is_global_zero
    save_adapter(parts.model, folder / "adapter", parts.task_names, is_main_process=lead)
    if lead and isinstance(parts.module, ClassificationModule):
        parts.module.save_labels(folder / "adapter" / "labels.json")


def save_results(parts: Parts, *, folder: Path, kept: str, seconds: float) -> None:
    """Write `metrics.json`, the sign of a finished run."""
    from polylab.callbacks import Recovery
    from polylab.training import count_trainable, write_metrics

    values = {key: value.item() for key, value in parts.trainer.callback_metrics.items()}
    callbacks = parts.trainer.callbacks  # type: ignore[attr-defined]
    recoveries = [callback.result for callback in callbacks if isinstance(callback, Recovery)]
    results = getattr(parts.module, "results", {})
    write_metrics(
        folder / "metrics.json",
        splits={s: results.get(s) or split_results(values, s) for s in ("val", "test")},
        checkpoint="best" if kept == "best" else "last",
        seconds=seconds,
        trainable_parameters=count_trainable(parts.module),
        recovery=next(filter(None, recoveries), None),
        categories=getattr(parts.data, "categories", None) or None,
    )


def track_results(parts: Parts, *, folder: Path, kept: str) -> None:
    """Log the adapter, the final figures and the scores as an artifact, where W&B tracks."""
    from lightning.pytorch.loggers import WandbLogger

    if isinstance(parts.logger, WandbLogger):
        from polylab.tracking import log_run_artifact

        metrics = read_json(folder / "metrics.json")
        scores = {split: (metrics.get(split) or {}).get("macro", {}) for split in ("val", "test")}
        log_run_artifact(parts.logger, folder, kept=kept, metadata=scores)


def optimized_value(parts: Parts, key: str) -> float | None:
    """Return the metric `SPLIT/NAME` of the finished run, None if it was never logged."""
    split, _, name = key.partition("/")
    result = getattr(parts.module, "results", {}).get(split, {})
    value = result.get(name, result.get("macro", {}).get(name))
    if value is None and key in parts.trainer.callback_metrics:
        value = parts.trainer.callback_metrics[key].item()
    return value


def surroundings(parts: Parts) -> dict[str, Any]:
    """Return versions, machine, commit and command of the run."""
    trainer = parts.trainer
    return describe_environment(
        device=device_name(trainer.strategy.root_device),
        devices=trainer.world_size,
        nodes=trainer.num_nodes,
        overrides=list(HydraConfig.get().overrides.task),
    )


def _has_test(module: "LightningModule") -> bool:
    from lightning.pytorch.utilities.model_helpers import is_overridden

    return is_overridden("test_step", module)


if __name__ == "__main__":
    # by name, so that launchers find the task in a module that their workers can import
    from polylab.train import main as run_main

    run_main()
