"""Lightning's trainer of a run, from its configuration.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.ranks import started_ranks
from polylab.config.targets import build, check_arguments, plain_container

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

__all__ = [
    "build_trainer",
    "keep_history",
    "lightning_node",
    "quiet_libraries",
    "slurm_environment",
]


def build_trainer(
    cfg: DictConfig, *, callbacks: "list[Callback]", logger: "Logger | None", folder: Path
) -> "Trainer":
    """Build Lightning's trainer, which keeps all its files in the run's folder."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar

    from polylab.training import AtomicCheckpointIO

    node = lightning_node(cfg.trainer)
    _avoid_broken_kernels()
    arguments = plain_container(node)
    if OmegaConf.is_dict(node.strategy):
        arguments["strategy"] = build(node.strategy, key="trainer.strategy")
    arguments["default_root_dir"] = arguments["default_root_dir"] or str(folder)
    arguments["plugins"] = [
        *(arguments["plugins"] or ()),
        AtomicCheckpointIO(),
        *slurm_environment(),
    ]
    arguments["val_check_interval"] = _validation_interval(cfg.trainer)
    # Lightning would add a checkpoint callback with file names of its own
    arguments["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    if arguments["enable_progress_bar"] is False:
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]
    elif arguments["enable_progress_bar"] is None:  # Lightning would add a bar of its own
        arguments["enable_progress_bar"] = any(isinstance(c, ProgressBar) for c in callbacks)
    try:
        with user_mistakes("trainer"):
            check_arguments(Trainer, node, key="trainer")
            return Trainer(**arguments, callbacks=callbacks, logger=logger or False)
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error


def slurm_environment() -> "list[ClusterEnvironment]":
    """Return who tells a rank its number where Lightning would ask SLURM.

    In a job of one task that task starts its ranks itself: Lightning would take its one process for
    the whole run. Nor is Lightning to requeue a job, since it saves in the midst of a step.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    ranks = started_ranks()
    if ranks is not None and ranks.starter == "srun":
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()] if ranks is None and "SLURM_NTASKS" in os.environ else []


def keep_history(trainer: "Trainer", folder: Path) -> None:
    """Let what is logged also be written down in the run's folder, whatever the tracker."""
    from polylab.training import HistoryLogger

    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.loggers = [*trainer.loggers, HistoryLogger(folder)]


def _avoid_broken_kernels() -> None:
    """Leave out an attention kernel whose gradients are NaN.

    cuDNN's, which torch 2.11 to 2.13 prefer on H100 and H200, with a mask: pytorch issue 196678.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def lightning_node(trainer: DictConfig) -> DictConfig:
    """Return the keys of `trainer` that are Lightning's: all but `compile`."""
    return OmegaConf.masked_copy(trainer, [str(key) for key in trainer if key != "compile"])


def _validation_interval(trainer: DictConfig) -> Any:
    """Return `val_check_interval`, in batches, lowered so that the shortest run validates once."""
    interval, steps = trainer.val_check_interval, trainer.max_steps
    if isinstance(interval, int) and steps > 0:
        return min(interval, steps * trainer.accumulate_grad_batches)
    return interval


def quiet_libraries() -> None:
    """Leave the terminal to the run: no tips, no lists of devices, no bar for loading weights."""
    # Lightning 2.6 calls what torch 2.13 deprecates, in every loop
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # the CSV logger writes into the run's folder, which is never empty
    warnings.filterwarnings("ignore", message="Experiment logs directory .* is not empty")
    # on a cluster's login node, or in a job of one task
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # what is logged is equal on all ranks already; Lightning believes that on several ranks only
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")
    import lightning.pytorch  # noqa: F401 - which sets its loggers' levels
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
