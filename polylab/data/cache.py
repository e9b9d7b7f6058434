"""Tasks that are read once and lie in an Arrow file from then on, which is mapped, not read.

A folder `tasks-FINGERPRINT` holds the rows of all tasks (`examples.arrow`) and what else is known
of them (`tasks.json`). The fingerprint changes with the source's settings and files. A folder
appears when it is whole; processes that start at once wait for the one that makes it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from filelock import FileLock

from polylab.data.sources.notes import Notes
from polylab.data.table import SCHEMA, ExampleTable, batches_of
from polylab.data.tasks import SPLITS, TaskCollection, TaskData, TaskSource

__all__ = ["Streamed", "cached_tasks", "made_once"]

logger = logging.getLogger(__name__)
_VERSION = 1
_ROWS, _INDEX = "examples.arrow", "tasks.json"


@runtime_checkable
class Streamed(Protocol):
    """A source that gives its tasks one after another, and knows when they change."""

    @property
    def shares(self) -> Mapping[str, float] | None:
        """As `TaskCollection.shares`."""
        ...

    def fingerprint(self) -> str:
        """Changes with whatever changes the tasks."""
        ...

    def stream(self, notes: Notes) -> Iterator[TaskData]:
        """The tasks, in any order."""
        ...


def cached_tasks(source: TaskSource | Streamed, folder: str | os.PathLike[str]) -> TaskCollection:
    """The tasks of the source, read now if no process has done so before.

    Args:
        source: One that is `Streamed`.
        folder: Of all caches.

    Raises:
        ValueError: If the source is another, or what lies in the cache cannot be read.
    """
    if not isinstance(source, Streamed):
        raise ValueError(
            f"data.cache={folder}: {type(source).__name__} makes its tasks anew whenever they are "
            "needed, and has nothing to cache · set data.cache=null."
        )
    fingerprint = source.fingerprint()
    place = Path(folder).expanduser() / f"tasks-{fingerprint}"
    with made_once(place) as partial:
        if partial is not None:
            logger.info("reading the tasks into %s", place)
            _write(source, partial)
    return _open(place, fingerprint)


@contextmanager
def made_once(place: Path) -> Iterator[Path | None]:
    """Give a folder to fill, which is then moved to `place`; None if that is there already.

    Of several processes one gets the folder, and the others wait for it. What an error or a killed
    process leaves unfinished is removed.
    """
    if place.is_dir():
        yield None
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.partial")
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            yield None
            return
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            for path in partial.iterdir():
                _sync(path)
            os.replace(partial, place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(source: Streamed, folder: Path) -> None:
    notes, tasks, n_batches = Notes(), [], 0
    with pa.ipc.new_file(folder / _ROWS, SCHEMA) as file:
        for task in source.stream(notes):
            spans = {}
            for split in SPLITS:
                first = n_batches
                for batch in batches_of(task.split(split)):
                    file.write_batch(batch)
                    n_batches += 1
                spans[split] = [first, n_batches]
            tasks.append(
                {
                    "name": task.name,
                    "batches": spans,
                    "categories": task.categories,
                    "description": task.description,
                    "source": task.source,
                }
            )
    content = {
        "version": _VERSION,
        "tasks": tasks,
        "notes": notes.sentences(),
        "shares": source.shares,
    }
    (folder / _INDEX).write_text(json.dumps(content), encoding="utf-8")


def _open(place: Path, fingerprint: str) -> TaskCollection:
    try:
        index = json.loads((place / _INDEX).read_bytes())
        if index["version"] != _VERSION:
            raise ValueError(f"it is of version {index['version']}, and this is {_VERSION}")
        spans = [task["batches"][split] for task in index["tasks"] for split in SPLITS]
        tables = ExampleTable.in_files(place / _ROWS, [(first, end) for first, end in spans])
        tasks = [_task(found, tables[3 * i : 3 * i + 3]) for i, found in enumerate(index["tasks"])]
    except (OSError, ValueError, KeyError, TypeError) as error:  # Arrow's errors are among them
        raise ValueError(f"{place}: cannot be read ({error}) · remove this folder.") from error
    return TaskCollection(
        tasks, notes=(*index["notes"],), shares=index["shares"], fingerprint=fingerprint
    )


def _task(found: Mapping[str, Any], tables: list[ExampleTable]) -> TaskData:
    return TaskData(
        found["name"],
        *tables,
        categories=(*found["categories"],),
        description=found["description"],
        source=found["source"],
    )
