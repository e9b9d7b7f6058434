"""Ranks that a launcher started: who they are, the folder they share, and what they refuse."""

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from polylab.config import ddp, ranks
from polylab.config.errors import ConfigError
from polylab.config.ranks import Ranks

Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets the variables of a launcher, and no others of any."""
    for name in os.environ:
        if re.match("SLURM_|TORCHELASTIC_|MASTER_|(GROUP_|LOCAL_|NODE_)?(RANK|WORLD)", name):
            monkeypatch.delenv(name)

    def set_all(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_all


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": 4, "WORLD_SIZE": 6, "GROUP_WORLD_SIZE": 2}
SRUN = {"SLURM_JOB_ID": 81, "SLURM_NTASKS": 6, "SLURM_PROCID": 5, "SLURM_NNODES": 3}
STEP = {**SRUN, "SLURM_STEP_ID": 0}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        (TORCHRUN, Ranks("torchrun", rank=4, size=6, nodes=2)),
        (SRUN, Ranks("srun", rank=5, size=6, nodes=3)),
        ({**SRUN, "SLURM_STEP_NUM_NODES": 2}, Ranks("srun", rank=5, size=6, nodes=2)),
        ({**SRUN, **TORCHRUN}, Ranks("torchrun", rank=4, size=6, nodes=2)),
        ({**SRUN, "SLURM_NTASKS": 1}, None),  # it starts its ranks itself
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, None),
        ({"NODE_RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 6}, None),  # a child of Lightning's
    ],
)
def test_who_is_started(
    given: dict[str, Any], expected: Ranks | None, environment: Environment
) -> None:
    environment(**given)
    assert ranks.started_ranks() == expected


@pytest.mark.parametrize(
    ("given", "overrides", "is_sweep", "message"),
    [
        (TORCHRUN, [], True, "-m with 6 processes of torchrun.*devices=6 every job starts"),
        (STEP, [], True, "-m with 6 processes of srun: each would run the whole sweep"),
        (SRUN, [], False, "SLURM_NTASKS=6, but .* not started by srun .* put srun before"),
        ({"NODE_RANK": 1}, ["seed=1"], False, "NODE_RANK=1.*same hydra.run.dir=FOLDER"),
    ],
)
def test_commands_that_ranks_cannot_share(
    given: dict[str, Any],
    overrides: list[str],
    is_sweep: bool,
    message: str,
    environment: Environment,
) -> None:
    environment(**given)
    with pytest.raises(ConfigError, match=message):
        ranks.check_command(overrides, is_sweep=is_sweep)


def test_commands_that_they_share(environment: Environment) -> None:
    ranks.check_command([], is_sweep=True)
    environment(NODE_RANK=1)
    ranks.check_command(["hydra.run.dir=x"], is_sweep=False)
    ranks.check_command(["++hydra.run.dir=x"], is_sweep=False)
    environment(LOCAL_RANK=2)
    ranks.check_command([], is_sweep=False)
    environment(**STEP)
    ranks.check_command([], is_sweep=False)
    environment(**TORCHRUN)
    ranks.check_command([], is_sweep=False)


def test_the_folder_of_a_slurm_job(environment: Environment, tmp_path: Path) -> None:
    environment(**STEP)
    path = str(tmp_path / "now")
    assert ranks.run_folder(path) == str(tmp_path / "slurm_81")
    environment(SLURM_RESTART_COUNT=2, SLURM_STEP_ID=3)
    assert ranks.run_folder(path) == str(tmp_path / "slurm_81.3_restart2")
    environment(SLURM_ARRAY_JOB_ID=70, SLURM_ARRAY_TASK_ID=9, SLURM_STEP_ID=0)
    assert ranks.slurm_job() == "70_9"
    assert not list(tmp_path.iterdir())  # Hydra makes it


def test_no_slurm_job(environment: Environment) -> None:  # noqa: ARG001
    with pytest.raises(ConfigError, match=r"launch=slurm: SLURM_JOB_ID is not set · .* sbatch"):
        ranks.slurm_job()


def test_ranks_of_torchrun_agree(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a store such as its agent keeps, a new one for each attempt."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    def attempt(n: int, path: str) -> tuple[str, str]:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=store.port, TORCHELASTIC_RESTART_COUNT=n)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ranks._of_torchrun, "elsewhere", Ranks("torchrun", 1, 2, 1))
            return ranks._of_torchrun(path, Ranks("torchrun", 0, 2, 1)), second.result()

    monkeypatch.chdir(tmp_path)
    environment(**TORCHRUN, TORCHELASTIC_USE_AGENT_STORE="True")
    (tmp_path / "runs" / "10-00").mkdir(parents=True)  # another run's
    assert attempt(0, "runs/10-00") == ("runs/10-00_2", str(tmp_path / "runs/10-00_2"))
    assert attempt(1, "runs/10-07") == ("runs/10-00_2", str(tmp_path / "runs/10-00_2"))
    environment(TORCHELASTIC_RUN_ID="mine")
    assert attempt(0, "runs/10-08")[0] == "runs/10-08"
    assert not (tmp_path / "elsewhere").exists()


def test_torchrun_without_a_store(environment: Environment) -> None:
    environment(**TORCHRUN, MASTER_ADDR="127.0.0.1", MASTER_PORT=1)
    with pytest.raises(ConfigError, match=r"no store .* hydra.run.dir=FOLDER, or another --rdzv"):
        ranks.run_folder("x")


def test_a_rank_that_hears_nothing(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(ranks, "_PATIENCE", timedelta(seconds=0.1))
    environment(**TORCHRUN, MASTER_ADDR="127.0.0.1", MASTER_PORT=store.port)
    environment(TORCHELASTIC_USE_AGENT_STORE="True")
    with pytest.raises(ConfigError, match="rank 4 has not heard of the run's folder from rank 0"):
        ranks.run_folder("x")


def test_a_node_on_another_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank 3 on .* does not see .*/gone.* made on first"):
        ranks._check_seen(tmp_path / "gone", host="first", rank=3, patience=0)


@pytest.mark.parametrize(
    ("devices", "num_nodes"), [("auto", 1), (-1, 1), (2, 1), (2, 3), ("auto", 3)]
)
def test_devices_are_those_that_were_started(
    devices: Any, num_nodes: int, environment: Environment
) -> None:
    environment(**STEP)
    trainer = OmegaConf.create({"devices": devices, "num_nodes": num_nodes})
    ranks.match_ranks(trainer)
    assert trainer == {"devices": 2, "num_nodes": 3}
    assert os.environ.pop("SLURM_NTASKS_PER_NODE") == "2"


@pytest.mark.parametrize(
    ("given", "trainer", "message"),
    [
        (TORCHRUN, {"devices": 1}, "devices=1, but torchrun started 3 processes a node · .*=3"),
        (TORCHRUN, {"devices": [0, 2]}, "devices=2, but torchrun started 3 processes"),
        (TORCHRUN, {"num_nodes": 4}, "num_nodes=4, but torchrun runs on 2 · leave it out"),
        ({**SRUN, "SLURM_NNODES": 4}, {}, "srun started 6 processes on 4 nodes · each"),
        ({"MASTER_PORT": 1}, {"num_nodes": 2}, "num_nodes=2, but NODE_RANK, MASTER_ADDR are not"),
    ],
)
def test_devices_that_are_not(
    given: dict[str, Any], trainer: dict[str, Any], message: str, environment: Environment
) -> None:
    environment(**given)
    with pytest.raises(ConfigError, match=message):
        ranks.match_ranks(OmegaConf.create({"devices": "auto", "num_nodes": 1, **trainer}))


def test_a_run_of_its_own_chooses_its_devices(environment: Environment) -> None:  # noqa: ARG001
    trainer = OmegaConf.create({"devices": 5, "num_nodes": 1})
    ranks.match_ranks(trainer)
    assert trainer == {"devices": 5, "num_nodes": 1}


def test_restarts(environment: Environment) -> None:
    assert ranks.restarts() == 0
    environment(SLURM_RESTART_COUNT=2)
    assert ranks.restarts() == 2
    environment(**TORCHRUN, TORCHELASTIC_RESTART_COUNT=3)
    assert ranks.restarts() == 3


def test_the_first_rank_speaks_first(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    ddp.await_first(patience=60)
    assert time.monotonic() - began < 1
    environment(RANK=1)
    ddp.await_first(patience=0.1)  # a mistake of this rank alone is said in the end
    parents = iter([7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(SystemExit, match="1"):
        ddp.await_first(patience=60)
