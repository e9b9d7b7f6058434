"""A run that a signal ends: its tracker is closed, and it says how to go on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.callbacks import Throughput
from polylab.terminal.outcome import stopped_line
from tests.wandb_reader import read_run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_ends_a_run_in_order(
    small: list[str], run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    number: int, code: int,
) -> None:  # fmt: skip
    # a shell lets what it starts in the background ignore ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop(_: Any, trainer: Any, *_rest: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Throughput, "on_train_batch_end", stop)
    try:
        done = run_here(*small, "callbacks.figures=null", "trainer.max_steps=50", cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert done.code == code
    last = done.folder / "checkpoints" / "last.ckpt"
    (line,) = done.err.splitlines()
    steps = int(line.split(" after ")[1].split()[0])
    assert 2 <= steps <= 3
    assert line == stopped_line(done.folder, steps=steps)
    assert last.is_file() == ("go on with ckpt_path=" in line)
    run = read_run(done.folder)
    assert run.exit_code == 1
    assert run.series("train/loss")
    assert not (done.folder / "metrics.json").exists()


def test_how_to_go_on(tmp_path: Path) -> None:
    tmp_path = tmp_path / "a b"
    assert stopped_line(tmp_path, steps=1) == (
        "stopped by a signal after 1 step, before the first checkpoint · "
        "callbacks.checkpoint.every_n_steps saves earlier"
    )
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    line = f"stopped by a signal after 1,200 steps · go on with 'ckpt_path=\"{last}\"'"
    assert stopped_line(tmp_path, steps=1200) == line
