"""The experiment tracker of a run: Weights & Biases without a prompt, CSV, or none."""

import netrc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.targets import build, check_targets

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_OURS = "polylab.tracking.PatientWandbLogger"
_LONGEST_NAME = 120  # W&B takes 128
_WANDB = ("lightning.pytorch.loggers.WandbLogger", _OURS)


def has_credentials() -> bool:
    """Say whether W&B could log in without asking: a key or token in the environment or netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for file in map(Path.expanduser, map(Path, files)):
        try:
            if host and netrc.netrc(file).hosts.get(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def wandb_mode() -> str:
    """Return the mode of W&B: `WANDB_MODE` if set, else online with credentials, else offline.

    Raises:
        ConfigError: If `WANDB_MODE` asks for the network and there are no credentials.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if not mode:  # set but empty, which the library refuses
        os.environ.pop("WANDB_MODE", None)
    if mode in ("online", "shared") and not has_credentials():
        raise ConfigError(
            f"WANDB_MODE={mode} but W&B has no credentials · run `wandb login`, set WANDB_API_KEY,"
            " or unset WANDB_MODE to log offline"
        )
    return mode or ("online" if has_credentials() else "offline")


def build_logger(cfg: DictConfig, *, folder: Path, sweep: Path | None) -> "Logger | None":
    """Build the logger that `cfg.logger` describes, with all its files in the run's `folder`.

    The W&B runs of a sweep are one group: the experiment's and the sweep folder's name.
    """
    if cfg.logger is None:
        return None
    check_targets(cfg.logger, key="logger")
    parts: dict[str, Any] = {"save_dir": str(folder)}
    if cfg.logger.get("_target_") not in _WANDB:
        return build(cfg.logger, key="logger", parts=parts)
    import wandb

    node = OmegaConf.to_container(cfg.logger, resolve=True)
    assert isinstance(node, dict)
    node["tags"] = list(dict.fromkeys(str(tag) for tag in (*node.get("tags", ()), *cfg.tags)))
    overrides = list(HydraConfig.get().overrides.task)
    if not any(override.startswith("logger.name=") for override in overrides):
        node["name"] = told_apart(node.get("name"), overrides, sweep=sweep)
    node.setdefault("group", cfg.name if sweep is None else f"{cfg.name}-{sweep.name}")
    with user_mistakes("logger"):
        # the library speaks many lines; a run has one of its own at the end
        settings = wandb.Settings(silent=True, console="off")
        make = instantiate(OmegaConf.create(node), _partial_=True, _convert_="all")
        logger = make(**parts, mode=wandb_mode(), settings=settings, config=run_config(cfg))
    logger._wandb_init.pop("anonymous", None)  # Lightning sends it, W&B warns that it is gone
    return logger


def told_apart(name: str | None, overrides: list[str], *, sweep: Path | None) -> str | None:
    """Return the name with what this job of a sweep changes: `flan_poly-s0 n_skills=4`.

    The seed and the recipe are in the name already, and places say nothing.
    """
    if name is None or sweep is None:
        return name
    changes = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        word = key.rpartition(".")[2]
        if word not in ("seed", "experiment", "path", "dir") and "/" not in value:
            changes.append(f"{word}={value}")
    given = [*dict.fromkeys(changes)]
    swept = [change for change in given if not _is_given(change, overrides_of_command())]
    text = " ".join([name, *swept])
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 2]}.."


def overrides_of_command() -> list[str]:
    """Return what the command line says, the same for all jobs of the sweep."""
    return [argument for argument in sys.argv[1:] if "=" in argument]


def _is_given(change: str, arguments: list[str]) -> bool:
    """Say whether the command gives this very value, so that it is the same in all jobs."""
    return any(argument.lstrip("+~").endswith(change) for argument in arguments)


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration and the overrides that led to it, as plain containers."""
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return {str(key): value for key, value in config.items()} | {"hydra_overrides": overrides}


def offline_run(folder: Path) -> Path | None:
    """Return the newest run in `folder` that waits for `wandb sync`; None if none does."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    return runs[-1] if runs else None
