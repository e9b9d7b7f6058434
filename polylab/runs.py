"""Finished runs, read from their folders: the shared part of the commands that start from one.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.files import read_json
from polylab.parts import build_backbone

if TYPE_CHECKING:
    from polylab import PolyModel

__all__ = ["load_run", "read_run", "task_names"]


def read_run(folder: Path) -> DictConfig:
    """Return the configuration of a finished run with an adapter.

    Raises:
        ConfigError: If the folder is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"run={folder}: there is no such folder · give RUN_DIR of a finished run")
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"run={folder}: it has no config.yaml, so it is no run's folder · give "
            "runs/EXPERIMENT/DATE_TIME"
        )
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig) or not OmegaConf.is_dict(config.get("backbone")):
        raise ConfigError(f"{path} has no backbone · it must be the file that the run wrote")
    if not (folder / "adapter").is_dir():
        why = (
            "the run had none (adapter=none)"
            if config.get("adapter") is None
            else "it did not finish"
        )
        raise ConfigError(f"run={folder}: there is no adapter/ in it: {why}")
    return config


def task_names(run_folder: Path) -> list[str]:
    """Return the names of the run's tasks in the order of their ids.

    Raises:
        ConfigError: If the file that holds them is missing or damaged.
    """
    path = run_folder / "adapter" / "tasks.json"
    with user_mistakes(str(path)):
        ids: Any = read_json(path)
        if not isinstance(ids, dict):
            raise ValueError("an object of task names and ids is needed")
        return sorted(ids, key=ids.__getitem__)


def load_run(folder: Path, config: DictConfig, *, trust_code: bool) -> "tuple[PolyModel, Any]":
    """Load the run's backbone with its adapter, and its tokenizer.

    Raises:
        ConfigError: If the backbone is not there any more, or the adapter does not fit it.
    """
    from polylab import PolyModel

    backbone = build_backbone(config)
    with user_mistakes(f"run={folder}"):
        model = PolyModel.from_pretrained(backbone.model, folder / "adapter", trust_code=trust_code)
        return model, backbone.tokenizer
