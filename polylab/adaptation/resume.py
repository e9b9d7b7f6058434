"""Going on in the folder of a command that was interrupted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from polylab.adaptation.table import Results
from polylab.config.errors import ConfigError, user_mistakes

__all__ = ["read_results"]

# Keys in which a command that goes on in a folder may differ from the one that began there.
FREE = ("adapt.seeds", "adapt.tasks")


def read_results(cfg: DictConfig, folder: Path) -> Results:
    """The rows that the same command has left in the folder; none in a new one.

    Raises:
        ConfigError: If they are of another configuration, or no such rows.
    """
    _check_folder(cfg, folder)
    return Results.read(folder / "results.csv")


def _check_folder(cfg: DictConfig, folder: Path) -> None:
    """Accept a new folder, or one where the same command has begun.

    Raises:
        ConfigError: If its results are of another configuration.
    """
    path = folder / "config.yaml"
    if not (folder / "results.csv").is_file() and not path.is_file():
        return
    with user_mistakes(str(path)):
        before = dict(_flat(OmegaConf.to_container(OmegaConf.load(path))))
    now = dict(_flat(OmegaConf.to_container(cfg, resolve=True)))
    for key in sorted({*before, *now} - {*FREE}):
        old, new = before.get(key), now.get(key)
        if old != new:
            raise ConfigError(
                f"{folder} has results of {key}={old}, and this command has {key}={new} · go on "
                "with the same settings, or give another folder"
            )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
