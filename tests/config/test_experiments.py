"""Recipes as options of the group `experiment`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton

from polylab.config.errors import ConfigError
from polylab.config.experiments import register_experiments


@pytest.fixture(autouse=True)
def own_store() -> Iterator[None]:
    state = Singleton.get_state()
    Singleton._instances = {}
    yield
    Singleton.set_state(state)


def test_files_become_options_with_the_global_package(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("seed: 7\n")
    (tmp_path / "a.yaml").write_text("defaults:\n  - override /adapter: mhr\n")
    assert register_experiments(tmp_path) == ["a", "b"]
    node = ConfigStore.instance().load("experiment/b.yaml")
    assert (node.node.seed, node.package) == (7, "_global_")


def test_a_name_that_exists_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 7\n")
    other = tmp_path / "conf" / "experiment" / "mine.yaml"
    other.parent.mkdir(parents=True)
    other.touch()
    with pytest.raises(ConfigError, match=f"experiment=mine is defined twice.* {other}"):
        register_experiments(tmp_path, others=[tmp_path / "conf"])


def test_bad_yaml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("seed: 1\nname: [a\n")
    with pytest.raises(ConfigError, match=rf"{file}:3: "):
        register_experiments(tmp_path)


def test_a_recipe_is_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list.yaml: a recipe is a mapping"):
        register_experiments(tmp_path)
