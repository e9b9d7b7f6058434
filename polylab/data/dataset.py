"""Examples by index, encoded when first needed and kept for a while."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import Int32
from numpy import ndarray
from torch.utils.data import Dataset

from polylab.data.cache import made_once
from polylab.data.chat import Message
from polylab.data.encoding import Pair, TextEncoder, Tokens
from polylab.data.example import Example
from polylab.data.grouping import Grouping
from polylab.data.prompts import render_input
from polylab.data.sampling import Key
from polylab.data.table import ExampleTable, as_table
from polylab.data.tokens import MAX_TOKENS, StoredTokens, TokenCache

logger = logging.getLogger(__name__)
_CHUNK = 1024  # texts per call of the tokenizer


@dataclass(frozen=True)
class EncodedExample:
    """An example as the collator takes it; `row` is its position in the global batch.

    What follows the ids is empty unless the dataset is one with texts.
    """

    task_id: int
    row: int
    input_ids: Tokens
    target_ids: Tokens
    text: str = ""
    references: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    option_ids: tuple[Tokens, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Lengths of some examples and, where they were wanted, their ids."""

    indices: list[int]
    lengths: Int32[ndarray, "examples 2"]
    pairs: list[Pair]


class EncodedExamples(Dataset[EncodedExample]):
    """The examples of several tasks, one task after another, under (index, row) keys.

    Args:
        examples: Per task.
        task_names: Per task.
        task_ids: Per task.
        encoder: Makes the token ids.
        prompt: What of the task the input carries.
        with_texts: Whether items have what only evaluation reads.
        max_tokens: Token ids to keep in memory.
    """

    def __init__(
        self,
        examples: Sequence[Sequence[Example]],
        *,
        task_names: Sequence[str],
        task_ids: Sequence[int],
        encoder: TextEncoder,
        prompt: str,
        with_texts: bool = True,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._tables = [as_table(task) for task in examples]
        self._ends = [*accumulate(map(len, self._tables))]
        self._task_names = list(task_names)
        self._task_ids = list(task_ids)
        self._encoder = encoder
        self._prompt = prompt
        self._with_texts = with_texts
        # without a template conversations are inputs and targets as others are
        self._converses = encoder.chat is not None and any(t.has_messages for t in self._tables)
        self._cache: TokenCache | StoredTokens = TokenCache(len(self), max_tokens=max_tokens)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def store(self, folder: str | os.PathLike[str], *, fingerprint: str) -> None:
        """Take all ids from files in `folder`, made now if no process has made them before.

        Args:
            folder: Of all caches.
            fingerprint: Of the examples and their order.
        """
        state = "\n".join([fingerprint, self._prompt, self._encoder.fingerprint()])
        name = blake2b(state.encode(), digest_size=16).hexdigest()
        place = Path(folder).expanduser() / f"tokens-{name}"
        with made_once(place) as partial:
            if partial is not None:
                logger.info("tokenising %s examples into %s", f"{len(self):,}", place)
                starts = range(0, len(self), _CHUNK)
                chunks = (range(i, min(i + _CHUNK, len(self))) for i in starts)
                StoredTokens.write(partial, map(self._encode, chunks))
        self._cache = StoredTokens(place)

    def __getitem__(self, key: Key) -> EncodedExample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[EncodedExample]:
        """A batch at once, so that the tokenizer is called once for what is not in the cache."""
        pairs = {index: self._cache.get(index) for index, _ in keys}
        missing = sorted(index for index, pair in pairs.items() if pair is None)
        for index, pair in zip(missing, self._encode(missing), strict=True):
            self._cache.put(index, pair)
            pairs[index] = pair
        return [self._item(index, row, pairs[index]) for index, row in keys]

    @property
    def runs_beside(self) -> bool:
        """Whether `measure` in a thread leaves the others alone."""
        return self._encoder.runs_beside

    def text(self, index: int) -> str:
        """The rendered input."""
        task, table, row = self._locate(index)
        if self._prompt == "none":
            return table.input_at(row)  # the rest of the example is not needed
        return render_input(table[row], task_name=self._task_names[task], prompt=self._prompt)

    def target(self, index: int) -> str:
        """The target that is trained on."""
        _, table, row = self._locate(index)
        return table.target_at(row)

    def truncated(self, *, sample: int) -> tuple[float, float]:
        """Share of about `sample` evenly spaced examples whose input, and whose target, is cut."""
        cuts = [
            self._encoder.is_truncated(self.text(i), self.target(i)) for i in self._some(sample)
        ]
        n = max(1, len(cuts))
        return sum(cut for cut, _ in cuts) / n, sum(cut for _, cut in cuts) / n

    def lengths(self, indices: Sequence[int]) -> Int32[ndarray, "examples 2"]:
        """Tokens of inputs and of targets, of examples that were measured or encoded before."""
        return self._cache.lengths[indices]

    def measure(self, indices: Sequence[int], *, with_ids: bool) -> Measured:
        """The lengths, and the ids, of those that lack them; nothing here changes.

        So it may run in a thread; `keep` then takes the result.
        """
        known = self._cache.holds(indices, ids=with_ids)
        missing = sorted({index for index, has in zip(indices, known, strict=True) if not has})
        pairs: list[Pair] = []
        lengths = [np.zeros((0, 2), dtype=np.int32)]
        for first in range(0, len(missing), _CHUNK):
            chunk = missing[first : first + _CHUNK]
            if with_ids:
                pairs.extend(self._encode(chunk))
            elif self._converses:
                lengths.append(_lengths(self._encode(chunk)))
            else:
                lengths.append(self._encoder.count(*self._texts(chunk)))
        if with_ids:
            lengths.append(_lengths(pairs))
        return Measured(missing, np.concatenate(lengths), pairs)

    def keep(self, measured: Measured) -> None:
        """Take what `measure` found."""
        self._cache.put_lengths(measured.indices, measured.lengths)
        for index, pair in zip(measured.indices, measured.pairs, strict=False):
            self._cache.put(index, pair)

    def fingerprint(self) -> int:
        """A number that changes with the tokenizer, its budgets, the prompt or the texts."""
        some = self._some(256)
        return crc32(self._encoder.count(*self._texts(some)).tobytes())

    def _some(self, number: int) -> range:
        return range(0, len(self), max(1, len(self) // number))

    def _locate(self, index: int) -> tuple[int, ExampleTable, int]:
        task = bisect_right(self._ends, index)
        table = self._tables[task]
        return task, table, index - self._ends[task] + len(table)

    def _texts(self, indices: Sequence[int]) -> tuple[list[str], list[str]]:
        return [*map(self.text, indices)], [*map(self.target, indices)]

    def _encode(self, indices: Sequence[int]) -> list[Pair]:
        pairs = {}
        if self._converses:
            learns = not self._with_texts
            for index in indices:
                if messages := self._messages(index):
                    pairs[index] = self._encoder.encode_conversation(messages, learns=learns)
        plain = [index for index in indices if index not in pairs]
        if plain:
            inputs, targets = self._texts(plain)
            encoded = zip(
                self._encoder.encode_inputs(inputs),
                self._encoder.encode_targets(targets),
                strict=True,
            )
            pairs.update(zip(plain, encoded, strict=True))
        return [pairs[index] for index in indices]

    def _messages(self, index: int) -> list[Message]:
        """A conversation with what `prompt` says of the task: the name before it, the system's."""
        task, table, row = self._locate(index)
        messages = [*(table[row].messages or ())]
        if messages and messages[0][0] == "system" and self._prompt != "instruction":
            del messages[0]
        if messages and self._prompt == "name":
            role, content = messages[0]
            messages[0] = role, f"{self._task_names[task]}: {content}"
        return messages

    def _item(self, index: int, row: int, pair: Pair | None) -> EncodedExample:
        assert pair is not None
        task, table, position = self._locate(index)
        item = EncodedExample(self._task_ids[task], row, *pair)
        if not self._with_texts:
            return item
        example = table[position]
        options = example.options or ()
        return replace(
            item,
            text=self.text(index),
            references=example.references,
            options=options,
            option_ids=(*self._encoder.encode_targets(options),),
        )


def _lengths(pairs: Sequence[Pair]) -> Int32[ndarray, "texts 2"]:
    return np.array([(len(x), len(y)) for x, y in pairs], np.int32).reshape(-1, 2)


class TokenLengths:
    """The lengths of a dataset's examples, for grouping.

    Args:
        dataset: Of the examples.
        joined: Whether input and target are one row, as for a decoder-only model.
        with_ids: Whether this process encodes the examples too, and should do so only once.
    """

    def __init__(self, dataset: EncodedExamples, *, joined: bool, with_ids: bool) -> None:
        self._dataset = dataset
        self._joined = joined
        self._with_ids = with_ids
        self.runs_beside = dataset.runs_beside

    def measure(self, indices: Sequence[int]) -> Measured:
        """What is not known yet; nothing changes."""
        return self._dataset.measure(indices, with_ids=self._with_ids)

    def lengths(self, indices: Sequence[int], measured: Measured) -> Int32[ndarray, "rows sides"]:
        """Take what was measured and give the lengths of all."""
        self._dataset.keep(measured)
        lengths = self._dataset.lengths(indices)
        return lengths.sum(axis=1, keepdims=True, dtype=np.int32) if self._joined else lengths

    def fingerprint(self) -> int:
        """The dataset's."""
        return self._dataset.fingerprint()


def length_grouping(
    dataset: EncodedExamples, window: int | None, *, joined: bool, with_ids: bool
) -> Grouping | None:
    """Groups of `window` batches of the dataset's examples; None for None."""
    if window is None:
        return None
    return Grouping(TokenLengths(dataset, joined=joined, with_ids=with_ids), window)
