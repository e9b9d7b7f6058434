"""The progress of a run: lines in a log file, one clean bar on a terminal."""

import io
import logging
import re
import sys

import pytest

from polylab.callbacks import Progress
from polylab.callbacks.progress_views import Lines
from tests.callbacks.tiny import TinyData


class Terminal(io.StringIO):
    """A screen that says it is one."""

    def isatty(self):
        return True


def _fit(fit, module, monkeypatch, stream, callback=None, **arguments):
    monkeypatch.setattr(sys, "stdout", stream)
    callback = callback or Progress(refresh_rate=1)
    trainer = fit(module, TinyData(), [callback], enable_progress_bar=True, **arguments)
    return trainer, stream.getvalue()


def test_a_log_file_gets_a_few_plain_lines(build, fit, monkeypatch):
    trainer, text = _fit(fit, build(), monkeypatch, io.StringIO(), Progress(1, share=0.4))
    assert "\r" not in text
    assert "\x1b" not in text
    steps = [re.match(r"training: (\d) of 5 steps \((\d+)%\), [\d.]+ per second", line)
             for line in text.splitlines() if line.startswith("training")]  # fmt: skip
    assert [match and match.groups() for match in steps] == [("2", "40"), ("4", "80"), ("5", "100")]
    assert "lr 0.05" in text
    assert "v_num" not in text
    trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)


def test_a_terminal_gets_one_bar(build, fit, monkeypatch):
    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(handler)
    try:
        _, text = _fit(fit, build(), monkeypatch, Terminal())
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.filters == []  # taken back at the end
    assert "\x1b" not in text  # no bar below another
    drawn = [part for part in re.split("[\r\n]", text) if part.strip()]
    assert drawn[-1].startswith("training 100%|")
    assert " 5/5 " in drawn[-1]
    assert any(part.startswith("validating") for part in drawn)
    assert all(len(part) <= 80 for part in drawn)
    assert text.count("\n") == 1  # the whole training, left on the screen


def test_a_line_of_the_log_does_not_go_into_the_bar(monkeypatch):
    from polylab.callbacks.progress_views import Bar

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    handler = logging.StreamHandler(screen)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        bar = Bar()
        bar.begin("training", "step", total=4, done=0)
        logging.getLogger("polylab.test").warning("words")
        bar.end()
    finally:
        root.removeHandler(handler)
    before = screen.getvalue().partition("words")[0]
    assert before.endswith("\r")
    assert before.rstrip("\r").endswith(" " * 20)


def test_validations_are_told_with_what_fits(build, fit, monkeypatch):
    module = build()
    names = ["val/loss", *(f"val/a_long_metric_{i}" for i in range(5)), "other"]
    monkeypatch.setattr(
        type(module), "on_validation_epoch_end",
        lambda self: self.log_dict(dict.fromkeys(names, 0.25), prog_bar=True), raising=False,
    )  # fmt: skip
    _, text = _fit(fit, module, monkeypatch, io.StringIO())
    told = [line for line in text.splitlines() if line.startswith("validation after")]
    assert [line.partition(":")[0] for line in told] == [
        "validation after 2 steps", "validation after 4 steps",
    ]  # fmt: skip
    assert told[0].startswith("validation after 2 steps: loss 0.250, a_long_metric_0 0.250")
    assert max(map(len, told)) <= 80


def test_an_error_leaves_no_phase_behind(build, fit, monkeypatch):
    module = build()

    def fail(*_):
        raise RuntimeError("the run's own error")

    monkeypatch.setattr(type(module), "on_validation_epoch_end", fail, raising=False)
    callback = Progress(refresh_rate=1)
    with pytest.raises(RuntimeError, match="own error"):
        _fit(fit, module, monkeypatch, Terminal(), callback)
    assert not callback._view.is_busy


def test_slow_phases_are_told_by_time(capsys):
    lines = Lines(share=1.0, patience=600, short=0.0)
    lines.begin("training", "step", total=None, done=3)
    lines.move(4, "")
    assert capsys.readouterr().out == ""
    lines.begin("testing", "batch", total=8, done=0)
    lines.move(2, "")
    lines.end()
    told = capsys.readouterr().out
    assert re.match(r"testing: 2 of 8 batches \(25%\), [\d.e+]+ per second, \d\d:\d\d left\n", told)
    lines._patience["step"] = 0.0
    lines.move(5, "loss 1.5")
    assert re.match(r"training: 5 steps, [\d.e+]+ per second, loss 1.5\n", capsys.readouterr().out)


def test_other_ranks_are_silent(build, fit, monkeypatch):
    callback = Progress()
    callback.disable()
    _, text = _fit(fit, build(), monkeypatch, io.StringIO(), callback)
    assert text == ""
    callback.enable()
    assert callback._is_enabled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refresh_rate": 0}, "refresh_rate=0 must be at least 1"),
        ({"share": 0.0}, "share=0.0 must be above 0"),
        ({"share": 1.5}, "share=1.5 must be above 0 and at most 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Progress(**arguments)
