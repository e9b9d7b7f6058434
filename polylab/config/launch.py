"""What every command does before its task runs: help, flags, recipes, errors in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from polylab.config.errors import ConfigError, report_errors
from polylab.config.experiments import register_experiments
from polylab.config.files import register_resolvers
from polylab.config.paths import config_folder
from polylab.config.progress import job_number
from polylab.config.ranks import check_command, run_folder, slurm_job, started_ranks
from polylab.config.schema import register_schemas
from polylab.config.streams import make_printable
from polylab.config.suggest import hint, listing


def launch(
    task: Callable[[DictConfig], Any], *, config_name: str, help_text: Callable[[], str]
) -> None:
    """Run `task` with the configuration `conf/CONFIG_NAME.yaml` and the command line's overrides.

    Raises:
        SystemExit: With code 1 after one line on stderr, if the user made a mistake.
    """
    make_printable()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(), end="")
        return
    with report_errors(lambda: known_keys(config_name)):
        arguments = _arguments()
        _join_ranks(arguments, config_name)
        others = [config_folder("conf")]
        if arguments.config_dir is not None:
            others.append(Path(arguments.config_dir))
        register(others=others)
        run = hydra.main(
            config_path=str(config_folder("conf")), config_name=config_name, version_base="1.3"
        )
        run(task)()


def register(*, others: list[Path] | None = None) -> None:
    """Tell Hydra our schemas, resolvers and recipes; needed before anything is composed."""
    register_schemas()
    register_resolvers()
    OmegaConf.register_new_resolver("job_number", job_number, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("slurm_job", slurm_job, replace=True)
    register_experiments(others=[config_folder("conf")] if others is None else others)


def _join_ranks(arguments: Any, config_name: str) -> None:
    """Let one of several processes write Hydra's files, and the others a log of their own.

    Raises:
        ConfigError: If these processes cannot be one run.
    """
    ranks = started_ranks()
    if config_name == "train":
        check_command(arguments.overrides, is_sweep=bool(arguments.multirun))
    elif ranks is not None and ranks.size > 1:
        raise ConfigError(
            f"polylab.{config_name} is one process, but {ranks.starter} started {ranks.size} · "
            f"start it without {ranks.starter}"
        )
    if ranks is not None and ranks.rank > 0:
        sys.argv += ["hydra.output_subdir=null", f"hydra.job.name={ranks.name}"]


def _arguments() -> Any:
    parser = get_args_parser()
    arguments, unknown = parser.parse_known_args()
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise ConfigError(
            f"unknown flag {unknown[0]}{hint(unknown[0], flags)} · valid: {listing(flags)}"
        )
    return arguments


def known_keys(config_name: str) -> list[str]:
    """Return every key of the configuration and every group, for suggestions after a mistake.

    The groups that the user chose count where they can be composed, else the defaults.
    """
    try:
        with initialize_config_dir(str(config_folder("conf")), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            groups = [g for g in loader.list_groups("") if g not in ("hydra", "schema")]
            chosen = [o for o in _arguments().overrides if o.split("=")[0] in groups]
            for overrides in (chosen, []):
                try:
                    cfg = compose(config_name, overrides, return_hydra_config=True)
                except (HydraException, OmegaConfBaseException):
                    continue
                own = [g for g in groups if g in cfg.hydra.runtime.choices]  # not other commands'
                with open_dict(cfg):
                    del cfg["hydra"]
                return [*own, *_flat(OmegaConf.to_container(cfg, resolve=False))]
    except (HydraException, OmegaConfBaseException):
        pass
    return []


def _flat(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        keys += [name, *_flat(value, name)]
    return keys


def job_folder() -> Path:
    """Return the folder of the running Hydra job."""
    return Path(HydraConfig.get().runtime.output_dir)


def sweep_folder() -> Path | None:
    """Return the folder of the running sweep, or None outside one."""
    config = HydraConfig.get()
    return Path(config.sweep.dir) if config.mode == RunMode.MULTIRUN else None
