"""The answers of each task as classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32
from numpy import ndarray

from polylab.data.encoding import TextEncoder, Tokens
from polylab.data.example import Example
from polylab.data.tasks import TaskData

__all__ = ["NO_LABEL", "ClassEncoder", "LabelSets", "label_set"]

NO_LABEL = -100  # of an answer that is none of its task's labels; the loss ignores it


def label_set(task: TaskData, *, max_labels: int) -> list[str]:
    """The labels of a task, sorted: its options, or else its training targets.

    Raises:
        ValueError: If there are more than `max_labels` or fewer than two, or a training target is
            no option.
    """
    options: set[str] = set()
    targets: set[str] = set()
    for example in task.train:
        options.update(example.options or ())
        targets.add(example.target)
        if len(options) > max_labels or (not options and len(targets) > max_labels):
            raise ValueError(
                f"task {task.name!r}: more than {max_labels} labels (data.max_labels) · it looks "
                "like generation · leave it out, raise data.max_labels, or use module=multitask."
            )
    strange = sorted(targets - options) if options else []
    if strange:
        raise ValueError(
            f"task {task.name!r}: the training target {strange[0]!r} is none of its "
            f"{len(options)} options · every target must be one · correct the data."
        )
    labels = sorted(options or targets)
    if len(labels) < 2:
        raise ValueError(
            f"task {task.name!r}: labels {labels} · two or more are needed · leave the task out."
        )
    return labels


class LabelSets:
    """Each task's labels, and every text among them under a number of its own.

    Args:
        by_task: Labels by task id.
    """

    def __init__(self, by_task: Sequence[Sequence[str]]) -> None:
        self.by_task = [list(labels) for labels in by_task]
        texts = sorted({label for labels in by_task for label in labels})
        self._ids = {text: i for i, text in enumerate(texts)}
        self._classes = [
            {self._ids[label]: i for i, label in enumerate(labels)} for labels in self.by_task
        ]

    def text_ids(self, targets: Sequence[str]) -> list[int]:
        """The number of each text, whatever its task; `NO_LABEL` of one that is no task's."""
        return [self._ids.get(target, NO_LABEL) for target in targets]

    def class_of(self, task_id: int, text_id: int) -> int:
        """The position among the task's labels, or `NO_LABEL`."""
        return self._classes[task_id].get(text_id, NO_LABEL)

    def strangers(self, task_id: int, examples: Sequence[Example]) -> int:
        """How many of the examples have a target that is none of the task's labels."""
        known = set(self.by_task[task_id])
        return sum(example.target not in known for example in examples)

    def notes(
        self,
        tasks: Sequence[TaskData],
        ids: dict[str, int],
        *,
        splits: Sequence[str] = ("validation", "test"),
    ) -> Iterator[str]:
        """A sentence for each evaluated split with targets that are no labels."""
        for task in tasks:
            for split in splits:
                count = self.strangers(ids[task.name], task.split(split))
                if count:
                    yield (
                        f"{task.name}: {count} of {len(task.split(split))} {split} targets are "
                        "none of its labels; any answer to them counts as wrong"
                    )


class ClassEncoder(TextEncoder):
    """Token ids of inputs as for an encoder; a target is the number of its text in `labels`."""

    def use(self, labels: LabelSets) -> None:
        """Take the labels, which are known only when the tasks have been read."""
        self._labels = labels

    def fingerprint(self) -> str:
        """Changes with the labels too."""
        return f"{super().fingerprint()} {self._labels.by_task}"

    def encode_targets(self, texts: Sequence[str]) -> list[Tokens]:
        """One number for each target."""
        return [np.array([i], dtype=np.int32) for i in self._labels.text_ids(texts)]

    def count(self, inputs: Sequence[str], targets: Sequence[str]) -> Int32[ndarray, "texts 2"]:
        """Lengths of inputs, and 1 for each target."""
        lengths = super().count(inputs, targets)
        lengths[:, 1] = 1
        return lengths

    def is_truncated(self, text: str, target: str) -> tuple[bool, bool]:
        """Whether the input exceeds its budget; a label never does."""
        return super().is_truncated(text, target)[0], False
