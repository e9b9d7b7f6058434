"""Any dataset of the Hugging Face hub, or a local folder of the same form."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from polylab.data.sources.lines import CsvTable, JsonlTable, LineTable
from polylab.data.sources.tables import ArrowTable, Table
from polylab.data.sources.tabular import ColumnSource, Part

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, kw_only=True)
class HubSource(ColumnSource):
    """A dataset by its hub name, or a folder of its files: the same code reads both.

    Parquet (and whatever else `datasets` knows) is memory-mapped from its cache. JSON lines and CSV
    are read as text, because `datasets` guesses types: a target of "2020-01-01" would become a
    time, and "007" the number 7.

    Args:
        path: `OWNER/NAME`, or a folder with data files and maybe a `README.md` that lists
            configurations. Further arguments are those of `ColumnSource`.
        config_name: One configuration, or several; all by default.
        revision: Branch, tag or commit on the hub.
        tasks: Besides `column`: `configs`, each configuration is a task; `one`, all rows are.
    """

    path: str
    config_name: str | Sequence[str] | None = None
    revision: str | None = None

    WAYS: ClassVar[tuple[str, ...]] = ("auto", "column", "configs", "one")

    @property
    def where(self) -> str:
        return self.path

    def files(self) -> Sequence[Path]:
        """All files of a folder, or what the cache holds of a hub name."""
        folder = Path(self.path)
        if folder.is_dir():
            return sorted(path for path in folder.rglob("*") if path.is_file())
        return [path for part in self.parts() for path in _files_of(part.table)]

    def parts(self) -> Sequence[Part]:
        self._check_path()
        quiet_datasets()
        configs = self.configs()
        several = len(configs) > 1 and self.tasks != "one"
        name = self.path.rstrip("/").rpartition("/")[2] or self.path
        return [
            Part(table, config if several or self.tasks == "configs" else name, split)
            for config, builder in self._builders(configs)
            for split, table in self._tables(config, builder)
        ]

    def _builders(self, configs: Sequence[str]) -> Iterator[tuple[str, datasets.DatasetBuilder]]:
        """A builder of each configuration."""
        import datasets

        with _one_line(self.path):
            first = datasets.load_dataset_builder(self.path, configs[0], revision=self.revision)
        # `datasets` takes a folder whose card lists configurations for unchanged when files change
        is_local = Path(self.path).is_dir()
        version = _version(self.files()) if is_local else first.hash
        for number, config in enumerate(configs):
            if number == 0 and not is_local:
                yield config, first
                continue
            with _one_line(self.path):
                # not by the function, which lists all files and reads the whole card each time
                builder = type(first)(
                    dataset_name=first.dataset_name,
                    config_name=config,
                    hash=version,
                    base_path=first.base_path,
                    repo_id=first.repo_id,
                )
            yield config, builder

    def configs(self) -> list[str]:
        """The configurations that are read."""
        import datasets

        if self.config_name is not None:
            given = self.config_name
            return [given] if isinstance(given, str) else [*given]
        with _one_line(self.path):
            return datasets.get_dataset_config_names(self.path, revision=self.revision)

    def _spelled(self, file: str) -> str:
        """A file as the user spelled its folder."""
        folder = Path(self.path).resolve()
        inside = Path(file).is_relative_to(folder)
        return str(Path(self.path) / Path(file).relative_to(folder)) if inside else file

    def _check_path(self) -> None:
        path = Path(self.path)
        if path.is_dir():
            return
        is_name = self.path.count("/") <= 1 and not path.is_absolute() and not path.exists()
        if not is_name or self.path.startswith((".", "~")):
            raise FileNotFoundError(
                f"data.path={self.path} is neither a folder nor a hub name · it is OWNER/NAME, or "
                "a folder of data files · correct it."
            )

    def _tables(self, config: str, builder: datasets.DatasetBuilder) -> list[tuple[str, Table]]:
        from datasets.packaged_modules.csv.csv import CsvConfig
        from datasets.packaged_modules.json.json import JsonConfig

        with _one_line(self.path):
            if isinstance(builder.config, JsonConfig | CsvConfig):
                kind = JsonlTable if isinstance(builder.config, JsonConfig) else CsvTable
                return [
                    (split, kind(file, where=self._spelled(name)))
                    for split, name, file in _text_files(builder)
                ]
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        assert isinstance(loaded, Mapping)
        config = "" if config == "default" else f"{config}, "
        return [
            (str(split), DatasetTable(data, f"{self.path} ({config}{split})"))
            for split, data in loaded.items()
        ]


class DatasetTable(ArrowTable):
    """A dataset of `datasets`, memory-mapped."""

    def __init__(self, data: datasets.Dataset, where: str) -> None:
        table = data.data.table
        super().__init__(table.to_batches(), schema=table.schema, where=where)
        self.files = [Path(file["filename"]) for file in data.cache_files]


def _files_of(table: Table) -> list[Path]:
    if isinstance(table, LineTable):
        return [table.path]
    assert isinstance(table, DatasetTable)
    return table.files


def load_files(path: Path) -> ArrowTable:
    """A Parquet file as memory-mapped Arrow in the cache of `datasets`.

    Raises:
        ValueError: If `datasets` cannot read it.
    """
    import datasets

    quiet_datasets()
    with _one_line(str(path)):
        data = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert isinstance(data, datasets.Dataset)
    return DatasetTable(data, str(path))


def quiet_datasets() -> None:
    """No progress bars where nobody watches, no second line about what is raised anyway."""
    import datasets

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


@contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Say in one line why a dataset cannot be had.

    Raises:
        ValueError: In place of what `datasets` raises.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())
        advice = "check the name, data.revision and the network, or give a folder"
        if "scripts are no longer supported" in reason:
            advice = "try data.revision=refs/convert/parquet"
        raise ValueError(f"data.path={path} cannot be read: {reason} · {advice}.") from error


def _text_files(builder: datasets.DatasetBuilder) -> list[tuple[str, str, Path]]:
    """Split, name and local file, downloaded and unpacked."""
    import datasets

    found = []
    for split, names in (builder.config.data_files or {}).items():
        local: Any = datasets.DownloadManager().download([*names])
        found += [
            (str(split), str(name), _unpacked(Path(file)))
            for name, file in zip(names, local, strict=True)
        ]
    return found


def _version(files: Sequence[Path]) -> str:
    """Changes with the files: their paths, sizes and times of change."""
    states = [(str(path.resolve()), path.stat()) for path in files]
    lines = [f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states]
    return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _unpacked(path: Path) -> Path:
    """The file, or what a `.gz` holds, in the cache of `datasets` as long as it does not change."""
    from datasets import config

    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path
    folder = Path(config.HF_DATASETS_CACHE) / "polylab"
    target = folder / _version([path])
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            with gzip.open(path, "rb") as packed, os.fdopen(handle, "wb") as file:
                shutil.copyfileobj(packed, file)
            os.replace(name, target)  # other processes see all of it or nothing
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return target
