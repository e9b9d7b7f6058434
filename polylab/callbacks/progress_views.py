"""The two shapes of `Progress`: a bar that is drawn anew, and lines that are only added."""

from __future__ import annotations

import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

__all__ = ["Bar", "Lines", "View"]

_FORMAT = (
    "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}"
)


class View(ABC):
    """Shows phases, of which one may interrupt another: a validation within the training."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether a phase has begun and not ended."""

    @property
    @abstractmethod
    def done(self) -> int:
        """How many units of the current phase are done."""

    @abstractmethod
    def begin(self, what: str, unit: str, *, total: int | None, done: int) -> None:
        """Begin a phase of `total` units, the first `done` of which were done before."""

    @abstractmethod
    def move(self, done: int, words: str) -> None:
        """Show that so many units are done."""

    @abstractmethod
    def end(self) -> None:
        """End the current phase and go back to the one that it interrupted."""

    @abstractmethod
    def say(self, line: str) -> None:
        """Print a line."""


class Bar(View):
    """One bar at a time, in the last line of the terminal."""

    def __init__(self) -> None:
        self._bars: list[tqdm] = []

    @property
    def is_busy(self) -> bool:
        return bool(self._bars)

    @property
    def done(self) -> int:
        return int(self._bars[-1].n)

    def begin(self, what: str, unit: str, *, total: int | None, done: int) -> None:
        if self._bars:
            self._bars[-1].clear()
        else:
            self._watch_logs()
        self._bars.append(
            tqdm(
                desc=what, unit=unit, total=total, initial=done, position=0, file=sys.stdout,
                leave=not self._bars and unit == "step", **_width(),
                bar_format=_FORMAT if total is not None else None,
            )
        )  # fmt: skip

    def move(self, done: int, words: str) -> None:
        bar = self._bars[-1]
        if words:
            bar.set_postfix_str(words, refresh=False)
        bar.update(done - bar.n)

    def end(self) -> None:
        bar = self._bars.pop()
        bar.refresh()
        bar.close()
        if self._bars:
            self._bars[-1].unpause()  # the time of the validation is not the training's
            self._bars[-1].refresh()
        else:
            for handler in _terminal_handlers():
                handler.removeFilter(self._make_room)

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)

    def _watch_logs(self) -> None:
        for handler in _terminal_handlers():
            handler.addFilter(self._make_room)

    def _make_room(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        """Take the bar away before a line is logged; the next step draws it again."""
        if self._bars:
            self._bars[-1].clear()
        return True


@dataclass
class _Phase:
    what: str
    unit: str
    total: int | None
    first: int  # done before it began
    done: int
    began: float = field(default_factory=time.monotonic)
    paused: float = 0.0
    said: int = 0  # done at its last line
    said_at: float = field(default_factory=time.monotonic)


class Lines(View):
    """A line at each `share` of the training, and at the latest after a while."""

    def __init__(self, *, share: float, patience: float = 600.0, short: float = 60.0) -> None:
        self._share = share
        self._patience = {"step": patience, "batch": short}
        self._phases: list[_Phase] = []

    @property
    def is_busy(self) -> bool:
        return bool(self._phases)

    @property
    def done(self) -> int:
        return self._phases[-1].done

    def begin(self, what: str, unit: str, *, total: int | None, done: int) -> None:
        self._phases.append(_Phase(what, unit, total, first=done, done=done, said=done))

    def move(self, done: int, words: str) -> None:
        phase = self._phases[-1]
        phase.done = done
        if self._is_due(phase):
            phase.said, phase.said_at = done, time.monotonic()
            self.say(f"{_progress(phase)}{', ' if words else ''}{words}")

    def end(self) -> None:
        phase = self._phases.pop()
        if self._phases:
            self._phases[-1].paused += time.monotonic() - phase.began

    def say(self, line: str) -> None:
        print(line, flush=True)

    def _is_due(self, phase: _Phase) -> bool:
        if time.monotonic() - phase.said_at >= self._patience[phase.unit]:
            return True
        if phase.unit == "batch" or phase.total is None:
            return False
        return phase.done == phase.total or phase.done - phase.said >= self._share * phase.total


def _progress(phase: _Phase) -> str:
    """`training: 300 of 1,000 steps (30%), 12.1 per second, 0:58 left`."""
    seconds = max(time.monotonic() - phase.began - phase.paused, 1e-9)
    rate = (phase.done - phase.first) / seconds
    units = f"{phase.unit}s" if phase.unit == "step" else "batches"
    if phase.total is None:
        return f"{phase.what}: {phase.done:,} {units}, {rate:.3g} per second"
    left = tqdm.format_interval((phase.total - phase.done) / max(rate, 1e-9))
    return (
        f"{phase.what}: {phase.done:,} of {phase.total:,} {units} "
        f"({phase.done / phase.total:.0%}), {rate:.3g} per second, {left} left"
    )


def _width() -> dict[str, Any]:
    """The terminal's width, also after it changes; 80 columns where it does not say."""
    try:
        known = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        known = 0
    return {"dynamic_ncols": True} if known else {"ncols": 80}


def _terminal_handlers() -> list[logging.Handler]:
    return [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
