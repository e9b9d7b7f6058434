"""Finished runs as their folders hold them: for `load`, and for the commands that start from one.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.files import read_json
from polylab.config.suggest import listing
from polylab.parts import build_backbone, classifies

if TYPE_CHECKING:
    from polylab import PolyModel
    from polylab.backbones import Backbone

__all__ = ["label_sets", "load_run", "read_generating_run", "read_run", "task_names"]


def read_run(folder: Path) -> DictConfig:
    """Return the configuration of a finished run with an adapter.

    Raises:
        ConfigError: If the folder is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"run={folder}: there is no such folder · give RUN_DIR of a finished run")
    path = folder / "config.yaml"
    if not path.is_file():
        inside = sorted(file.parent for file in folder.glob("[!.]*/config.yaml"))
        instead = (
            f"one of the runs in it, run={inside[0]}" if inside else "runs/EXPERIMENT/DATE_TIME"
        )
        raise ConfigError(
            f"run={folder}: it has no config.yaml, so it is no run's folder · give {instead}"
        )
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig) or not OmegaConf.is_dict(config.get("backbone")):
        raise ConfigError(f"{path} has no backbone · it must be the file that the run wrote")
    _check_results(folder, config)
    if "separator" in (config.get("data") or {}) and "chat" not in config.data:
        OmegaConf.update(config, "data.chat", False, force_add=True)  # older than chat templates
    return config


def _check_results(folder: Path, config: DictConfig) -> None:
    if not (folder / "adapter").is_dir():
        why = (
            "the run had none (adapter=none)"
            if config.get("adapter") is None
            else "it did not finish"
        )
        raise ConfigError(f"run={folder}: there is no adapter/ in it: {why}")
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        raise ConfigError(
            f"run={folder}: there is no metrics.json in it: it was stopped while it was saved · go "
            "on with python -m polylab.train ... ckpt_path=RUN_DIR/checkpoints/last.ckpt"
        )
    with user_mistakes(f"{metrics} is damaged"):
        read_json(metrics)


def read_generating_run(folder: Path) -> DictConfig:
    """Return the configuration as `read_run`, for commands that a classification is not for.

    Raises:
        ConfigError: If the folder is no finished run's, or the run classifies.
    """
    config = read_run(folder)
    if classifies(config):
        raise ConfigError(
            f"run={folder}: it classifies (module=classification); only runs that generate are "
            "adapted, exported and gone on from · python -m polylab.evaluate and polylab.load read "
            "it back"
        )
    return config


def label_sets(folder: Path, config: DictConfig) -> dict[str, list[str]] | None:
    """Return the labels of a classification's tasks, by their ids; None if the run generates.

    Raises:
        ConfigError: If the file that holds them is missing or damaged, or is of other tasks.
    """
    if not classifies(config):
        return None
    path, names = folder / "adapter" / "labels.json", task_names(folder)
    with user_mistakes(str(path)):
        found: Any = read_json(path)
        if not isinstance(found, dict) or not all(map(_is_label_set, found.values())):
            raise ValueError("an object of task names and lists of different labels is needed")
        if {*found} != {*names}:
            raise ValueError(f"its tasks are {listing(found)}, and those of tasks.json {names}")
        return {name: found[name] for name in names}


def _is_label_set(labels: Any) -> bool:
    is_list = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return is_list and len({*labels}) == len(labels) > 1


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


def load_run(folder: Path, config: DictConfig, *, trust_code: bool) -> "tuple[PolyModel, Backbone]":
    """Load the run's backbone, and the model with its adapter and heads.

    Raises:
        ConfigError: If the backbone is not there any more, or the adapter does not fit it.
    """
    import torch

    from polylab import PolyModel
    from polylab.training.heads import add_heads

    labels = label_sets(folder, config)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is none of the caller's business
        backbone = build_backbone(config)
        if labels is not None:
            add_heads(backbone.model, [*map(len, labels.values())])
        with user_mistakes(f"run={folder}"):
            adapter = folder / "adapter"
            model = PolyModel.from_pretrained(backbone.model, adapter, trust_code=trust_code)
            return model, backbone
