"""The files of CrossFit: folders of TSV files, and partitions of the tasks."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polylab.data.rows import decode_line

LISTS = ("train", "dev", "test")
Files = dict[str, Path]  # by train, dev, test
Samples = dict[tuple[int, int], Files]  # by shots and seed

_NAME = re.compile(r"(.+)_(\d+)_(\d+)_(train|dev|test)\.tsv", re.DOTALL)
_FORM = '{"train": [TASK, ...], "dev": [...], "test": [...]}'


def read_partition(path: Path) -> dict[str, list[str]]:
    """The names of tasks in each of `LISTS`; a list that the file does not have is empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none, or a task is in two places.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"data.partition={path}: there is no such file · it is a JSON file, {_FORM} · correct "
            "the path."
        )
    try:
        content: Any = json.loads(path.read_bytes())
    except ValueError as error:
        where = f"{path}:{getattr(error, 'lineno', 1)}"
        raise ValueError(
            f"{where}: not valid JSON ({error}) · a partition is {_FORM} · mend the file."
        ) from None
    if not isinstance(content, dict) or not content or set(content) - {*LISTS}:
        shown = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} has {shown} · a partition has the lists {', '.join(LISTS)}: {_FORM} · mend "
            "the file."
        )
    for name, tasks in content.items():
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise ValueError(
                f"{path}: {name!r} has {str(tasks)[:60]} · it must be a list of names of tasks · "
                "mend the file."
            )
    _check_distinct(content, path)
    return {name: content.get(name, []) for name in LISTS}


def _check_distinct(lists: dict[str, list[str]], path: Path) -> None:
    owners: dict[str, str] = {}
    for name, tasks in lists.items():
        for task in tasks:
            if task in owners:
                raise ValueError(
                    f"{path}: the task {task!r} is in {owners[task]!r} and in {name!r} · a name "
                    "is there once, in one of the lists · remove one."
                )
            owners[task] = name


def task_folders(root: Path) -> dict[str, Path]:
    """The folders with TSV files, by name.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"data.path={root} is not a folder · it must hold TASK/TASK_SHOTS_SEED_train.tsv · "
            "correct the path."
        )
    found = {path.parent.name: path.parent for path in sorted(root.glob("*/*.tsv"))}
    if not found:
        raise FileNotFoundError(
            f"data.path={root} holds no TASK/TASK_SHOTS_SEED_train.tsv · a folder a task is "
            "needed, as CrossFit builds them · correct the path."
        )
    return found


def samples_of(folder: Path) -> Samples:
    """The files of a task.

    Raises:
        ValueError: If one has another name.
    """
    found: dict[tuple[int, int], Files] = defaultdict(dict)
    for path in sorted(folder.glob("*.tsv")):
        parts = _NAME.fullmatch(path.name)
        if parts is None or parts[1] != folder.name:
            raise ValueError(
                f"{path} is not named {folder.name}_SHOTS_SEED_train.tsv, _dev.tsv or _test.tsv · "
                "only such files may end in .tsv · rename or remove it."
            )
        found[int(parts[2]), int(parts[3])][parts[4]] = path
    return dict(found)


def read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and the cells of every row, two or more.

    Raises:
        ValueError: With `FILE:LINE`, if there is one cell alone.
    """
    with path.open("rb") as lines:  # bytes end a line at \n only, whatever the text holds
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            text = decode_line(line, where, "utf-8-sig" if number == 1 else "utf-8")
            cells = text.removesuffix("\n").removesuffix("\r").split("\t")
            if len(cells) > 1:
                yield where, cells
            elif text.strip():
                shown = text.rstrip()
                shown = shown if len(shown) <= 60 else shown[:57] + "..."
                raise ValueError(
                    f"{where}: no TAB in {shown!r} · a row is an input, a TAB and a target · mend "
                    "or remove the line; a line break within a text makes two of a row."
                )
