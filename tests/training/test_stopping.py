"""A signal ends the training of all ranks after the same step, whichever rank it reaches."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from polylab.training import RunCheckpoint, Stopping
from tests.ranks.starting import start_ranks
from tests.training.conftest import Data, build_module


class Told:
    """The votes of two ranks: the other one's are said before, one a step."""

    others: list[int]

    def __init__(self, number: int, device: object) -> None:  # noqa: ARG002
        self.found = max(number, self.others.pop(0))

    def highest(self) -> int:
        return self.found


class Saving(RunCheckpoint):
    saved: list[int]

    def save_last(self, trainer: Any) -> None:
        self.saved.append(trainer.global_step)


@pytest.fixture
def trainer(tmp_path: Any) -> Any:
    checkpoint = Saving(tmp_path)
    checkpoint.saved = []
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_broadcast_sigterm_tensor=None))
    return SimpleNamespace(
        global_step=4,
        is_last_batch=False,
        checkpoint_callback=checkpoint,
        world_size=1,
        fit_loop=loop,
    )


@pytest.fixture(autouse=True)
def handlers() -> Any:
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _step(stopping: Stopping, trainer: Any, step: int) -> None:
    stopping.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    trainer.global_step = step
    stopping.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("vote", "code"), [(2, 138), (1, 143)])
def test_the_other_rank_was_asked(
    trainer: Any, vote: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.world_size = 2
    monkeypatch.setattr("polylab.training.stopping.Vote", Told)
    Told.others = [0, vote, 0]
    trainer.strategy = SimpleNamespace(root_device=None)
    stopping = Stopping(also=signal.SIGUSR1)
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert not stopping.has_advanced
    _step(stopping, trainer, 5)
    assert stopping.has_advanced
    _step(stopping, trainer, 6)
    assert trainer.checkpoint_callback.saved == []  # asked in step 6, answered after 7
    _step(stopping, trainer, 7)
    assert trainer.checkpoint_callback.saved == [7]
    with pytest.raises(SystemExit, match=str(code)):
        _step(stopping, trainer, 8)
    assert trainer.global_step == 7


def test_a_signal_after_the_last_step_ends_what_would_follow(trainer: Any) -> None:
    stopping = Stopping()
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    _step(stopping, trainer, 5)
    signal.raise_signal(signal.SIGTERM)
    stopping.end_if_agreed()  # it is not
    stopping.on_train_end(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="143"):
        stopping.end_if_agreed()


def test_no_signal_goes_to_lightnings_handler(trainer: Any) -> None:
    stopping = Stopping()
    for hook in ("on_sanity_check_start", "on_validation_start", "on_test_start"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        getattr(stopping, hook)(trainer, None)
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)


def test_lightning_asks_its_ranks_before_every_batch() -> None:
    """The method that is replaced, since its `item()` waits for the device."""
    loop = Trainer(logger=False, enable_progress_bar=False).fit_loop.epoch_loop
    assert callable(loop._broadcast_sigterm_tensor)


def test_its_question_is_left_out(trainer: Any) -> None:
    Stopping().on_train_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


class Signal(Callback):
    """Sends one rank a signal, when a step of its is done."""

    def __init__(self, number: int, *, rank: int, step: int) -> None:
        self.number, self.rank, self.step = number, rank, step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            os.kill(os.getpid(), self.number)


def stop_one(folder: Path, number: int, rank: int) -> None:
    """A training of one of two ranks, of which one gets a signal after its third step."""
    sender = Signal(number, rank=rank, step=3)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=8,
        limit_val_batches=0,
        callbacks=[sender, RunCheckpoint(folder), Stopping(also=signal.SIGUSR1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(build_module(), Data(n_train=64))
    except SystemExit as stop:
        found = {"code": stop.code, "step": trainer.global_step}
        (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("number", "rank", "code"), [(signal.SIGTERM, 1, 143), (signal.SIGUSR1, 0, 138)]
)
def test_both_ranks_stop_after_the_same_step(
    tmp_path: Path, number: int, rank: int, code: int
) -> None:
    _, errors = start_ranks(stop_one, tmp_path, 2, number, rank)
    found = [tmp_path / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in found), errors
    assert [json.loads(file.read_text()) for file in found] == [{"code": code, "step": 4}] * 2
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4


def test_it_waits_for_the_accumulated_step(trainer: Any) -> None:
    stopping = Stopping()
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGTERM)
    _step(stopping, trainer, 4)
    assert trainer.checkpoint_callback.saved == []
    _step(stopping, trainer, 5)
    assert trainer.checkpoint_callback.saved == [5]
    stopping.on_train_end(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="143"):
        stopping.end_if_agreed()


def test_the_end_of_an_epoch_saves_by_itself(trainer: Any) -> None:
    trainer.is_last_batch = True
    stopping = Stopping()
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGTERM)
    _step(stopping, trainer, 5)
    assert trainer.checkpoint_callback.saved == []


def test_a_worker_that_loads_data_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Stopping(also=signal.SIGUSR1)
    monkeypatch.setattr("os.getpid", lambda: -1)  # as after a fork
    signal.raise_signal(signal.SIGUSR1)


def test_outside_of_the_training_it_ends_at_once(trainer: Any) -> None:
    stopping = Stopping(also=signal.SIGUSR1)
    with pytest.raises(SystemExit, match="138"):
        signal.raise_signal(signal.SIGUSR1)
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGUSR1)
    stopping.on_exception(trainer, None, KeyError())  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="138"):
        signal.raise_signal(signal.SIGUSR1)
