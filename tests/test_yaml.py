"""Every YAML file that ships is composed, and what its nodes name exists and takes their keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from polylab.config.checks import check_config
from polylab.config.launch import register
from polylab.config.paths import config_folder
from polylab.config.targets import check_arguments, check_targets
from polylab.parts import SOURCE_KEYS
from polylab.trainers import lightning_node

CONF, EXPERIMENTS = config_folder("conf"), config_folder("experiments")
OPTIONS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
RECIPES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
METHODS, PROTOCOLS = (
    [o.stem for o in OPTIONS if o.parent.name == g] for g in ("adapt", "protocol")
)
# commands that have a configuration of their own, and the groups that only theirs use
EXTRA = "needs the extra: pip install -e .[sweep]"
COMMANDS = ["adapt", "evaluate", "export", "figures", "report", "train", "workspace"]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _compose(*overrides: str) -> DictConfig:
    cfg = compose("train", [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _check(cfg: DictConfig) -> None:
    from lightning.pytorch import Trainer

    from polylab import PolyConfig
    from polylab.backbones import load_backbone
    from polylab.training import OptimConfig

    data = {k: v for k, v in _plain(cfg.data).items() if k not in SOURCE_KEYS}
    check_targets(OmegaConf.create(data), key="data")
    for key in ("module", "callbacks", "logger"):
        if cfg[key] is not None:
            check_targets(cfg[key], key=key)
    check_arguments(load_backbone, cfg.backbone, key="backbone")
    check_arguments(Trainer, lightning_node(cfg.trainer), key="trainer")
    check_arguments(OptimConfig, cfg.optim, key="optim")
    OptimConfig(**_plain(cfg.optim))
    if cfg.adapter is not None:
        rows = cfg.adapter.allocation  # else any number of tasks will do
        PolyConfig(**_plain(cfg.adapter), n_tasks=3 if rows is None else len(rows))


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def test_no_file_is_overlooked() -> None:
    assert len(OPTIONS) == 70
    assert len(RECIPES) == 11
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == COMMANDS
    assert not list(EXPERIMENTS.glob("*.yml"))
    assert not list(CONF.rglob("*.yml"))
    assert not (CONF / "experiment").exists()  # a recipe there would be merged silently


@pytest.mark.parametrize(
    ("method", "protocol", "data"),
    [
        *[(method, "default", "mixture") for method in METHODS],
        *[("poly", protocol, "mixture") for protocol in PROTOCOLS if protocol != "default"],
        *[("z", "t0", "p3"), ("full", "t0", "p3"), ("mu", "sni", "sni"), ("full", "sni", "sni")],
    ],
)
def test_methods_and_protocols_of_an_adaptation(method: str, protocol: str, data: str) -> None:
    from polylab.training import OptimConfig, PolyModule

    given = [f"adapt={method}", f"protocol={protocol}", f"data={data}", "run=RUN_DIR"]
    cfg = compose("adapt", given)
    assert cfg.adapt.method == method
    optim = OptimConfig(**_plain(cfg.optim))
    assert optim.lr == (1e-4 if method == "full" else 3e-3 if protocol == "t0" else 1e-3)
    assert (cfg.adapt.steps == 1000) == (protocol != "default")
    assert cfg.trainer.max_steps == cfg.data.steps_per_epoch == cfg.adapt.steps
    assert cfg.adapt.steps % cfg.adapt.validate_every == 0
    cfg.module.num_beams = 1  # else that of the run
    check_arguments(PolyModule, cfg.module, key="module")
    assert cfg.module.label_smoothing == (0.1 if protocol == "sni" else 0)
    assert len({*cfg.adapt.seeds}) == (5 if protocol == "crossfit" else 3)


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if o.parent.name not in ("adapt", "protocol")], ids=str
)
def test_every_option(option: Path) -> None:
    overrides = [f"{option.parent}={option.stem}"]
    if option.parent.name == "search" and option.stem.startswith("optuna"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    if option.parent.name == "data":
        takes_path = "_data@_here_" in (CONF / option).read_text() and option.stem != "combined"
        overrides += ["data.path=DIR"] if takes_path else []
    if option == Path("adapter/none.yaml"):
        overrides += ["callbacks=none"]
    _check(_compose(*overrides))


@pytest.mark.parametrize("name", [o.stem for o in OPTIONS if o.parent.name == "search"])
def test_every_value_of_a_search_is_valid(name: str) -> None:
    if name.startswith("optuna"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    given = ["experiment=flan_poly", f"search={name}"]
    cfg = compose("train", given, return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN  # it is a sweep without -m
    assert cfg.optimized_metric == cfg.callbacks.checkpoint.monitor
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    assert params or name == "optuna"
    ends = [_ends(override) for override in OverridesParser.create().parse_overrides(params)]
    for chosen in zip(*ends, strict=True):
        cfg = _compose(*given, *chosen)
        check_config(cfg)
        _check(cfg)


def _ends(override: Override) -> tuple[str, str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
    else:
        low, *_, high = override.sweep_iterator()
    return f"{override.get_key_element()}={low}", f"{override.get_key_element()}={high}"


def test_the_server_led_sweep_starts_runs_that_are_valid() -> None:
    """What `wandb agent` makes of the file: a command with KEY=VALUE for `args_no_hyphens`."""
    sweep = yaml.safe_load((EXPERIMENTS / "wandb_sweep" / "router_lr.yaml").read_text())
    *command, arguments = sweep["command"]
    assert command[:4] == ["${env}", "${interpreter}", "-m", "polylab.train"]
    assert arguments == "${args_no_hyphens}"
    assert (CONF.parent / sweep["program"]).is_file()
    for low in (True, False):
        drawn = {
            key: values["values"][0 if low else -1] if "values" in values else values[end]
            for key, values in sweep["parameters"].items()
            for end in ["min" if low else "max"]
        }
        cfg = _compose(*command[4:], *(f"{key}={value}" for key, value in drawn.items()))
        check_config(cfg)
        _check(cfg)
        assert cfg.optim.router_lr == drawn["optim.router_lr"]
        assert sweep["metric"]["name"] == cfg.callbacks.checkpoint.monitor == cfg.optimized_metric


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe(name: str) -> None:
    path = ["data.path=DIR"] if name.startswith("sni") else []  # a download of the user's
    _check(_compose(f"experiment={name}", *path))


@pytest.mark.parametrize(("data", "length"), [("mixture", 12), ("jsonl", 128)])
def test_generation_is_as_long_as_the_datas_targets(data: str, length: int) -> None:
    cfg = _compose("experiment=flan_poly", f"data={data}")
    assert cfg.module.max_new_tokens == cfg.data.max_target_length == length


@pytest.mark.parametrize("debug", ["none", "fast", "limit", "overfit", "validate"])
def test_debug_goes_with_every_recipe(debug: str) -> None:
    for name in RECIPES:
        _compose(f"experiment={name}", f"debug={debug}")
