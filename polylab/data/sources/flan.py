"""FLAN 2022 as the hub has it: tasks and collections in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from polylab.data.sources.hub import HubSource
from polylab.data.sources.selecting import safe_names
from polylab.data.sources.tabular import Part

_BETWEEN = "\0"


@dataclass(frozen=True, kw_only=True)
class FlanSource(HubSource):
    """FLAN 2022 (https://arxiv.org/abs/2301.13688), from any of its usual datasets or a folder.

    A task is named by its column; one name in several collections (`task_source`) is several tasks,
    `COLLECTION.NAME` each.

    Args:
        path: The dataset. Further arguments are those of `HubSource`.
        templates: Forms of prompts (`template_type`: `zs_opt`, `zs_noopt`, `fs_opt`, ...) to read;
            all if empty.
        collections: Collections (`task_source`) to read; all if empty.

    Raises:
        ValueError: When read, if one of these does not occur.
    """

    templates: Sequence[str] = field(default_factory=tuple)
    collections: Sequence[str] = field(default_factory=tuple)
    tasks: str = "column"

    WAYS: ClassVar[tuple[str, ...]] = ("column",)
    KEYS: ClassVar[tuple[str, ...]] = ("task", "split", "collection", "template")

    def wanted(self) -> Mapping[str, Sequence[str]]:
        wanted = {"template": self.templates, "collection": self.collections}
        return {key: values for key, values in wanted.items() if values}

    def task_of(self, found: Mapping[str, str], part: Part) -> str:
        collection, task = found.get("collection", ""), super().task_of(found, part)
        return f"{collection}{_BETWEEN}{task}"

    def names(self, tasks: Iterable[str]) -> dict[str, str]:
        parts = {task: task.split(_BETWEEN, 1) for task in tasks}
        counts = Counter(name for _, name in parts.values())
        return safe_names(
            {
                task: name if counts[name] == 1 else f"{collection}.{name}"
                for task, (collection, name) in parts.items()
            }
        )
