"""Going on in the folder of a command that was interrupted."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polylab.adaptation.table import Results
from polylab.config.errors import ConfigError, flatten

__all__ = ["read_results", "writing"]

# Keys in which a command that goes on in a folder may differ from the one that began there: they
# change no number of a row.
FREE = (
    *("adapt.seeds", "adapt.tasks", "trust_code", "data.num_workers", "data.cache"),
    *("module.max_logged_tasks", "module.predictions_per_task"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler"),
    *("trainer.log_every_n_steps", "trainer.detect_anomaly", "trainer.default_root_dir"),
)
_NONE = object()


def read_results(cfg: DictConfig, folder: Path) -> Results:
    """The rows that the same command has left in the folder; none in a new one.

    Args:
        cfg: The whole configuration, resolved. A key that the folder's has not (an older version
            wrote it) must have its default.
        folder: Of the command.

    Raises:
        ConfigError: If they are of another configuration, or no such rows.
    """
    before = _read_config(folder)
    if before is not None:
        _check_same(cfg, before, folder)
    return Results.read(folder / "results.csv")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line how to go on where the folder cannot be written, on a full disk say.

    Raises:
        ConfigError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {flatten(str(error))} · its rows so far are whole · mend "
            f"that and give the same command with hydra.run.dir={folder}, which goes on from them"
        ) from error


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.yaml"
    if not path.is_file():
        if (folder / "results.csv").exists():
            raise ConfigError(
                f"{folder} has a results.csv, and no config.yaml that says of what · give another "
                "folder"
            )
        return None
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {flatten(str(error))} · give another folder"
        ) from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} is no configuration of a command · give another folder")
    return dict(_flat(plain))


def _check_same(cfg: DictConfig, before: dict[str, Any], folder: Path) -> None:
    now = dict(_flat(OmegaConf.to_container(cfg)))
    for key in sorted({*before, *now} - {*FREE}):
        old = before[key] if key in before else _default(cfg, key)
        new = now.get(key, _NONE)
        if old is new or old == new:
            continue
        has = "without" if old is _NONE else f"of {key}={old}, and this command has"
        this = f"no {key}" if new is _NONE else f"{key}={new}"
        raise ConfigError(
            f"{folder} has results {has} {this} · go on with the same settings, or give another "
            "folder"
        )


def _default(cfg: DictConfig, key: str) -> Any:
    """What a key has that nobody sets: as the class says that its node builds, or its schema."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        return _NONE
    if target := node.get("_target_"):
        found = inspect.signature(get_object(target)).parameters.get(name)
        if found is not None and found.default is not found.empty:
            default = found.default
            return [*default] if isinstance(default, tuple) else default
    kind = OmegaConf.get_type(node)
    if not is_dataclass(kind):
        return _NONE
    plain = OmegaConf.to_container(OmegaConf.structured(kind))
    assert isinstance(plain, dict)
    return plain.get(name, _NONE)


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
