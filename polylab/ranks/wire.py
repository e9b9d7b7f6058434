"""Connections over which the ranks of a run learn at once that one of them has ended, and how.

A collective that waits for a dead rank does so for half an hour, where the backend does not notice.
Here the kernel does: rank 0 holds a connection to each of the others, which closes with the process
at its other end. A slow, stopped or debugged process keeps it open, so that none is mistaken for a
dead one; that of a machine that has vanished closes after half a minute.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Ending", "FailedRank", "Meeting", "Wire"]

# seconds that the main thread has to end by itself, after which it is taken to be stuck
_PATIENCE = {"failed": 10, "gone": 10, "stopped": 45}
_OWN_PATIENCE = 45  # of a rank that has failed itself; its teardown may meet a collective
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}


class FailedRank(RuntimeError):
    """Another rank has failed, and this one cannot go on without it."""


@dataclass(frozen=True)
class Ending:
    """How a rank ended: `finished`, `failed`, `stopped` by a signal, or `gone` without a word."""

    rank: int
    how: str
    error: str = ""

    def __str__(self) -> str:
        verb = {"gone": "is gone", "stopped": "was stopped"}.get(self.how, self.how)
        return f"rank {self.rank} {verb}" + (f": {self.error}" if self.error else "")


class Wire:
    """One rank's connections: rank 0 has one to each of the others, which have one to it.

    Args:
        links: By the rank at the other end.
        rank: This one.
        says: Whether this rank writes why it ends, where its main thread cannot.
        reason: Says on rank 0 why a rank may be gone, in words.
    """

    def __init__(
        self,
        links: Mapping[int, socket.socket],
        *,
        rank: int,
        says: bool = True,
        reason: Callable[[int], str] = lambda rank: "its process has ended",  # noqa: ARG005
    ) -> None:
        self._links, self._rank, self._says, self._reason = {**links}, rank, says, reason
        self._ended: dict[int, str] = {}
        self._other: Ending | None = None
        self._own: Ending | None = None
        self._has_other, self._is_closed = threading.Event(), threading.Event()
        self._listener = threading.Thread(target=self._listen, name="ranks", daemon=True)
        self._listener.start()

    def wait(self, seconds: float) -> Ending | None:
        """How the first other rank failed that did, if one does within so many seconds."""
        self._has_other.wait(seconds)
        return self._other

    def say(self, ending: Ending) -> None:
        """Tell all others how this rank ends; only the first word counts.

        After a failure the process has some time to close, and is then ended.
        """
        if self._own is not None:
            return
        self._own = ending
        self._send(ending)
        if ending.how != "finished":
            threading.Thread(target=self._end_later, daemon=True).start()

    def close(self) -> None:
        """Part from the others, which are no concern any more."""
        self._is_closed.set()
        for link in self._links.values():
            with suppress(OSError):  # the other end has closed it
                link.shutdown(socket.SHUT_RDWR)  # wakes the listener
        self._listener.join(timeout=5)
        for link in self._links.values():
            link.close()

    def _send(self, ending: Ending, *, but: int | None = None) -> None:
        line = json.dumps(asdict(ending)).encode() + b"\n"
        for peer, link in self._links.items():
            if peer != but:
                with suppress(OSError):  # it has ended itself
                    link.sendall(line)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, (peer, bytearray()))
            while selector.get_map():
                for key, _ in selector.select():
                    peer, held = key.data
                    found = _received(key.fileobj)
                    if not found:
                        selector.unregister(key.fileobj)
                        self._lost(peer)
                    held += found
                    *lines, rest = held.split(b"\n")
                    held[:] = rest
                    for line in lines:
                        self._hear(Ending(**json.loads(line)), sender=peer)

    def _lost(self, peer: int) -> None:
        if peer not in self._ended and self._own is None and not self._is_closed.is_set():
            self._hear(Ending(peer, "gone", self._reason(peer)), sender=peer)

    def _hear(self, ending: Ending, *, sender: int) -> None:
        self._ended[ending.rank] = ending.how
        if ending.how == "finished" or self._other is not None or self._own is not None:
            return
        self._other = ending
        self._has_other.set()
        self._send(ending, but=sender)  # on rank 0; the others have nobody to tell
        if not self._is_closed.wait(_PATIENCE[ending.how]):
            self._end(str(ending))

    def _end_later(self) -> None:
        if not self._is_closed.wait(_OWN_PATIENCE):
            self._end(str(self._own))

    def _end(self, line: str) -> None:
        """End the process from beside its main thread, which may be stuck in a collective."""
        if self._says:
            sys.stderr.write(f"{line} · this run has ended\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks connect to rank 0; `begin` it there, and tell the others."""

    host: str
    port: int
    token: str

    @classmethod
    def begin(cls, host: str) -> tuple[Meeting, socket.socket]:
        """Listen for the others, who know this machine as `host`."""
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        is_local = address[0] in ("127.0.0.1", "::1")  # else the name may be that of a router
        server = socket.create_server((address[0] if is_local else "", 0), family=family)
        return cls(host, server.getsockname()[1], secrets.token_hex(16)), server

    def admit(
        self, server: socket.socket, world_size: int, *, timeout: float
    ) -> dict[int, socket.socket]:
        """Wait on rank 0 for the others, and return those that came in time."""
        links: dict[int, socket.socket] = {}
        until = time.monotonic() + timeout
        with server:
            while len(links) < world_size - 1 and (left := until - time.monotonic()) > 0:
                server.settimeout(left)
                try:
                    link, _ = server.accept()
                    link.settimeout(min(left, 5))
                    token, rank = _read_line(link).split()
                except (OSError, ValueError):
                    continue  # out of time, or a stranger
                if secrets.compare_digest(token, self.token):
                    links[int(rank)] = _prepared(link)
        return links

    def join(self, rank: int, *, timeout: float) -> dict[int, socket.socket]:
        """Connect to rank 0, and return the connection, if there is one."""
        try:
            link = socket.create_connection((self.host, self.port), timeout=timeout)
            link.sendall(f"{self.token} {rank}\n".encode())
        except OSError:
            return {}
        return {0: _prepared(link)}


def _prepared(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        option: Any = getattr(socket, name, None)  # not on every system
        if option is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, value)
    return link


def _read_line(link: socket.socket) -> str:
    """Read the first line, and no byte after it."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 100 and (byte := link.recv(1)):
        line += byte
    return line.decode()


def _received(link: Any) -> bytes:
    """What has come; nothing if the other end is closed or lost."""
    try:
        return link.recv(65536)
    except OSError:
        return b""
