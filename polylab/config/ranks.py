"""Processes that a launcher has started for one run: who they are, and what they agree on.

Lightning's own children are not meant: they are told everything (`polylab.config.ddp`).
"""

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from polylab.config.ddp import slurm_tasks
from polylab.config.errors import ConfigError
from polylab.config.files import fresh_folder

_MARK = Path(".hydra") / "torchrun"  # in a run's folder: which torchrun it belongs to
_KEY = "polylab/folder"
_PATIENCE = timedelta(minutes=5)  # for the first rank's imports on a cold disk


@dataclass(frozen=True)
class Ranks:
    """This process among those that `starter` (torchrun or srun) has started."""

    starter: str
    rank: int
    size: int
    nodes: int

    @property
    def name(self) -> str:
        """What its log is called."""
        return f"rank{self.rank}"


def started_ranks() -> Ranks | None:
    """Return which rank a launcher made of this process; None where it is alone."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:  # also within srun, whose numbers do not count then
        numbers = (int(env[key]) for key in ("RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE"))
        return Ranks("torchrun", *numbers)
    size = slurm_tasks()
    if size == 1:
        return None
    nodes = env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or "1"
    return Ranks("srun", int(env.get("SLURM_PROCID", "0")), size, int(nodes))


def check_command(overrides: list[str], *, is_sweep: bool) -> None:
    """Refuse a command that its ranks could not agree on.

    Raises:
        ConfigError: If each rank would lead a sweep, or nodes that were started by hand are not
            given the run's folder.
    """
    ranks = started_ranks()
    has_folder = any(o.lstrip("+").startswith("hydra.run.dir=") for o in overrides)
    if ranks is not None and ranks.size > 1 and is_sweep:
        raise ConfigError(
            f"-m with {ranks.size} processes of {ranks.starter}: each would run the whole sweep · "
            f"start it without {ranks.starter}; with trainer=ddp trainer.devices={ranks.size} "
            "every job starts its own ranks"
        )
    if ranks is None and "NODE_RANK" in os.environ and not has_folder and not is_child_of_ours():
        raise ConfigError(
            f"NODE_RANK={os.environ['NODE_RANK']}: nodes that are started one by one cannot agree "
            "on the run's folder · give each the same hydra.run.dir=FOLDER, or use torchrun"
        )
    if ranks is not None and ranks.starter == "srun" and "SLURM_STEP_ID" not in os.environ:
        raise ConfigError(
            f"SLURM_NTASKS={ranks.size}, but this process was not started by srun and would wait "
            "for the others · put srun before the command"
        )


def is_child_of_ours() -> bool:
    """Say whether Lightning started this process as a further rank of a run on its node."""
    return started_ranks() is None and os.environ.get("LOCAL_RANK", "0") != "0"


def run_folder(path: str) -> str:
    """Return the run's folder: `path` or one beside it, new, and the same on all ranks.

    Raises:
        ConfigError: If this rank does not hear of it, or its node does not see it.
    """
    ranks = started_ranks()
    if ranks is None:
        return fresh_folder(path)
    if ranks.starter == "srun":
        again = os.environ.get("SLURM_RESTART_COUNT", "0")
        name = f"slurm_{slurm_job()}" + ("" if again == "0" else f"_restart{again}")
        return str(Path(path).parent / name)
    return _of_torchrun(path, ranks)


def slurm_job() -> str:
    """Return the name of this SLURM job, as `squeue` has it, that it keeps when it is requeued.

    A further step of a job (the second `srun` of a script) is `JOB.STEP`.

    Raises:
        ConfigError: If SLURM did not start this process.
    """
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        raise ConfigError("launch=slurm: SLURM_JOB_ID is not set · start it with sbatch")
    job, step = env["SLURM_JOB_ID"], env.get("SLURM_STEP_ID", "0")
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return job if step == "0" else f"{job}.{step}"


def _of_torchrun(path: str, ranks: Ranks) -> str:
    """The first rank makes the folder and tells the others through torchrun's own store."""
    store = _store_of_torchrun(ranks)
    if ranks.rank == 0:
        folder = Path(_of_earlier_attempt(path) or fresh_folder(path))
        (folder / _MARK).parent.mkdir(exist_ok=True)
        (folder / _MARK).write_text(_torchrun(), encoding="utf-8")
        store.set(_KEY, f"{socket.gethostname()}\n{folder.absolute()}")
        return str(folder)
    try:
        host, folder_text = store.get(_KEY).decode().split("\n")
    except RuntimeError as error:  # of torch.distributed, with a C++ trace
        raise ConfigError(
            f"rank {ranks.rank} has not heard of the run's folder from rank 0 in {_PATIENCE} · "
            "give hydra.run.dir=FOLDER"
        ) from error
    _check_seen(Path(folder_text), host=host, rank=ranks.rank)
    return folder_text


def _check_seen(folder: Path, *, host: str, rank: int, patience: float = 30.0) -> None:
    """A network disk may show a new folder late; one that never does is another disk."""
    until = time.monotonic() + patience
    while not (folder / _MARK).is_file():
        if time.monotonic() > until:
            raise ConfigError(
                f"rank {rank} on {socket.gethostname()} does not see {folder}, which rank 0 made "
                f"on {host} · start on a disk that all nodes share"
            )
        time.sleep(0.2)


def _store_of_torchrun(ranks: Ranks) -> Any:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(
            "this rendezvous of torchrun has no store by which its ranks agree on a folder · give "
            "hydra.run.dir=FOLDER, or another --rdzv-backend"
        )
    return TCPStore(host, port, ranks.size, is_master=False, timeout=_PATIENCE)


def _torchrun() -> str:
    """What tells this torchrun from others; the id is `none` where the user gave none."""
    run = os.environ["TORCHELASTIC_RUN_ID"]
    return run if run != "none" else f"{socket.gethostname()}-{os.getppid()}"


def _of_earlier_attempt(path: str) -> str | None:
    """Return the folder of the attempt that torchrun restarts; its store is a new one each time."""
    if restarts() == 0:
        return None
    marks = [
        mark
        for mark in Path(path).parent.glob(f"*/{_MARK}")
        if mark.read_text(encoding="utf-8") == _torchrun()
    ]
    newest = max(marks, key=lambda mark: mark.stat().st_mtime, default=None)
    return None if newest is None else str(newest.parent.parent)


def restarts() -> int:
    """Return how often torchrun or SLURM has started this job again."""
    env = os.environ
    key = "TORCHELASTIC" if "TORCHELASTIC_RUN_ID" in env else "SLURM"
    return int(env.get(f"{key}_RESTART_COUNT", "0"))


def match_ranks(trainer: DictConfig) -> None:
    """Set `devices` and `num_nodes` to those that were started, where they are left open.

    Raises:
        ConfigError: If they say something else, or nodes are to be joined by hand and nobody has
            said how.
    """
    ranks = started_ranks()
    if ranks is None or "devices" not in trainer:
        return _check_by_hand(trainer)
    per_node, rest = divmod(ranks.size, ranks.nodes)
    if rest:
        raise ConfigError(
            f"{ranks.starter} started {ranks.size} processes on {ranks.nodes} nodes · each node "
            "needs the same number"
        )
    given = trainer.devices if isinstance(trainer.devices, int | str) else len(trainer.devices)
    if str(given) not in ("auto", "-1", str(per_node)):
        raise ConfigError(
            f"trainer.devices={given}, but {ranks.starter} started {per_node} processes a node · "
            f"give trainer=ddp, which takes them all, or trainer.devices={per_node}"
        )
    if trainer.num_nodes not in (1, ranks.nodes):
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}, but {ranks.starter} runs on {ranks.nodes} · "
            "leave it out"
        )
    if str(given) in ("auto", "-1"):
        trainer.devices = per_node
    trainer.num_nodes = ranks.nodes
    if ranks.starter == "srun":  # Lightning insists on it, SLURM sets it only where it was typed
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(per_node))


def _check_by_hand(trainer: DictConfig) -> None:
    nodes, needed = trainer.get("num_nodes", 1), ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if nodes > 1 and missing:
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but {', '.join(missing)} are not set · start it with "
            "torchrun --nnodes or srun, or set them on each node"
        )
