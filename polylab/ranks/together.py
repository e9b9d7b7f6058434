"""A run on several ranks ends on all of them when it ends on one, whatever started them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from polylab.ranks.wire import Ending, FailedRank, Meeting, Wire

__all__ = ["ending_together"]

log = logging.getLogger(__name__)

_TO_MEET = 30  # seconds, once all ranks have come to the same barrier
_TO_HEAR = 5  # seconds from a broken collective to the word of the rank that broke it
_TO_CLOSE = 15  # seconds that a child has to end by itself
_OBSERVER = "_launch_process_observer"  # a name of Lightning's launcher
_BROKEN = ("gloo", "nccl", "peer", "process group", "tcpstore", "connection")


@contextmanager
def ending_together(trainer: Trainer) -> Iterator[None]:
    """End what runs within on every rank when one rank fails, within a minute.

    The failing rank keeps its own error. On the others a broken collective becomes a `FailedRank`
    that says which rank it was, and what its error; a process that is still stuck ten seconds
    later, as in a collective of a backend that does not notice, says the same on stderr and ends
    with code 1. The ranks that Lightning started are gone when this returns with an error. With one
    rank nothing is done.

    Ranks that are slow, stopped or debugged are waited for, as long as the collectives wait.

    Raises:
        FailedRank: In place of an error that comes of another rank's end.
    """
    if trainer.world_size == 1:
        yield
        return
    watch = _Watch()
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    try:
        with watch.observing():
            yield
        watch.say(Ending(trainer.global_rank, "finished"))
    except BaseException as error:
        other = watch.end(trainer, error)
        _await_children(trainer)
        if other is not None:
            raise FailedRank(str(other)) from None  # a broken collective is no news
        raise
    finally:
        watch.close()


class _Watch(Callback):
    """Connects the ranks once they have met, and says how this one ends before it tears down."""

    def __init__(self) -> None:
        self._wire: Wire | None = None
        self._is_closed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        if self._wire is None:
            self._wire = _connect(trainer)

    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Speak before Lightning closes the process group, which breaks the others' collectives."""
        self.end(trainer, exception)

    def say(self, ending: Ending) -> None:
        if self._wire is not None:
            self._wire.say(ending)

    def end(self, trainer: Trainer, error: BaseException) -> Ending | None:
        """Return the other rank's failure that `error` comes of; if there is none, tell of it."""
        self._is_closed = True  # children that end now end because of this one
        other = None if self._wire is None else self._wire.wait(_TO_HEAR * _is_broken(error))
        if other is not None and type(error) in (RuntimeError, *_dist_errors()):
            return other
        how = "failed" if isinstance(error, Exception) else "stopped"
        self.say(Ending(trainer.global_rank, how, _line(error)))
        return None

    def close(self) -> None:
        self._is_closed = True
        if self._wire is not None:
            self._wire.close()

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Take the place of Lightning's observer, which kills rank 0 before it can say anything."""
        before = getattr(subprocess_script, _OBSERVER)
        setattr(subprocess_script, _OBSERVER, self._observe)
        try:
            yield
        finally:
            setattr(subprocess_script, _OBSERVER, before)

    def _observe(self, children: list[subprocess.Popen]) -> None:
        threading.Thread(target=self._await_meeting, args=(children,), daemon=True).start()

    def _await_meeting(self, children: Sequence[subprocess.Popen]) -> None:
        """Until the ranks have met, a child that ends leaves the main thread waiting for it."""
        while self._wire is None and not self._is_closed:
            for rank, child in enumerate(children, start=1):
                time.sleep(0.5 / len(children))
                if child.poll() and self._wire is None:  # they may just have met
                    for other in children:
                        other.kill()
                    log.error("%s", Ending(rank, "gone", f"{_cause(child)} before the start"))
                    os._exit(1)


def _connect(trainer: Trainer) -> Wire:
    rank, links, children = trainer.global_rank, _links(trainer), _children(trainer)
    expected = range(1, trainer.world_size) if rank == 0 else [0]
    for absent in {*expected} - links.keys():
        log.warning(
            "rank %d and rank %d have no connection: if one of them fails, the other may wait for "
            "it until the collectives time out · let ranks connect to any port of rank 0",
            rank, absent,
        )  # fmt: skip
    return Wire(
        links,
        rank=rank,
        says=trainer.local_rank == 0,
        reason=lambda peer: _cause(*children[peer - 1 : peer]) if peer else _cause(),
    )


def _links(trainer: Trainer) -> dict[int, socket.socket]:
    strategy = trainer.strategy
    if trainer.global_rank != 0:
        meeting: Any = strategy.broadcast(None)
        return meeting.join(trainer.global_rank, timeout=_TO_MEET)
    host = strategy.cluster_environment.main_address  # type: ignore[attr-defined]
    meeting, server = Meeting.begin(host)
    strategy.broadcast(meeting)
    return meeting.admit(server, trainer.world_size, timeout=_TO_MEET)


def _children(trainer: Trainer) -> list[subprocess.Popen]:
    """The processes that Lightning started from this one: of local rank 1, 2, ..."""
    return getattr(trainer.strategy.launcher, "procs", [])


def _await_children(trainer: Trainer) -> None:
    """Leave no process behind: they end by themselves, or are ended."""
    until = time.monotonic() + _TO_CLOSE  # of all together
    for child in _children(trainer):
        try:
            child.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _cause(child: subprocess.Popen | None = None) -> str:
    """Why a process may have ended without a word."""
    unknown = "its process or machine has ended without a word"
    if child is None:
        return unknown
    try:
        code = child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return unknown
    if code >= 0:
        return f"its process has ended with code {code}"
    name = signal.Signals(-code).name
    hint = " (perhaps memory ran out)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _is_broken(error: BaseException) -> bool:
    """Whether this may be what a collective says after another rank has ended."""
    text = str(error).lower()
    return type(error) in (RuntimeError, *_dist_errors()) and any(word in text for word in _BROKEN)


def _dist_errors() -> tuple[type[BaseException], ...]:
    from torch import distributed

    names = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
    return tuple(getattr(distributed, name) for name in names if hasattr(distributed, name))


def _line(error: Any) -> str:
    text = " · ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
