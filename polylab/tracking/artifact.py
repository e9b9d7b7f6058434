"""What a finished run is, as one W&B artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger
from wandb.errors import Error

from polylab.tracking.logger import PatientWandbLogger

__all__ = ["log_run_artifact"]

_FILES = ("config.yaml", "environment.json", "metrics.json", "skills.csv")


def log_run_artifact(
    logger: Logger | None, folder: Path, *, kept: str, metadata: dict[str, Any]
) -> None:
    """Log `adapter-RUN_ID` of type `model`: the adapter, final figures, `skills.csv` and scores.

    Its aliases are `latest` and `kept`. Nothing is copied: an offline run refers to the files in
    the run's folder until `wandb sync` uploads them, so do that before the folder is moved.

    Args:
        logger: Only a `PatientWandbLogger` with `log_adapter` has artifacts.
        folder: The run's; what it lacks is left out, and without an `adapter/` there is no
            artifact.
        kept: `best` or `last`: whose weights the adapter has.
        metadata: Shown with the artifact, such as the macro scores.
    """
    if not isinstance(logger, PatientWandbLogger) or not logger.log_adapter or logger.is_lost:
        return
    files = _files(folder)
    if not any(name.startswith("adapter/") for name in files):
        return
    run = logger.experiment
    try:
        artifact = wandb.Artifact(f"adapter-{run.id}", type="model", metadata=metadata)
        for name, path in files.items():
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", kept])
    except (Error, OSError) as error:
        logger.give_up(error)


def _files(folder: Path) -> dict[str, Path]:
    """By name in the artifact. Figures of single steps stay out: W&B has them as images."""
    adapter = [path for path in sorted((folder / "adapter").rglob("*")) if path.is_file()]
    figures = [p for p in sorted((folder / "figures").glob("*.p*")) if "-" not in p.stem]
    others = [folder / name for name in _FILES if (folder / name).is_file()]
    return {str(p.relative_to(folder).as_posix()): p for p in (*adapter, *figures, *others)}
