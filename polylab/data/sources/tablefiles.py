"""Folders of CSV or Parquet files, or one file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polylab.data.sources.base import HELD_OUT
from polylab.data.sources.jsonl import task_files
from polylab.data.sources.lines import CsvTable
from polylab.data.sources.tables import ArrowTable, Key, Piece, Row, Table
from polylab.data.sources.tabular import SPLIT_NAMES, ColumnSource, Part

if TYPE_CHECKING:
    import pyarrow.parquet as pq


@dataclass(frozen=True, kw_only=True)
class TableFiles(ColumnSource):
    """Files with columns: `TASK` files in a folder, or any files with a task column, or one file.

    Sub-folders `test/` and `validation/` hold those splits. Where the files of a folder are named
    after splits (`train`, `test`, ...), that is what they are.

    Args:
        path: The folder or the file. Further arguments are those of `ColumnSource`.
    """

    path: str | Path

    WAYS: ClassVar[tuple[str, ...]] = ("auto", "column", "files")
    SUFFIX: ClassVar[str]

    @property
    def where(self) -> str:
        return str(self.path)

    @abstractmethod
    def open(self, path: Path) -> Table:
        """The table in a file."""

    def files(self) -> Sequence[Path]:
        return [path for path, _, _ in self._places()]

    def parts(self) -> Sequence[Part]:
        return [Part(self.open(path), task, split) for path, task, split in self._places()]

    def _places(self) -> list[tuple[Path, str, str]]:
        """File, task and split."""
        path = Path(self.path)
        if path.is_file() and path.name.endswith(self.SUFFIX):
            return [(path, path.name.removesuffix(self.SUFFIX), "train")]
        files = task_files(path, self.SUFFIX)
        words = {word for names in SPLIT_NAMES.values() for word in names}
        if set(files) <= words and set(files) & {*SPLIT_NAMES["train"]}:
            return [(file, path.absolute().name, split) for split, file in files.items()]
        folders = {split: path / split for split in HELD_OUT if (path / split).is_dir()}
        held_out = {split: task_files(folder, self.SUFFIX) for split, folder in folders.items()}
        return [
            (file, task, split)
            for split, found in {"train": files, **held_out}.items()
            for task, file in found.items()
        ]


@dataclass(frozen=True, kw_only=True)
class CsvFiles(TableFiles):
    """CSV files in UTF-8 with a header; every cell is text as it stands.

    Args:
        path: The folder of `TASK.csv`, or one file.
        delimiter: Between cells.
    """

    delimiter: str = ","

    SUFFIX: ClassVar[str] = ".csv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1:
            raise ValueError(
                f"data.source.delimiter={self.delimiter!r} · it must be one character · correct it."
            )

    def open(self, path: Path) -> Table:
        return CsvTable(path, delimiter=self.delimiter)


@dataclass(frozen=True, kw_only=True)
class ParquetFiles(TableFiles):
    """Parquet files; text columns only, lists for options and references.

    Args:
        path: The folder of `TASK.parquet`, or one file.
    """

    SUFFIX: ClassVar[str] = ".parquet"

    def open(self, path: Path) -> Table:
        return ParquetTable(path)


class ParquetTable(Table):
    """A Parquet file, read one row group after another.

    Rows that are looked for by a column may lie anywhere, so such a file is first turned into
    memory-mapped Arrow in the cache of `datasets` (`HF_DATASETS_CACHE`), once.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    @property
    def columns(self) -> Sequence[str]:
        return self._shape[0]

    def pieces(self, by: Sequence[str]) -> dict[Key, Piece]:
        _, count = self._shape
        if not by:
            return {(): Piece(self, np.arange(count))}
        return self._mapped.pieces(by) if count else {}

    def rows(self, positions: np.ndarray | None, columns: Sequence[str]) -> Iterator[Row]:
        import pyarrow as pa

        end = 0
        for batch in self._open().iter_batches(columns=[*columns]):
            start, end = end, end + len(batch)
            if positions is None:
                numbers, taken = np.arange(start, end), batch
            else:
                numbers = positions[slice(*np.searchsorted(positions, [start, end]))]
                taken = batch.take(pa.array(numbers - start))
            for number, cells in zip(numbers, taken.to_pylist(), strict=True):
                yield f"{self.where}:row {number + 1}", cells

    @cached_property
    def _shape(self) -> tuple[Sequence[str], int]:
        """Names of the columns, number of rows."""
        file = self._open()
        return file.schema_arrow.names, file.metadata.num_rows

    def _open(self) -> pq.ParquetFile:
        # anew each time: there may be more files than a process may hold open
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{self.where}: not a Parquet file ({error}) · mend or remove it."
            ) from None

    @cached_property
    def _mapped(self) -> ArrowTable:
        from polylab.data.sources.hub import load_files

        return load_files(self.path)
