"""Reads an offline W&B run back from disk, so that tests can check what a run logged.

A `.wandb` file is a sequence of protobuf records in LevelDB's log format: blocks of 32 KiB, each
record cut into chunks with a header of checksum, size and kind.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protobuf

_BLOCK = 32 * 1024
_MAGIC = b":W&B"
_FILE_HEADER = 7  # magic 4, check 2, version 1
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, size, kind
_WHOLE, _FIRST, _LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """What one offline run holds."""

    folder: Path
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """Type, name and aliases."""
    exit_code: int | None = None

    def series(self, key: str) -> list[tuple[int, Any]]:
        """`(trainer/global_step, value)` of every row that holds `key`."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]

    def last(self, key: str) -> Any:
        """The newest value of `key`.

        Raises:
            KeyError: If it was never logged.
        """
        values = self.series(key)
        if not values:
            known = sorted({name for row in self.history for name in row})
            raise KeyError(f"{key} was not logged; logged are {known}")
        return values[-1][1]

    def file(self, media: dict[str, Any]) -> Path:
        """The file of an image or table in the history."""
        return self.folder / "files" / media["path"]

    def table(self, media: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table in the history."""
        content = json.loads(self.file(media).read_text())
        return content["columns"], content["data"]


def read_runs(folder: Path | str, *, patience: float = 20.0) -> list[OfflineRun]:
    """All offline runs under `folder`, oldest first; call `wandb.finish()` before.

    `finish` comes back before the service has written the last records: this waits up to
    `patience` seconds for the record of each run's end. 0 reads what there is, say of a killed run.
    """
    paths = sorted(Path(folder).glob("**/offline-run-*/run-*.wandb"))
    until = time.monotonic() + patience
    runs = [_read(path) for path in paths]
    while any(run.exit_code is None for run in runs) and time.monotonic() < until:
        time.sleep(0.05)
        runs = [_read(path) for path in paths]
    return runs


def read_run(folder: Path | str, *, patience: float = 20.0) -> OfflineRun:
    """The only offline run under `folder`; see `read_runs`.

    Raises:
        ValueError: If there is not exactly one.
    """
    runs = read_runs(folder, patience=patience)
    if len(runs) != 1:
        raise ValueError(f"{folder} holds {len(runs)} offline runs, not 1")
    return runs[0]


def _read(path: Path) -> OfflineRun:
    run = OfflineRun(path.parent)
    for record in _records(path.read_bytes(), path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.group, run.job_type = record.run.run_group, record.run.job_type
            run.name, run.tags = record.run.display_name, list(record.run.tags)
            _merge(run.config, record.run.config.update)
        elif kind == "config":
            _merge(run.config, record.config.update)
        elif kind == "history":
            run.history.append(_merge({}, record.history.item))
        elif kind == "summary":
            _merge(run.summary, record.summary.update)
        elif kind == "artifact":
            found = record.artifact
            run.artifacts.append((found.type, found.name, list(found.aliases)))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _merge(into: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    for item in items:
        *parents, key = list(item.nested_key) or [item.key]
        place = into
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = json.loads(item.value_json)
    return into


def _records(data: bytes, path: Path) -> Iterator[Any]:
    if data and data[: len(_MAGIC)] != _MAGIC:  # a run that has just begun has an empty file
        raise ValueError(f"{path} does not begin with {_MAGIC!r}: not a .wandb file")
    pending = b""
    for kind, body in _chunks(data, path):
        pending = body if kind in (_WHOLE, _FIRST) else pending + body
        if kind in (_WHOLE, _LAST):
            yield protobuf.Record.FromString(pending)


def _chunks(data: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    at = _FILE_HEADER
    while at + _CHUNK_HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _CHUNK_HEADER.size:
            at += left  # zeros fill the end of a block
            continue
        checksum, size, kind = _CHUNK_HEADER.unpack_from(data, at)
        body = data[at + _CHUNK_HEADER.size : at + _CHUNK_HEADER.size + size]
        if kind == 0 or len(body) < size:
            return  # the run was killed while it wrote, or still writes
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"{path} has a wrong checksum at byte {at}")
        at += _CHUNK_HEADER.size + size
        yield kind, body
