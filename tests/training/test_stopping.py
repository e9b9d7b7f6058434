"""A signal ends the training of all ranks after the same step, whichever rank it reaches."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from polylab.training import RunCheckpoint, Stopping


class Strategy:
    """Of two ranks: the other one has what `other` says of each question, in turn."""

    def __init__(self, *other: bool) -> None:
        self.other = list(other)

    def reduce_boolean_decision(self, decision: bool, *, all: bool) -> bool:
        assert not all
        return decision or self.other.pop(0)


class Saving(RunCheckpoint):
    saved: list[int]

    def save_last(self, trainer: Any) -> None:
        self.saved.append(trainer.global_step)


@pytest.fixture
def trainer(tmp_path: Any) -> Any:
    checkpoint = Saving(tmp_path)
    checkpoint.saved = []
    return SimpleNamespace(global_step=4, is_last_batch=False, checkpoint_callback=checkpoint)


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


@pytest.mark.parametrize(("is_usr1", "code"), [(True, 138), (False, 143)])
def test_the_other_rank_was_asked(trainer: Any, is_usr1: bool, code: int) -> None:
    trainer.strategy = Strategy(False, True, is_usr1)
    stopping = Stopping(also=signal.SIGUSR1)
    stopping.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert not stopping.has_advanced
    _step(stopping, trainer, 5)
    assert stopping.has_advanced
    _step(stopping, trainer, 6)
    assert trainer.checkpoint_callback.saved == [6]
    with pytest.raises(SystemExit, match=str(code)):
        _step(stopping, trainer, 7)
    assert trainer.global_step == 6


def test_it_waits_for_the_accumulated_step(trainer: Any) -> None:
    trainer.strategy = Strategy(False, False)
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
    trainer.strategy, trainer.is_last_batch = Strategy(), True
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
