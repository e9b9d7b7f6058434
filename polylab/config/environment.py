"""Where a run took place: versions, machine, commit and command, as `environment.json`."""

import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("polylab", "torch", "lightning", "transformers", "hydra-core", "torchmetrics", "wandb")


def describe_environment(
    *, device: str, devices: int, nodes: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """Return what reproduces the surroundings of a run.

    Args:
        device: What it computes on.
        devices: How many of them, on all nodes.
        nodes: How many machines.
        overrides: Of this job, which its command consists of.
    """
    return {
        **{name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "devices": devices,
        "nodes": nodes,
        "commit": commit_of(Path.cwd()),
        "command": shlex.join(["python", "-m", "polylab.train", *overrides]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def commit_of(folder: Path) -> str | None:
    """Return the commit that `folder` is a checkout of, with `-dirty` after changes; else None."""
    head = _git(folder, "rev-parse", "HEAD")
    if not head:
        return None
    return f"{head}-dirty" if _git(folder, "status", "--porcelain", "-uno") else head


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
