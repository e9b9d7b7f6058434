"""Examples in Arrow columns, in memory or in a file that is mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from polylab.data.example import Example

__all__ = ["SCHEMA", "ExampleTable", "as_table", "batches_of"]

_TEXT: Any = pa.large_binary()  # UTF-8, but lone surrogates pass: a text comes back as it was
_TEXTS: Any = pa.large_list(_TEXT)
SCHEMA = pa.schema(
    {
        "input": _TEXT,
        "target": _TEXT,
        "references": _TEXTS,  # null: the target alone, which is the rule
        "options": _TEXTS,
        "instruction": _TEXT,
        "messages": _TEXTS,  # role, content, role, content, ...
    }
)
_BATCH = 16_384  # rows of a batch


class ExampleTable(Sequence[Example]):
    """The examples given, kept in columns and made anew whenever one is asked for.

    A list of a million examples is some ten million objects: memory several times that of the text,
    and every process that reads one writes its reference counts, which copies the page that workers
    would otherwise share.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._set(pa.Table.from_batches(batches_of(examples), SCHEMA), None)

    @classmethod
    def in_file(cls, path: Path, batches: tuple[int, int]) -> ExampleTable:
        """Batches `[first, end)` of an Arrow file, which is mapped, not read.

        Pickled, it is the place in the file, so that worker processes map it too.
        """
        return cls.in_files(path, [batches])[0]

    @classmethod
    def in_files(cls, path: Path, spans: Iterable[tuple[int, int]]) -> list[ExampleTable]:
        """`in_file` of many spans of batches, from one mapping."""
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        tables = []
        for first, end in spans:
            table = cls.__new__(cls)
            found = [file.get_batch(i) for i in range(first, end)]
            table._set(pa.Table.from_batches(found, SCHEMA), (path, (first, end)))
            tables.append(table)
        return tables

    def _set(self, table: pa.Table, place: tuple[Path, tuple[int, int]] | None) -> None:
        self._table, self._place = table, place
        self._columns = [_Column(column) for column in table.columns]
        self._inputs, self._targets, _, _, self._instructions, self._messages = self._columns

    def __reduce__(self) -> tuple[Any, ...]:
        if self._place is not None:
            return ExampleTable.in_file, self._place
        return _from_arrow, (self._table,)

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> ExampleTable: ...

    def __getitem__(self, index: int | slice) -> Example | ExampleTable:
        if isinstance(index, slice):
            return ExampleTable(self[i] for i in range(*index.indices(len(self))))
        row = range(len(self))[index]  # a negative one counts from the end
        return _example(*(column[row] for column in self._columns))

    def __iter__(self) -> Iterator[Example]:
        for batch in self._table.to_batches(_BATCH):
            yield from map(_example, *(column.to_pylist() for column in batch.columns))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(own == its for own, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ExampleTable({list(self)!r})"

    @property
    def nbytes(self) -> int:
        """Bytes of its columns."""
        return self._table.nbytes

    def input_at(self, row: int) -> str:
        """The input of a row, without the rest of it."""
        return _decode(self._inputs[row])

    def all_instructed(self) -> bool:
        """Whether every example has an instruction."""
        return not self._instructions.null_count

    @property
    def has_messages(self) -> bool:
        """Whether any example is a conversation."""
        return self._messages.null_count < len(self)

    def target_at(self, row: int) -> str:
        """The target of a row, without the rest of it."""
        return _decode(self._targets[row])


def as_table(examples: Sequence[Example]) -> ExampleTable:
    """The examples as a table; one that is a table already is not copied."""
    return examples if isinstance(examples, ExampleTable) else ExampleTable(examples)


def batches_of(examples: Iterable[Example]) -> Iterator[pa.RecordBatch]:
    """The examples as Arrow batches of `SCHEMA`."""
    left = iter(examples)
    while rows := [*islice(left, _BATCH)]:
        texts = [
            _texts([_encode(row.input) for row in rows]),
            _texts([_encode(row.target) for row in rows]),
            _lists(None if row.references == (row.target,) else row.references for row in rows),
            _lists(row.options or None for row in rows),
            _texts([None if row.instruction is None else _encode(row.instruction) for row in rows]),
            _lists([*chain(*row.messages)] if row.messages else None for row in rows),
        ]
        yield pa.RecordBatch.from_arrays(texts, schema=SCHEMA)


class _Column:
    """Values by row. Of a single chunk, which is the rule, no chunk need be looked up."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.null_count = column.null_count
        self._values = column.chunk(0) if column.num_chunks == 1 else column

    def __getitem__(self, row: int) -> Any:
        return self._values[row].as_py()


def _from_arrow(table: pa.Table) -> ExampleTable:
    found = ExampleTable.__new__(ExampleTable)
    found._set(table, None)
    return found


def _example(
    text: bytes,
    target: bytes,
    references: list[bytes] | None,
    options: list[bytes] | None,
    instruction: bytes | None,
    messages: list[bytes] | None,
) -> Example:
    return Example(
        input=_decode(text),
        target=_decode(target),
        references=(*map(_decode, references or ()),),
        options=(*map(_decode, options),) if options else None,
        instruction=None if instruction is None else _decode(instruction),
        messages=(*_pairs(map(_decode, messages)),) if messages else None,
    )


def _pairs(texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    return zip(texts, texts, strict=True)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


# From buffers, since `pa.array` imports pandas to see that it is given no data frame


def _texts(values: Sequence[bytes | None]) -> pa.Array:
    lengths = [0 if value is None else len(value) for value in values]
    data = pa.py_buffer(b"".join(value for value in values if value is not None))
    buffers = [_validity(values), _ends(lengths), data]
    return pa.Array.from_buffers(_TEXT, len(values), buffers)


def _lists(values: Iterable[Sequence[str] | None]) -> pa.Array:
    rows = [*values]
    texts = _texts([_encode(text) for row in rows for text in row or ()])
    buffers = [_validity(rows), _ends([len(row or ()) for row in rows])]
    return pa.Array.from_buffers(_TEXTS, len(rows), buffers, children=[texts])


def _validity(values: Sequence[object | None]) -> pa.Buffer:
    there = np.array([value is not None for value in values], dtype=bool)
    return pa.py_buffer(np.packbits(there, bitorder="little").tobytes())


def _ends(lengths: Sequence[int]) -> pa.Buffer:
    return pa.py_buffer(np.cumsum([0, *lengths], dtype=np.int64).tobytes())
