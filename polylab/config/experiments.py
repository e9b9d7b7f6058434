"""The recipes of `experiments/*.yaml`, served to Hydra as the options of group `experiment`."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.paths import config_folder

GROUP = "experiment"


def register_experiments(folder: Path | None = None, *, others: Sequence[Path] = ()) -> list[str]:
    """Store every `folder/NAME.yaml` in Hydra's ConfigStore and return the names, sorted.

    Args:
        folder: The recipes; those of the package by default.
        others: Configuration folders that Hydra searches too.

    Raises:
        ConfigError: If a file is no valid YAML mapping, or if one of `others` holds a recipe of
            the same name in `experiment/`: Hydra would merge the two silently.
    """
    folder = config_folder("experiments") if folder is None else folder
    files = sorted(folder.glob("*.yaml"))
    for file in files:
        for twin in (other / GROUP / file.name for other in others):
            if twin.exists():
                raise ConfigError(
                    f"{GROUP}={file.stem} is defined twice, in {file} and in {twin} · rename yours"
                )
        ConfigStore.instance().store(
            group=GROUP, name=file.stem, node=_load(file), package="_global_", provider=str(folder)
        )
    return [file.stem for file in files]


def _load(file: Path) -> object:
    try:
        node = OmegaConf.load(file)
    except yaml.YAMLError as error:
        raise ConfigError(yaml_line(error, file=file)) from error
    if not OmegaConf.is_dict(node):
        raise ConfigError(f"{file}: a recipe is a mapping of keys to values")
    return node


def yaml_line(error: yaml.YAMLError, *, file: Path | str) -> str:
    """Say `FILE:LINE` and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "no valid YAML"
    where = f"{file}:{mark.line + 1}" if mark is not None else str(file)
    return f"{where}: {problem}"
