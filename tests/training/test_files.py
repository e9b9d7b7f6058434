"""Files survive whatever stops their writing."""

import errno
import json
import math
import subprocess
import sys

import pytest
import torch

from polylab.training.files import AtomicCheckpointIO, write_atomically
from polylab.training.results import count_trainable, write_metrics

KILLED = """
import os, sys
from polylab.training.files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), 9)
write_atomically(sys.argv[1], write)
"""


def test_a_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"old", b"new"):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, write)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_killed_process_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert result.returncode == -9
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_cannot_be_pickled_keeps_the_previous_one(tmp_path):
    files, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    files.save_checkpoint({"x": torch.ones(3)}, path)
    with pytest.raises(AttributeError, match="local"):
        files.save_checkpoint({"x": lambda: None}, path)
    assert torch.equal(files.load_checkpoint(path, weights_only=True)["x"], torch.ones(3))


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"storage_options={'a': 1} has no use"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x", storage_options={"a": 1})


def test_metrics_json_is_strict_json_in_the_documented_form(tmp_path):
    test = {"loss": math.nan, "macro": {"exact_match": 0.5}, "tasks": {"é": {"loss": 1.0}}}
    path = tmp_path / "metrics.json"
    splits = {"val": None, "test": test}
    kept = {"checkpoint": "best", "seconds": 1.5, "trainable_parameters": 7}
    write_metrics(path, splits=splits, **kept, categories={"é": ("A", "B")})
    assert "NaN" not in path.read_text()
    assert json.loads(path.read_text("utf-8")) == {
        "test": {"loss": None, "macro": {"exact_match": 0.5}, "tasks": {"é": {"loss": 1.0}}},
        "task_categories": {"é": ["A", "B"]},
        **kept,
    }


def test_the_checkpoint_named_in_metrics_json_is_one_of_two(tmp_path):
    with pytest.raises(ValueError, match="checkpoint=newest must be best or last"):
        write_metrics(
            tmp_path / "m.json",
            splits={},
            checkpoint="newest",
            seconds=0.0,
            trainable_parameters=0,
        )
    assert not (tmp_path / "m.json").exists()


def test_only_trainable_parameters_are_counted():
    model = torch.nn.Linear(3, 5)
    model.bias.requires_grad_(False)
    assert count_trainable(model) == 15
