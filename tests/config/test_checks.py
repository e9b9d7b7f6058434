"""What types cannot say."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from polylab.config.checks import RULES, check_config
from polylab.config.errors import ConfigError

FINE = {
    "seed": 0,
    "adapter": {"r": 4, "n_skills": 3, "n_splits": 1, "alpha": 1.0, "temperature": 1.0},
    "data": {"batch_size": 8, "temperature": 1.0, "num_workers": 0},
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
        ("trainer.max_steps", 0),
    ],
)
def test_out_of_range(key: str, value: float) -> None:
    cfg = OmegaConf.create(FINE)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(ConfigError, match=f"^{key}={value} must {RULES[key][0][5:]}$"):
        check_config(cfg)


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
