"""Files of an adapter are written whole: a full disk or a kill leaves the previous one."""

import os
import resource
import signal

import pytest
import torch

from polylab import PolyModel
from polylab.poly import files
from tests.poly.tiny import base, output_of, poly, task_ids

NAMES = ["add", "copy", "first", "last", "sort", "upper"]
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def saved(tmp_path):
    poly("llama", task_names=NAMES).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("failing", [WEIGHTS, "tasks.json", CONFIG])
def test_a_write_that_fails_leaves_the_previous_adapter(failing, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    flush = files._flush

    def fail(path):
        flush(path)
        if failing in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", fail)
    with pytest.raises(OSError, match="No space left"):
        poly("llama", seed=3, alpha=2.0, task_names=NAMES).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_full_disk(saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = poly("llama", seed=3, task_names=NAMES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # less than the weights take
    try:
        with pytest.raises(OSError, match=r"adapter_model.safetensors.* could not be written"):
            model.save_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("after", range(4))
def test_a_kill_between_the_renames(after, saved):
    """The old adapter, the new one, or a refusal: never a mixture."""
    old = output_of(PolyModel.from_pretrained(base("llama"), saved), "llama", task_ids=task_ids())
    model = poly("llama", seed=3, alpha=2.0, task_names=[*reversed(NAMES)])
    new = output_of(model, "llama", task_ids=task_ids())
    _killed_after(after, lambda: model.save_pretrained(saved))
    if after in (1, 2):
        with pytest.raises(ValueError, match="is not of the same save"):
            PolyModel.from_pretrained(base("llama"), saved)
    else:
        found = PolyModel.from_pretrained(base("llama"), saved)
        wanted = new if after == 3 else old
        assert torch.equal(output_of(found, "llama", task_ids=task_ids()), wanted)
    model.save_pretrained(saved)
    loaded = PolyModel.from_pretrained(base("llama"), saved)
    assert torch.equal(output_of(loaded, "llama", task_ids=task_ids()), new)
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS, "tasks.json"]


def _killed_after(count, action):
    """Run `action` in a fork that is killed at its rename number `count`, counted from 0."""
    child = os.fork()
    if child == 0:
        replace, done = os.replace, []

        def replace_or_die(source, target):
            if len(done) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
            replace(source, target)

        files.os.replace = replace_or_die
        action()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_names_of_a_previous_adapter_do_not_stay(saved):
    poly("llama", n_tasks=3).save_pretrained(saved)
    assert PolyModel.from_pretrained(base("llama"), saved).peft_config["default"].n_tasks == 3
    assert not (saved / "tasks.json").exists()
