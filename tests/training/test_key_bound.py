"""However many tasks and layers there are, a run has fewer than 2,000 keys in its logs."""

import logging

import torch
from torch.utils.data import DataLoader

from polylab.callbacks import (
    AllocationHistory,
    Recovery,
    RoutingStatistics,
    SkillRedundancy,
    Throughput,
    UpdateSizes,
)
from polylab.callbacks.base import Moment, Sight
from polylab.callbacks.seen import Allocations
from tests.training.conftest import Data, Memory, collate

N_TASKS, N_LAYERS, N_SKILLS = 1600, 500, 4
MOST_KEYS = 2000


class ManyTasks(Data):
    """One batch that holds an example of many tasks."""

    task_names = tuple(f"task {i}" for i in range(N_TASKS))
    skill_matrix = torch.arange(N_TASKS)[:, None] % 3 == torch.arange(3), ["x", "y", "z"]

    def train_dataloader(self):
        batch = collate([(i, "ab", "c") for i in range(200)])
        return DataLoader([batch], batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


def keys_of(memory):
    return {key for _, metrics in memory.lines for key in metrics}


def test_of_a_run_with_very_many_tasks(poly_module, make_trainer, caplog):
    module = poly_module(
        task_names=ManyTasks.task_names,
        categories={name: [f"category {i % 100}"] for i, name in enumerate(ManyTasks.task_names)},
        poly={"n_tasks": N_TASKS},
        max_new_tokens=1,
        predictions_per_task=0,
    )
    kept = [RoutingStatistics(), SkillRedundancy(), UpdateSizes(), Throughput(),
            Recovery(n_permutations=1)]  # fmt: skip
    trainer = make_trainer(max_steps=1, callbacks=kept, val_check_interval=1,
                           log_every_n_steps=1)  # fmt: skip
    with caplog.at_level(logging.INFO, "polylab"):
        trainer.fit(module, datamodule=ManyTasks())
        trainer.test(module, datamodule=ManyTasks(), verbose=False)
    keys = keys_of(trainer.logger)
    assert {"train/task 63/loss", "val/task 63/exact_match", "val/category/category 0/rouge_l",
            "test/task 0/loss", "routing/recovery", "update/router"} <= keys  # fmt: skip
    assert not [key for key in keys if "task 64" in key]
    assert len({key.split("/")[2] for key in keys if "category/" in key}) == 64
    # all layers' keys of the largest model, and with options and labels two more metrics of each
    most = len(keys) + RoutingStatistics()._max_layers + 2 * 2 * (64 + 64)
    assert 1500 < most < MOST_KEYS
    for what in ("1600 tasks", "100 categories"):
        said = (
            f"the first 64 of {what} have keys of their own in the logs (module.max_logged_tasks)"
        )
        assert caplog.text.count(said) == 1


def test_of_very_many_layers(tmp_path, caplog):
    # one tensor for all layers: as many of them, at the cost of one
    w = torch.rand(N_TASKS, 2, N_SKILLS, generator=torch.Generator().manual_seed(0))
    gates = {f"block.{i}.q": w for i in range(N_LAYERS)}
    weights = dict.fromkeys(gates, w / w.sum(-1, keepdim=True))
    seen = Allocations(weights, gates, [*range(N_TASKS)])
    memory = Memory()

    class Idle:
        fast_dev_run, is_global_zero, datamodule, global_step = False, True, None, 0
        loggers, default_root_dir = [memory], tmp_path

    for callback in (RoutingStatistics(), AllocationHistory()):
        with caplog.at_level(logging.INFO, "polylab"):
            callback.see(Idle(), None, Sight(seen, Moment.START, "at the start", "step000000"))
    keys = keys_of(memory)
    assert sum(key.startswith("routing/entropy/") for key in keys) == 64
    assert len(keys) < 64 + 16
    assert "routing/entropy/LAYER is logged for 64 of 500 layers" in caplog.text
    assert (tmp_path / "routing.csv").read_bytes().count(b"\n") == 1 + 1 + N_LAYERS + 1000
    file = tmp_path / "allocations" / "step000000.safetensors"
    assert file.stat().st_size < 2 * 2_000_000 + 100_000
