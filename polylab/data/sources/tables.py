"""Tables: rows found by the values of a column, and read again without holding the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[str, ...]
Row = tuple[str, dict[str, Any]]  # where it is, and its cells


class Table(ABC):
    """Rows with named columns.

    Attributes:
        where: The place, for errors.
        is_text: Whether all cells are strings, lists written as JSON.
    """

    where: str
    is_text: bool = False

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """Names of the columns."""

    @abstractmethod
    def pieces(self, by: Sequence[str]) -> dict[Key, Piece]:
        """The rows of each combination of values in the columns `by`; all rows if there are none.

        One pass over the table, that reads no other columns as far as the format allows.

        Raises:
            ValueError: With the place of the row, if a value is no string or empty.
        """

    @abstractmethod
    def rows(self, positions: np.ndarray | None, columns: Sequence[str]) -> Iterator[Row]:
        """The rows at `positions`, as `pieces` gave them, or all; `columns` of each.

        Raises:
            ValueError: With the place of the row, if it is malformed.
        """


@dataclass(frozen=True)
class Piece:
    """Some rows of a table.

    Args:
        table: The table.
        positions: Of the rows, in whatever terms the table finds them; None for all.
    """

    table: Table
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        assert self.positions is not None
        return len(self.positions)

    def take(self, chosen: np.ndarray) -> Piece:
        """The rows `chosen` of this piece, whose positions are known."""
        assert self.positions is not None
        return Piece(self.table, self.positions[chosen])

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The rows."""
        return self.table.rows(self.positions, columns)


def check_name(value: Any, *, column: str, where: str) -> str:
    """A value that names a task or a split.

    Raises:
        ValueError: If it is no string or empty.
    """
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError(
        f'{where}: "{column}" has {value!r} · it must be a non-empty string in every row · '
        "mend the row."
    )


class ArrowTable(Table):
    """Batches of Arrow, usually memory-mapped.

    Args:
        batches: The rows.
        where: The place; a row is `WHERE:row NUMBER`, from 1.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], *, schema: pa.Schema, where: str) -> None:
        self.where = where
        self._schema = schema
        self._batches = [batch for batch in batches if len(batch)]
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)

    @property
    def columns(self) -> Sequence[str]:
        return self._schema.names

    def pieces(self, by: Sequence[str]) -> dict[Key, Piece]:
        count = int(self._ends[-1]) if len(self._ends) else 0
        if not by:
            return {(): Piece(self, np.arange(count))}
        codes, values = zip(*map(self._encode, by), strict=True)
        sizes = [max(1, len(names)) for names in values]
        # the smallest type: two bytes are sorted in linear time
        kind = np.min_scalar_type(int(np.prod(sizes)) - 1)
        flat = np.zeros(count, dtype=kind)
        for code, size in zip(codes, sizes, strict=True):
            flat = flat * kind.type(size) + code.astype(kind)
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[:count])
        found = {}
        for start, end in zip(starts, [*starts[1:], count], strict=True):
            places = np.unravel_index(int(ordered[start]), sizes)
            key = tuple(names[int(i)] for names, i in zip(values, places, strict=True))
            found[key] = Piece(self, order[start:end])
        return found

    def rows(self, positions: np.ndarray | None, columns: Sequence[str]) -> Iterator[Row]:
        import pyarrow as pa

        if positions is None:
            positions = np.arange(int(self._ends[-1]) if len(self._ends) else 0)
        numbers = np.searchsorted(self._ends, positions, side="right")
        bounds = np.flatnonzero(np.diff(numbers)) + 1
        for part in np.split(positions, bounds) if len(positions) else ():
            number = int(np.searchsorted(self._ends, part[0], side="right"))
            batch = self._batches[number].select([*columns])
            local = part - (self._ends[number] - len(batch))
            # a slice copies nothing
            whole = len(local) == local[-1] - local[0] + 1
            taken = batch.slice(int(local[0]), len(local)) if whole else batch.take(pa.array(local))
            for position, cells in zip(part, taken.to_pylist(), strict=True):
                yield self._place(position), cells

    def _place(self, position: int) -> str:
        return f"{self.where}:row {position + 1}"

    def _encode(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A number for every row, and the value that each number stands for."""
        import pyarrow as pa

        kind = self._schema.field(column).type
        text = kind.value_type if pa.types.is_dictionary(kind) else kind
        cells = pa.chunked_array([batch.column(column) for batch in self._batches], type=kind)
        if len(cells) and not (pa.types.is_string(text) or pa.types.is_large_string(text)):
            check_name(cells[0].as_py(), column=column, where=self._place(0))
        if cells.null_count:
            first = int(np.flatnonzero(cells.is_null().to_numpy())[0])
            check_name(None, column=column, where=self._place(first))
        encoded = cells.dictionary_encode().unify_dictionaries()
        if not encoded.num_chunks:
            return np.zeros(0, dtype=np.int32), []
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
        values = encoded.chunk(0).dictionary.to_pylist()
        for number, value in enumerate(values):
            if not value.strip():
                first = int(np.flatnonzero(codes == number)[0])
                check_name(value, column=column, where=self._place(first))
        return codes, values
