"""One rank fails: every rank ends, says which one it was and why, whatever had started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from polylab.ranks import together, wire
from polylab.ranks.together import ending_together
from polylab.ranks.wire import FailedRank, Meeting
from tests.ranks.failing import Fail
from tests.ranks.starting import start_ranks


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):  # noqa: ARG002
        self.log("val/loss", self.layer(batch).sum(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.ones(40, 3), batch_size=4)

    val_dataloader = train_dataloader


def _train(folder, fail):
    if fail.get("stuck") or fail["how"] == "pause":
        wire._PATIENCE.update(failed=1, gone=1)
        wire._OWN_PATIENCE = 2
    if fail["how"] == "unconnected":
        together._TO_MEET = 0.2
        Meeting.join = lambda *_, **__: {}
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        callbacks=[Fail(**fail)],
        max_steps=6,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    try:
        with ending_together(trainer):
            trainer.fit(Tiny())
    except FailedRank as error:  # as the commands do
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


@pytest.fixture
def end_of(tmp_path):
    """The exit codes and the error output of ranks of which one fails."""
    return lambda ranks=2, **fail: start_ranks(_train, tmp_path, ranks, fail)


@pytest.mark.parametrize("where", ["step", "validation"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises(end_of, rank, where):
    codes, errors = end_of(rank=rank, how="raise", where=where)
    assert codes == [1, 1]
    message = f"ValueError: step 2 of rank {rank} went wrong"
    assert errors[rank].splitlines()[-1] == message
    assert errors[1 - rank] == f"rank {rank} failed: {message}\n"


def test_a_full_disk_of_the_rank_that_writes(end_of):
    codes, errors = end_of(rank=0, how="disk", where="look")
    assert codes == [1, 1]
    assert "Traceback" in errors[0]
    assert errors[1] == "rank 0 failed: OSError: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed(end_of, rank):
    codes, errors = end_of(rank=rank, how="kill")
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1)
    assert errors[rank] == ""
    why = "its process or machine has ended without a word"
    assert errors[1 - rank] == f"rank {rank} is gone: {why}\n"


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_ranks_that_are_stuck_and_have_no_part_in_it(end_of, how):
    """As in a collective of a backend that does not notice: those two of three hear of it."""
    codes, errors = end_of(rank=1, how=how, stuck=True, ranks=3)
    assert (codes[0], codes[2]) == (1, 1)
    assert errors[0].startswith("rank 1 failed: ValueError" if how == "raise" else "rank 1 is gone")
    assert errors[0].endswith(" · this run has ended\n")
    assert errors[2] == ""  # one of a machine says it


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_after_its_error(end_of, rank):
    """As in closing a process group that others are in: it has said before what went wrong."""
    codes, errors = end_of(rank=rank, how="hang", stuck=True)
    assert codes == [1, 1]
    line = f"rank {rank} failed: ValueError: step 2 of rank {rank} went wrong · this run has ended"
    assert errors == [f"{line}\n", ""]


def test_a_stopped_rank_is_waited_for(end_of):
    """Longer than the patience with ranks whose fellow has failed."""
    codes, errors = end_of(rank=1, how="pause")
    assert codes == [0, 0]
    assert errors == ["", ""]


def _await_children(folder):
    """What rank 0 does while it waits for those that Lightning has started."""
    commands = ("import time; time.sleep(1000)", "raise SystemExit(3)")
    children = [subprocess.Popen([sys.executable, "-c", command]) for command in commands]
    (folder / "pid").write_text(str(children[0].pid))
    together._Watch()._observe(children)
    time.sleep(1000)


def test_a_rank_that_fails_before_the_ranks_have_met(tmp_path):
    codes, errors = start_ranks(_await_children, tmp_path, 1)
    assert codes == [1]
    assert errors == ["rank 2 is gone: its process has ended with code 3 before the start\n"]
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_ranks_without_a_connection_train_and_say_so(end_of):
    codes, errors = end_of(rank=1, how="unconnected", where="nowhere")
    assert codes == [0, 0]
    for rank, text in enumerate(errors):
        assert text.startswith(f"rank {rank} and rank {1 - rank} have no connection: ")


def test_one_rank_has_nobody_to_wait_for(tmp_path):
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path)
    before = [*trainer.callbacks]
    with ending_together(trainer):
        assert trainer.callbacks == before
