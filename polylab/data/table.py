"""Examples in compact columns, which forked worker processes share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from polylab.data.example import Example


class ExampleTable(Sequence[Example]):
    """The examples given, kept as a few buffers and made anew whenever one is asked for.

    A list of a million examples is some ten million objects: memory several times that of the text,
    and every process that reads one writes its reference counts, which copies the page that workers
    would otherwise share.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        rows = list(examples)
        self._inputs = _Texts(example.input for example in rows)
        self._targets = _Texts(example.target for example in rows)
        self._instructions = _lists(
            () if example.instruction is None else (example.instruction,) for example in rows
        )
        # the target alone, which is the rule, is not repeated
        self._references = _lists(
            () if example.references == (example.target,) else example.references
            for example in rows
        )
        self._options = _lists(example.options or () for example in rows)

    def __len__(self) -> int:
        return len(self._inputs)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> ExampleTable: ...

    def __getitem__(self, index: int | slice) -> Example | ExampleTable:
        if isinstance(index, slice):
            return ExampleTable(self[i] for i in range(*index.indices(len(self))))
        row = range(len(self))[index]  # a negative one counts from the end
        return Example(
            input=self._inputs[row],
            target=self._targets[row],
            references=_list_at(self._references, row),
            options=_list_at(self._options, row) or None,
            instruction=next(iter(_list_at(self._instructions, row)), None),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(own == its for own, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ExampleTable({list(self)!r})"

    def input_at(self, row: int) -> str:
        """The input of a row, without the rest of it."""
        return self._inputs[row]

    def all_instructed(self) -> bool:
        """Whether every example has an instruction."""
        given = 0 if self._instructions is None else len(self._instructions.texts)
        return given == len(self)

    def target_at(self, row: int) -> str:
        """The target of a row, without the rest of it."""
        return self._targets[row]


def as_table(examples: Sequence[Example]) -> ExampleTable:
    """The examples as a table; one that is a table already is not copied."""
    return examples if isinstance(examples, ExampleTable) else ExampleTable(examples)


class _Texts:
    """Strings as one byte string and the ends of each in it."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts: list[bytes] = []
        self._ends = array("q", [0])
        for text in texts:
            parts.append(text.encode("utf-8", "surrogatepass"))
            self._ends.append(self._ends[-1] + len(parts[-1]))
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        found = self._bytes[self._ends[row] : self._ends[row + 1]]
        return found.decode("utf-8", "surrogatepass")


class _Lists:
    """Tuples of strings, as all their strings and the ends of each tuple in them."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        texts: list[str] = []
        self._ends = array("q", [0])
        for strings in lists:
            texts.extend(strings)
            self._ends.append(len(texts))
        self.texts = _Texts(texts)

    def __getitem__(self, row: int) -> tuple[str, ...]:
        return tuple(self.texts[i] for i in range(self._ends[row], self._ends[row + 1]))


def _lists(lists: Iterable[Sequence[str]]) -> _Lists | None:
    # None takes no memory where there is nothing in any row
    found = _Lists(lists)
    return found if len(found.texts) else None


def _list_at(lists: _Lists | None, row: int) -> tuple[str, ...]:
    return () if lists is None else lists[row]
