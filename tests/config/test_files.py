"""Files that are whole or absent, and folders that nobody shares."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from polylab.config.files import (
    folder_names,
    fresh_folder,
    read_json,
    register_resolvers,
    write_config,
    write_json,
    write_text,
)


def test_write_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.txt"
    write_text(file, "one\n")
    write_text(file, "two\n")
    assert file.read_bytes() == b"two\n"
    assert [path.name for path in file.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError, match=r"udc80"):
        write_text(file, "\udc80")
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_has_no_nan_and_no_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": math.nan, "b": (1, 2.5, -math.inf), 3: "ü"})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [1, 2.5, None], "3": "ü"}
    assert "ü" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_json_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set"):
        write_json(tmp_path / "x.json", {"a": {1}})
    assert not (tmp_path / "x.json").exists()


def test_the_configuration_is_written_resolved(tmp_path: Path) -> None:
    write_config(tmp_path / "c.yaml", OmegaConf.create({"a": 3, "b": "${a}"}))
    assert json.loads(json.dumps(OmegaConf.load(tmp_path / "c.yaml")._content["b"]._val)) == 3


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(fresh_folder, [str(tmp_path / "x" / "now")] * 9))
    assert len(set(folders)) == 9
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_job_asks_for_its_folder_many_times_and_gets_one(tmp_path: Path) -> None:
    register_resolvers()
    node = OmegaConf.create({"dir": f"${{fresh_folder:{tmp_path}/run}}"})
    assert node.dir == node.dir == f"{tmp_path}/run"
    heir = OmegaConf.create({"dir": f"${{fresh_folder:{tmp_path}/run}}"})
    OmegaConf.copy_cache(node, heir)
    assert heir.dir == node.dir


def test_a_run_without_experiment_is_called_train() -> None:
    register_resolvers()
    node = OmegaConf.create(
        {"e": None, "f": "x", "a": "${experiment_name:${e}}", "b": "${experiment_name:${f}}"}
    )
    assert (node.a, node.b) == ("train", "x")


def test_folders_of_tasks() -> None:
    assert folder_names(["glue/sst2", "..", "a b", "é"]) == ["glue_sst2", "task", "a_b", "é"]
    assert folder_names(["a/b", "a b", "A_b", "c"]) == ["a_b_0", "a_b_1", "A_b_2", "c"]
