"""Lightning's DDP launcher under Hydra: children that join one job, not the whole command line.

Stock Lightning starts its children with the parent's own arguments. Under `-m` that is the whole
sweep, and under the joblib and submitit launchers the arguments of a worker.
"""

import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

_LAUNCHERS = (
    # lightning.pytorch keeps a reference of its own, so both are patched
    "lightning.fabric.strategies.launchers.subprocess_script",
    "lightning.pytorch.strategies.launchers.subprocess_script",
)
_VARIABLES = (
    "GLOBAL_RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE",
)  # fmt: skip


def child_command(local_rank: int) -> tuple[list[str], str]:
    """Return the command of the process `local_rank` of this job, and the folder to start it in.

    The child reads the resolved configuration of the job: no sweeper, no launcher, no new folder.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    config = children_config(folder)
    command = [sys.executable, "-m", "polylab.train"]
    command += ["--config-path", str(config.parent), "--config-name", config.stem]
    command += [f'hydra.run.dir="{folder}"', "hydra.output_subdir=null"]
    node = os.environ.get("NODE_RANK", "0")
    name = f"rank{local_rank}" if node == "0" else f"node{node}_rank{local_rank}"
    # without handlers Python writes what matters to stderr
    command += [f"hydra.job.name={name}", "hydra/job_logging=none"]
    return command, hydra.runtime.cwd


def children_config(folder: Path) -> Path:
    """Return the file that children of this process read: of later nodes one of their own.

    They may be started before the first node has written the run's.
    """
    node = os.environ.get("NODE_RANK", "0")
    return folder / "config.yaml" if node == "0" else folder / ".hydra" / f"node{node}.yaml"


def starts_children_alone() -> bool:
    """Say whether this process, of a later node, starts ranks that read its own configuration."""
    return os.environ.get("NODE_RANK", "0") != "0" and "LOCAL_RANK" not in os.environ


def patch_launchers() -> None:
    """Make Lightning start the children of a Hydra job with `child_command`.

    Raises:
        RuntimeError: If this Lightning has no such hook any more.
    """
    for name in _LAUNCHERS:
        module = importlib.import_module(name)
        if not hasattr(module, "_hydra_subprocess_cmd"):
            raise RuntimeError(
                f"{name} has no _hydra_subprocess_cmd · install lightning>=2.6.6,<2.7"
            )
        setattr(module, "_hydra_subprocess_cmd", child_command)  # noqa: B010


def is_child() -> bool:
    """Say whether this process was started to join a job that another one owns."""
    if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK")):
        return True
    # torchrun within srun numbers its processes itself, and not always in the order of the nodes
    is_numbered = "LOCAL_RANK" in os.environ or "RANK" in os.environ
    return not is_numbered and _slurm_rank() != "0"


def slurm_tasks() -> int:
    """Return how many processes SLURM started for this run; 1 where Lightning ignores SLURM."""
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return 1 if by_hand else int(os.environ.get("SLURM_NTASKS", "1"))


def _slurm_rank() -> str:
    return os.environ.get("SLURM_PROCID", "0") if slurm_tasks() > 1 else "0"


def await_first(patience: float = 5.0) -> None:
    """Let the first rank speak: a mistake is mostly everybody's, and its end is theirs.

    Raises:
        SystemExit: With code 1 as soon as the process that started this one is gone.
    """
    if not is_child():
        return
    parent, until = os.getppid(), time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(0.05)
        if os.getppid() != parent:
            raise SystemExit(1)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Undo what a distributed job leaves in the process; else the next job joins a dead group."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        yield
    finally:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
