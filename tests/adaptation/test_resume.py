"""Which folders a command goes on in."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from polylab.adaptation.resume import FREE, read_results
from polylab.config.errors import ConfigError
from polylab.config.files import write_config
from polylab.config.launch import register
from polylab.config.paths import config_folder

RUN = {
    "data": {
        "prompt": "none",
        "max_input_length": 16,
        "max_target_length": 8,
        "keep_input": "end",
        "separator": " ",
    },
    "module": {"num_beams": 1},
}
TABLE = "task,method,shots,seed,loss,parameters,seconds\ncopy,poly,16,0,1.5,12,3.0\n"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DictConfig]]:
    """Makes resolved configurations of the command."""
    run = tmp_path_factory.mktemp("run")
    OmegaConf.save(OmegaConf.create(RUN), run / "config.yaml")
    register()

    @functools.cache
    def make(*overrides: str) -> DictConfig:
        cfg = compose("adapt", ["data=jsonl", "data.path=DIR", f"run={run}", *overrides])
        OmegaConf.resolve(cfg)
        return cfg

    with initialize_config_dir(str(config_folder("conf")), version_base="1.3"):
        yield make


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders in which a command has left a row, without some keys of today's."""

    def make(cfg: DictConfig, *without: str, table: str = TABLE) -> Path:
        folder = tmp_path / "out"
        write_config(folder / "config.yaml", cfg)
        before: Any = OmegaConf.load(folder / "config.yaml")
        for key in without:
            parent, _, name = key.rpartition(".")
            del OmegaConf.select(before, parent)[name]
        OmegaConf.save(before, folder / "config.yaml")
        (folder / "results.csv").write_text(table)
        return folder

    return make


def _line(cfg: DictConfig, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_results(cfg, folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_same_command_goes_on(
    command: Callable[..., DictConfig], begun: Callable[..., Path], tmp_path: Path
) -> None:
    assert read_results(command(), tmp_path / "new").rows == {}
    (row,) = read_results(command(), begun(command())).rows.values()
    assert row["loss"] == 1.5


@pytest.mark.parametrize(
    "key", ["module.generate_every_n_validations", "data.cap", "adapt.r", "data.source.test_share",
            "data.known_tasks", "trainer.compile", "optim.betas"]
)  # fmt: skip
def test_a_key_that_came_later_has_its_default(
    command: Callable[..., DictConfig], begun: Callable[..., Path], key: str
) -> None:
    assert len(read_results(command(), begun(command(), key)).rows) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("module.generate_every_n_validations", "2"),
        ("data.cap", "5"),
        ("data.source.test_share", "0.25"),
        ("adapt.select", "last"),
    ],
)
def test_a_key_that_came_later_has_another_value(
    command: Callable[..., DictConfig], begun: Callable[..., Path], key: str, value: str
) -> None:
    line = _line(command(f"{key}={value}"), begun(command(), key))
    assert f" has results of {key}=" in line
    assert f"this command has {key}={value}" in line


def test_a_key_without_a_default_must_be_there(
    command: Callable[..., DictConfig], begun: Callable[..., Path]
) -> None:
    line = _line(command(), begun(command(), "data.source.path"))
    assert "results without data.source.path=DIR" in line


def test_a_key_that_is_gone(command: Callable[..., DictConfig], begun: Callable[..., Path]) -> None:
    folder = begun(command("+data.source.old=3"))
    assert "has results of data.source.old=3, and this command has no data" in _line(
        command(), folder
    )


@pytest.mark.parametrize(
    "change",
    ["adapt.seeds=[4,5]", "adapt.tasks=[x]", "data.num_workers=2", "trainer.log_every_n_steps=3"],
)
def test_what_changes_no_row_is_free(
    command: Callable[..., DictConfig], begun: Callable[..., Path], change: str
) -> None:
    assert change.partition("=")[0] in FREE
    assert len(read_results(command(change), begun(command())).rows) == 1


def test_free_keys_exist(command: Callable[..., DictConfig]) -> None:
    cfg = command()
    missing = object()
    assert [key for key in FREE if OmegaConf.select(cfg, key, default=missing) is missing] == []


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x00", "a: ${b"])
def test_a_broken_configuration(
    command: Callable[..., DictConfig], begun: Callable[..., Path], text: str
) -> None:
    folder = begun(command())
    (folder / "config.yaml").write_text(text)
    assert _line(command(), folder).startswith(f"{folder / 'config.yaml'} ")
    (folder / "config.yaml").unlink()
    assert "and no config.yaml that says of what" in _line(command(), folder)


@pytest.mark.parametrize(
    "table",
    ["", "\x00", "task,seed\ncopy,0\n", TABLE + "copy,poly,16\n", TABLE + "a,b,1,2,3,4,5,6\n",
     TABLE.replace("1.5", "x"), TABLE.replace(",0,1.5", ",,1.5")],
)  # fmt: skip
def test_a_broken_table(
    command: Callable[..., DictConfig], begun: Callable[..., Path], table: str
) -> None:
    folder = begun(command(), table=table)
    assert f"{folder / 'results.csv'} is no table of an adaptation" in _line(command(), folder)


def test_a_table_of_other_bytes(
    command: Callable[..., DictConfig], begun: Callable[..., Path]
) -> None:
    folder = begun(command())
    (folder / "results.csv").write_bytes(b"task\xff\xfe")
    assert "is no table of an adaptation" in _line(command(), folder)
