"""Every YAML file that ships is composed, and what its nodes name exists and takes their keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from polylab.config.launch import register
from polylab.config.paths import config_folder
from polylab.config.targets import check_arguments, check_targets
from polylab.parts import SOURCE_KEYS, lightning_node

CONF, EXPERIMENTS = config_folder("conf"), config_folder("experiments")
OPTIONS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
RECIPES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
METHODS, PROTOCOLS = (
    [o.stem for o in OPTIONS if o.parent.name == g] for g in ("adapt", "protocol")
)
# commands that have a configuration of their own, and the groups that only theirs use
COMMANDS = ["adapt", "evaluate", "export", "report", "train", "workspace"]


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
    assert len(OPTIONS) == 69
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
    if option.parent.name == "data":
        takes_path = "_data@_here_" in (CONF / option).read_text() and option.stem != "combined"
        overrides += ["data.path=DIR"] if takes_path else []
    if option == Path("adapter/none.yaml"):
        overrides += ["callbacks=none"]
    _check(_compose(*overrides))


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
