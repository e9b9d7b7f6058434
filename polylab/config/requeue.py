"""A run that goes on in its own folder: after SLURM or torchrun has started it again."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.ddp import is_child
from polylab.config.errors import ConfigError
from polylab.config.ranks import restarts, slurm_job

ASKED = Path(".hydra") / "asked.yaml"  # the configuration before a run added what it found out
NO_ADVANCE = (
    "not requeued: no step was made since the job was started · give it more time (#SBATCH --time) "
    "or a shorter notice (--signal=SIGUSR1@SECONDS)"
)
_FREE = ("ckpt_path", "trainer.devices", "trainer.num_nodes")  # may differ between attempts


def goes_on(cfg: DictConfig) -> bool:
    """Say whether a run is to continue what lies in its folder."""
    return bool(cfg.get("resume")) or ("TORCHELASTIC_RUN_ID" in os.environ and restarts() > 0)


def requeue_signal(cfg: DictConfig) -> signal.Signals | None:
    """Return the signal by which SLURM says that the time is up; None outside such a job."""
    return signal.SIGUSR1 if cfg.resume and "SLURM_JOB_ID" in os.environ else None


def is_done(cfg: DictConfig, folder: Path) -> bool:
    """Say whether the folder holds this run, finished, and print so.

    Raises:
        ConfigError: If it holds another one.
    """
    if not goes_on(cfg):
        return False
    is_finished = (folder / "metrics.json").is_file()
    if is_finished or (folder / "checkpoints" / "last.ckpt").is_file():
        _check_same(cfg, folder)
    if is_finished and not is_child():
        print(f"this run is done already · {folder}", flush=True)
    return is_finished


def _check_same(cfg: DictConfig, folder: Path) -> None:
    if not (folder / ASKED).is_file():
        last = folder / "checkpoints" / "last.ckpt"
        raise ConfigError(
            f"{folder} holds a run with no record of its configuration ({ASKED}) · give "
            f"ckpt_path={last} and another hydra.run.dir"
        )
    before = _flat(OmegaConf.to_container(OmegaConf.load(folder / ASKED)))
    now = _flat(OmegaConf.to_container(cfg, resolve=True))
    keys = [key for key in {**before, **now} if key not in _FREE]
    changed = [key for key in keys if before.get(key) != now.get(key)]
    if changed:
        words = [f"{key}={now.get(key)}, not {before.get(key)}" for key in changed[:3]]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{folder} holds another run: here {'; '.join(words)}{more} · give the same "
            "configuration, or another hydra.run.dir"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def requeue() -> str:
    """Ask SLURM to start this job again, and return a line that says what came of it."""
    job = slurm_job().partition(".")[0]
    command = shutil.which("scontrol")
    if command is None:
        return f"there is no scontrol to requeue job {job} with · sbatch it again"
    done = subprocess.run([command, "requeue", job], capture_output=True, text=True)
    if done.returncode:
        return f"scontrol requeue {job} failed: {done.stderr.strip()} · sbatch it again"
    return f"job {job} is requeued and goes on from here"
