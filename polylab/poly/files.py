"""Files of an adapter: read with suspicion, written whole or not at all."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "SHOWN",
    "capped",
    "existing",
    "read_json",
    "read_tensors",
    "write_files",
    "write_json",
    "write_tensors",
]

SHOWN = 12  # lines or names of a report; the rest is counted
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "Only safetensors is read, for a pickle can run code when it is opened. Convert it where you "
    "trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
    "'adapter_model.safetensors')."
)


def capped(lines: list[str]) -> list[str]:
    """The first lines of a report, and how many there are beside them."""
    rest = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *rest]


def existing(directory: Path, name: str) -> Path:
    """The path of a file that must be there; a link to one is followed (the hub's cache has them).

    Raises:
        FileNotFoundError: If there is no such folder or file; a pickle in its place gets advice.
    """
    path = directory / name
    if not directory.is_dir():
        raise FileNotFoundError(f"no folder {directory}: give the folder of a saved adapter.")
    if path.is_file():
        return path
    if path.is_symlink():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which is no file.")
    here = sorted(found.name for found in directory.iterdir())
    pickles = [found for found in here if found.endswith(_PICKLES)]
    advice = f" {_CONVERT}" if pickles and name.endswith(".safetensors") else ""
    raise FileNotFoundError(f"no {name} in {directory}, which holds {capped(here)}.{advice}")


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not JSON, no object, or names a key twice.
    """
    path = existing(directory, name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; an object is needed.")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1})
        raise ValueError(f"the keys {capped(twice)} are there more than once")
    return values


def read_tensors(directory: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or another format under this name.
    """
    path = existing(directory, name)
    with path.open("rb") as start:
        magic = start.read(9)
    if not magic:
        raise ValueError(f"{path} is empty: a write was cut off. Save the adapter again.")
    is_header = magic[8:] == b"{"  # whose length, in the first 8 bytes, may look like a pickle's
    if not is_header and magic[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise ValueError(f"{path} is a pickle (torch.save), not safetensors. {_CONVERT}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {reprlib.repr(str(error))}") from error


def write_files(directory: Path, writers: Mapping[str, Callable[[Path], None]]) -> None:
    """Have each writer fill its file, and put all of them in their places when all are whole.

    What stops a writer (a full disk, a kill) leaves every previous file as it was. Each place is
    taken by a rename: a link there is replaced, never written through.

    Args:
        directory: Made if it is missing.
        writers: By file name, in the order of the renames.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # fixed names: what a killed process left is overwritten by the next write
    partial = {name: directory / f".{name}.partial" for name in writers}
    try:
        for name, write in writers.items():
            partial[name].unlink(missing_ok=True)
            write(partial[name])
            _flush(partial[name])
        for name, path in partial.items():
            os.replace(path, directory / name)
    except BaseException:
        for path in partial.values():
            path.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_json(values: Any) -> Callable[[Path], None]:
    """A writer of indented JSON."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def write_tensors(
    tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """A writer of a safetensors file."""
    layout = torch.contiguous_format  # cloned, for a file holds tied tensors once for each name
    plain = {n: t.detach().cpu().clone(memory_format=layout) for n, t in tensors.items()}

    def write(path: Path) -> None:
        try:
            save_file(plain, path, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # a full disk, among others
            raise OSError(f"{path} could not be written: {error}") from error
        _sort_metadata(path)

    return write


def _sort_metadata(path: Path) -> None:
    """Make equal saves equal byte for byte: safetensors writes its metadata in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, f"{path}: its header grew from {size} to {len(text)} bytes"
        file.seek(8)
        file.write(text.ljust(size))
