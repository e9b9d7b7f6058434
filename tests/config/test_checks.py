"""What types cannot say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from omegaconf import OmegaConf

from polylab import PolyConfig
from polylab.adaptation.methods import METHODS
from polylab.backbones import loading, quantization
from polylab.callbacks import (
    AllocationHistory,
    GradientAlignment,
    Recovery,
    RoutingStatistics,
    SkillFigures,
    SkillRedundancy,
    SkillTable,
)
from polylab.config.checks import CHOICES, RULES, check_config
from polylab.config.errors import ConfigError
from polylab.data.prompts import Prompt
from polylab.data.sources import p3
from polylab.poly import config_checks
from polylab.training import OptimConfig, RunCheckpoint
from polylab.training.optim import OPTIMIZERS, ROUTERS, SCHEDULES
from polylab.training.ranking import RankOptions

FINE = {
    "seed": 0,
    "adapter": {"r": 4, "n_skills": 3, "n_splits": 1, "alpha": 1.0, "temperature": 1.0},
    "data": {"batch_size": 8, "temperature": 1.0, "num_workers": 0},
    "module": {"label_smoothing": 0.1},
    "trainer": {"max_steps": -1},
    "ckpt_path": None,
    "init_from": None,
}


def test_a_good_configuration_passes() -> None:
    check_config(OmegaConf.create(FINE))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("adapter.r", 0),
        ("adapter.n_skills", 0),
        ("adapter.n_splits", 0),
        ("adapter.temperature", 0.0),
        ("data.batch_size", 0),
        ("data.temperature", -2.0),
        ("data.num_workers", -1),
        ("data.group_by_length", 0),
        ("data.tasks_per_batch", 0),
        ("data.max_examples_per_task", 0),
        ("module.label_smoothing", 1.0),
        ("trainer.max_steps", 0),
    ],
)
def test_out_of_range(key: str, value: float) -> None:
    cfg = OmegaConf.create(FINE)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError, match=f"^{key}={value} must {RULES[key][0][5:]}$"):
        check_config(cfg)


# what refuses the same values later; `data` checks itself in too many places for one call
BUILT: dict[str, Callable[..., Any]] = {
    "adapter": PolyConfig,
    "optim": OptimConfig,
    "callbacks.routing": RoutingStatistics,
    "callbacks.history": AllocationHistory,
    "callbacks.recovery": Recovery,
    "callbacks.gradients": GradientAlignment,
    "callbacks.redundancy": SkillRedundancy,
    "callbacks.figures": SkillFigures,
    "callbacks.table": SkillTable,
    "callbacks.checkpoint": lambda **given: RunCheckpoint("", **given),
}
REPEATED = [key for key in (*RULES, *CHOICES) if key.rpartition(".")[0] in BUILT]


@pytest.mark.parametrize("key", REPEATED)
def test_what_is_refused_early_is_refused_by_what_is_built(key: str) -> None:
    node, _, name = key.rpartition(".")
    holds = RULES[key][1] if key in RULES else CHOICES[key].__contains__
    values: list[Any] = [-1, 0, 0.5, 1, 2, 300_000] if key in RULES else ["wrong"]
    refused = [value for value in values if not holds(value)]
    assert refused
    for value in refused:
        cfg = OmegaConf.create(FINE)
        OmegaConf.update(cfg, key, value, force_add=True)
        with pytest.raises(ConfigError, match=f"^{key}="):
            check_config(cfg)
        with pytest.raises(ValueError, match=name):
            BUILT[node](**{name: value})


def test_choices_are_those_of_what_is_built() -> None:
    built: dict[str, tuple[str, ...]] = {
        "backbone.dtype": loading.DTYPES,
        "backbone.quantization": quantization.QUANTIZATIONS,
        "data.prompt": get_args(Prompt),
        "module.rank_options": get_args(RankOptions),
        "data.keep_input": ("end", "start"),
        "data.p3.tasks": p3.TASKS,
        "optim.name": OPTIMIZERS,
        "optim.schedule": SCHEDULES,
        "optim.router": ROUTERS,
        "callbacks.checkpoint.mode": ("max", "min"),
        "adapt.method": METHODS,
        "adapt.select": ("best", "last"),
    }
    adapter = {**config_checks._CHOICES, **config_checks._OPEN_CHOICES}
    assert {**built, **{f"adapter.{name}": valid for name, valid in adapter.items()}} == CHOICES


def test_an_unknown_word_gets_the_nearest_and_all_valid_ones() -> None:
    cfg = OmegaConf.create({**FINE, "optim": {"schedule": "linaer"}})
    line = "^optim.schedule='linaer' is not known · did you mean linear\\?"
    with pytest.raises(ConfigError, match=line):
        check_config(cfg)


def test_a_class_of_the_users_own_is_no_word() -> None:
    check_config(OmegaConf.create({**FINE, "adapter": {"noise": {"_target_": "my_lab.Noise"}}}))


@pytest.mark.parametrize(
    ("optim", "steps", "problem"),
    [
        ({"schedule": "linear", "warmup": 0}, -1, "schedule=linear with optim.warmup=0 needs"),
        ({"schedule": "constant", "warmup": 0.1}, -1, "warmup=0.1 needs the number of steps"),
        ({"warmup": 9}, 8, "^optim.warmup=9 exceeds the 8 steps"),
        ({"warmup": 9, "total_steps": 7}, 10, "^optim.warmup=9 exceeds the 7 steps"),
        ({"anneal_steps": 9}, 8, "^optim.anneal_steps=9 exceeds trainer.max_steps=8"),
        ({"anneal_steps": 9}, -1, "^optim.anneal_steps=9 exceeds trainer.max_steps=-1"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run(
    optim: dict[str, Any], steps: int, problem: str
) -> None:
    cfg = OmegaConf.create({**FINE, "optim": optim, "trainer": {"max_steps": steps}})
    with pytest.raises(ConfigError, match=problem):
        check_config(cfg)


@pytest.mark.parametrize(
    ("optim", "steps"),
    [
        ({"schedule": "linear", "warmup": 8}, 8),
        ({"schedule": "cosine", "warmup": 0.5, "total_steps": 5}, -1),
        ({"schedule": "constant", "warmup": 20}, -1),
        ({"anneal_steps": 8}, 8),
    ],
)
def test_a_schedule_that_fits_the_run(optim: dict[str, Any], steps: int) -> None:
    check_config(OmegaConf.create({**FINE, "optim": optim, "trainer": {"max_steps": steps}}))


def test_all_problems_at_once(tmp_path: Path) -> None:
    cfg = OmegaConf.create(FINE)
    cfg.data.path = "???"
    cfg.data.copy = "${data.path}"
    cfg.adapter.r, cfg.ckpt_path, cfg.init_from = -3, str(tmp_path / "x.ckpt"), "old"
    with pytest.raises(ConfigError) as caught:
        check_config(cfg)
    problems = str(caught.value).split("; ")
    assert [p.split(" ")[0].strip(":") for p in problems] == [
        "data.path", "adapter.r=-3", "init_from=old", f"ckpt_path={tmp_path / 'x.ckpt'}",
    ]  # fmt: skip


def test_gradients_of_frozen_skills_are_refused() -> None:
    callbacks = {"callbacks": {"gradients": {"max_tasks": 3}}}
    cfg = OmegaConf.create({**FINE, **callbacks})
    check_config(cfg)
    OmegaConf.update(cfg, "adapter.trainable", "router", force_add=True)
    with pytest.raises(ConfigError, match=r"callbacks=gradients with adapter\.trainable=router"):
        check_config(cfg)


def test_the_best_weights_are_chosen_by_what_is_known_in_training() -> None:
    given = {"module": {"generate_every_n_validations": 0}}
    monitor = {"callbacks": {"checkpoint": {"monitor": "val/exact_match", "mode": "max"}}}
    with pytest.raises(ConfigError, match=r"monitor=val/exact_match with .*validations=0"):
        check_config(OmegaConf.create({**FINE, **given, **monitor}))
    monitor["callbacks"]["checkpoint"]["monitor"] = "val/loss"
    check_config(OmegaConf.create({**FINE, **given, **monitor}))
    check_config(OmegaConf.create({**FINE, **given}))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"tasks_per_batch": 9}, r"tasks_per_batch=9 · a batch of data.batch_size=8 rows holds 8"),
        ({"tasks_per_batch": 2, "group_by_length": 5}, "tasks_per_batch=2 with data.group_by_len"),
    ],
)
def test_batches_that_cannot_be(data: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^data.{problem}"):
        check_config(OmegaConf.create({**FINE, "data": {**FINE["data"], **data}}))
    fine = {**FINE["data"], "tasks_per_batch": 8, "group_by_length": None}
    check_config(OmegaConf.create({**FINE, "data": fine}))
