"""What an evaluation's answers depend on, so that a killed one is not continued as another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

__all__ = ["adapter_digest", "config_digest", "examples_digest"]

_PARTS = ("backbone", "module", "seed")  # of the configuration; the data are judged by themselves
_BLOCK = 2**20


def config_digest(config: DictConfig) -> str:
    """Changes with the backbone, the module, the seed and the precision of the numbers."""
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    parts = {name: resolved.get(name) for name in _PARTS}
    parts["precision"] = resolved["trainer"]["precision"]
    return _digest([json.dumps(parts, sort_keys=True, default=str).encode()])


def adapter_digest(folder: Path) -> str:
    """Changes with the bytes and the names of the files in an adapter's folder."""

    def blocks() -> Iterable[bytes]:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"\n{path.relative_to(folder)}\n".encode()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    yield block

    return _digest(blocks())


def examples_digest(loader: DataLoader[Any]) -> str:
    """Changes with the batches of an evaluation: their examples, texts, references and ids."""
    dataset: Any = loader.dataset
    batches: Sequence[Any] = loader.batch_sampler  # type: ignore[assignment]

    def texts() -> Iterable[bytes]:
        for keys in batches:
            for item in dataset.__getitems__(keys):
                ids = (item.task_id, item.row, item.input_ids.tolist(), item.target_ids.tolist())
                yield json.dumps([*ids, item.text, item.references, item.options]).encode()
            yield b"\n"

    return _digest(texts())


def _digest(parts: Iterable[bytes]) -> str:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
