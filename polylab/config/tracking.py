"""The experiment tracker of a run: Weights & Biases without a prompt, CSV, or none."""

import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
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

_WANDB = "lightning.pytorch.loggers.WandbLogger"


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
    if cfg.logger.get("_target_") != _WANDB:
        return build(cfg.logger, key="logger", parts=parts)
    import wandb

    node = OmegaConf.to_container(cfg.logger, resolve=True)
    assert isinstance(node, dict)
    node["tags"] = list(dict.fromkeys(str(tag) for tag in (*node.get("tags", ()), *cfg.tags)))
    node.setdefault("group", cfg.name if sweep is None else f"{cfg.name}-{sweep.name}")
    with user_mistakes("logger"):
        # the library speaks many lines; a run has one of its own at the end
        settings = wandb.Settings(silent=True, console="off")
        make = instantiate(OmegaConf.create(node), _partial_=True, _convert_="all")
        logger = make(**parts, mode=wandb_mode(), settings=settings, config=run_config(cfg))
    logger._wandb_init.pop("anonymous", None)  # Lightning sends it, W&B warns that it is gone
    return logger


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration and the overrides that led to it, as plain containers."""
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return {str(key): value for key, value in config.items()} | {"hydra_overrides": overrides}


@contextmanager
def finished_logger(logger: "Logger | None") -> Iterator[None]:
    """End the W&B run whatever happens, marked as failed if an exception passes."""
    code = 1
    try:
        yield
        code = 0
    finally:
        from lightning.pytorch.loggers import WandbLogger

        if isinstance(logger, WandbLogger):  # the others also work where wandb is not installed
            import wandb

            # a second run in this process would otherwise go on in the first one
            wandb.finish(exit_code=code)


def offline_run(folder: Path) -> Path | None:
    """Return the newest run in `folder` that waits for `wandb sync`; None if none does."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    return runs[-1] if runs else None
