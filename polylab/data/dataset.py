"""Examples by index, encoded when first needed and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from polylab.data.encoding import TextEncoder, Tokens
from polylab.data.example import Example
from polylab.data.prompts import render_input
from polylab.data.sampling import Key


@dataclass(frozen=True)
class EncodedExample:
    """An example as the collator takes it; `row` is its position in the global batch."""

    text: str
    references: tuple[str, ...]
    task_id: int
    row: int
    input_ids: Tokens
    target_ids: Tokens


class EncodedExamples(Dataset[EncodedExample]):
    """The examples of several tasks, one task after another, under (index, row) keys.

    Args:
        examples: Per task.
        task_names: Per task.
        task_ids: Per task.
        encoder: Makes the token ids.
        prompt: What of the task the input carries.
    """

    def __init__(
        self,
        examples: Sequence[Sequence[Example]],
        *,
        task_names: Sequence[str],
        task_ids: Sequence[int],
        encoder: TextEncoder,
        prompt: str,
    ) -> None:
        self._examples = [example for task in examples for example in task]
        self._tasks = [i for i, task in enumerate(examples) for _ in task]
        self._task_names = list(task_names)
        self._task_ids = list(task_ids)
        self._encoder = encoder
        self._prompt = prompt
        self._encoded: list[tuple[Tokens, Tokens] | None] = [None] * len(self._examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, key: Key) -> EncodedExample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[EncodedExample]:
        """A batch at once, so that the tokenizer is called once for what it has not seen yet."""
        missing = sorted({index for index, _ in keys if self._encoded[index] is None})
        if missing:
            inputs = self._encoder.encode_inputs([self.text(index) for index in missing])
            targets = self._encoder.encode_targets([self._examples[i].target for i in missing])
            for index, pair in zip(missing, zip(inputs, targets, strict=True), strict=True):
                self._encoded[index] = pair
        return [self._item(index, row) for index, row in keys]

    def text(self, index: int) -> str:
        """The rendered input."""
        return render_input(
            self._examples[index],
            task_name=self._task_names[self._tasks[index]],
            prompt=self._prompt,
        )

    def truncated(self, *, sample: int) -> tuple[float, float]:
        """Share of about `sample` evenly spaced examples whose input, and whose target, is cut."""
        cuts = [
            self._encoder.is_truncated(self.text(i), self._examples[i].target)
            for i in range(0, len(self), max(1, len(self) // sample))
        ]
        n = max(1, len(cuts))
        return sum(cut for cut, _ in cuts) / n, sum(cut for _, cut in cuts) / n

    def _item(self, index: int, row: int) -> EncodedExample:
        encoded = self._encoded[index]
        assert encoded is not None
        return EncodedExample(
            text=self.text(index),
            references=self._examples[index].references,
            task_id=self._task_ids[self._tasks[index]],
            row=row,
            input_ids=encoded[0],
            target_ids=encoded[1],
        )
