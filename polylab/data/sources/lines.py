"""Tables in text files, whose rows are found again by the byte where they start."""

from __future__ import annotations

import csv
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polylab.data.rows import decode_line, parse_object
from polylab.data.sources.tables import Key, Piece, Row, Table, check_name
from polylab.data.tasks import quote

MAX_CELL = 2**31 - 1  # characters; the csv module stops at 131,072 by default
Start = tuple[int, int]  # the byte where a row starts, and its line from 1


class LineTable(Table):
    """Rows in a file of lines, in UTF-8, with or without a byte-order mark.

    Args:
        path: The file.
        where: Its name in errors, as the user spelled it; its path by default.
    """

    def __init__(self, path: Path, *, where: str | None = None) -> None:
        self.path = path
        self.where = where or str(path)

    @property
    def columns(self) -> Sequence[str]:
        return self._names

    def pieces(self, by: Sequence[str]) -> dict[Key, Piece]:
        found: dict[Key, array[int]] = {} if by else {(): array("q")}
        for start, cells in self._scan([(0, 1)]):
            where = f"{self.where}:{start[1]}"
            key = tuple(check_name(cells.get(name), column=name, where=where) for name in by)
            found.setdefault(key, array("q")).extend(start)
        return {
            key: Piece(self, np.array(starts, dtype=np.int64).reshape(-1, 2))
            for key, starts in found.items()
        }

    def rows(self, positions: np.ndarray | None, columns: Sequence[str]) -> Iterator[Row]:
        wanted = set(columns)
        starts = [(0, 1)] if positions is None else map(tuple, positions.tolist())
        for start, cells in self._scan(starts, single=positions is not None):
            found = {name: cell for name, cell in cells.items() if name in wanted}
            yield f"{self.where}:{start[1]}", found

    def _scan(
        self, starts: Iterator[Start] | Sequence[Start], *, single: bool = False
    ) -> Iterator[tuple[Start, Mapping[str, Any]]]:
        """The rows from a start on, or the `single` rows at several starts, which ascend."""
        with self.path.open("rb") as file:
            lines, records = None, iter(())
            for start in starts:
                if lines is None or lines.next != start:
                    lines = _Lines(file, self.where, start)
                    records = self._records(lines)
                for found in records:
                    yield found
                    if single:
                        break

    @cached_property
    @abstractmethod
    def _names(self) -> Sequence[str]:
        """Names of the columns."""

    @abstractmethod
    def _records(self, lines: _Lines) -> Iterator[tuple[Start, Mapping[str, Any]]]:
        """The rows of the lines, reading none ahead; where each starts."""


class CsvTable(LineTable):
    r"""A CSV file (RFC 4180) with a header; cells are kept as they are.

    Cells in quotes may hold delimiters, line breaks and doubled quotes; a row is named by the line
    on which it starts, and lines end at `\n`, as editors count.

    Raises:
        ValueError: If there is no header or a column occurs twice; later, if a row has another
            number of cells or a quote is never closed.
    """

    is_text = True

    def __init__(self, path: Path, *, where: str | None = None, delimiter: str = ",") -> None:
        super().__init__(path, where=where)
        self._delimiter = delimiter

    @cached_property
    def _names(self) -> Sequence[str]:
        with self.path.open("rb") as file:
            for _, cells in self._cells(_Lines(file, self.where)):
                repeated = [name for name, count in Counter(cells).items() if count > 1]
                if repeated:
                    raise ValueError(
                        f"{self.where}:1: the header has {quote(repeated)} more than once · names "
                        "of columns must be distinct · rename them."
                    )
                return cells
        raise ValueError(
            f"{self.where}:1: no header · the first line must name the columns · add it, or "
            "remove the file."
        )

    def _records(self, lines: _Lines) -> Iterator[tuple[Start, Mapping[str, Any]]]:
        names, is_header = self._names, lines.next == (0, 1)
        for start, cells in self._cells(lines):
            if is_header:
                is_header = False
                continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{self.where}:{start[1]}: {len(cells)} cells · the header has {len(names)} "
                    f"({quote(names, 8)}) · quote cells that hold {self._delimiter!r} or a line "
                    "break."
                )
            yield start, dict(zip(names, cells, strict=True))

    def _cells(self, lines: _Lines) -> Iterator[tuple[Start, list[str]]]:
        csv.field_size_limit(MAX_CELL)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            start = lines.next
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{self.where}:{start[1]}: not valid CSV ({error}) · a quote in a quoted cell "
                    "is doubled, and every quote is closed · mend the row."
                ) from None
            if cells:  # none on a blank line
                yield start, cells


class JsonlTable(LineTable):
    """A file with a JSON object on each line; its columns are the keys of all rows."""

    @cached_property
    def _names(self) -> Sequence[str]:
        names: dict[str, None] = {}
        for _, cells in self._scan([(0, 1)]):
            names.update(dict.fromkeys(cells))
        return [*names]

    def _records(self, lines: _Lines) -> Iterator[tuple[Start, Mapping[str, Any]]]:
        start = lines.next
        for line in lines:
            if line.strip():
                yield start, parse_object(line, f"{self.where}:{start[1]}")
            start = lines.next


class _Lines(Iterator[str]):
    """Lines of text from a byte on; `next` is where the following one starts."""

    def __init__(self, file: BinaryIO, where: str, start: Start = (0, 1)) -> None:
        file.seek(start[0])
        self._file, self._where = file, where
        self.next = start

    def __next__(self) -> str:
        offset, number = self.next
        line = self._file.readline()  # bytes end a line at \n only, whatever the text holds
        if not line:
            raise StopIteration
        self.next = offset + len(line), number + 1
        # a byte-order mark that is not at the start is text
        encoding = "utf-8-sig" if number == 1 else "utf-8"
        return decode_line(line, f"{self._where}:{number}", encoding)
