"""The training command does on two ranks what it does on one: curves, weights, tables, pictures.

In float64, where what is left of a difference is the order of sums: a relative 1e-9 is asked for,
and 1e-14 was seen. (T5 takes its softmax and its norms in float32 in any precision; over more and
longer batches, padded in other ways, that leaves 1e-6.) In float32 the first step differs by 1e-7,
and a training doubles that every few steps.
"""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.ranks.commands import train
from tests.ranks.starting import start_ranks

JOBS = {
    "tasks": [  # 7 validation examples of each: no multiple of ranks or batches
        *("callbacks=gradients", "callbacks.gradients.every_n_validations=1"),
        *("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"),
        *("optim.router=lazy", "data.batch_size=4", "data.eval_examples_per_task=7"),
        "adapter.modules_to_save=[final_layer_norm]",
    ],
    "inputs": [  # 1 validation example of each: fewer than the ranks need for a batch of each
        *("adapter=mope", "data.packing=true", "data.group_by_length=4"),
        *("data.eval_examples_per_task=1", "callbacks.use=null"),
    ],
}
TIMES = ("seconds", "throughput/", "memory/")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, t5_folder, task_folder):
    """The folders of the runs on one rank and on two."""
    folder = tmp_path_factory.mktemp("parity")
    shutil.copytree(t5_folder, folder / "t5")
    config = json.loads((folder / "t5" / "config.json").read_text())
    config["dropout_rate"] = 0.0  # each rank has random numbers of its own
    (folder / "t5" / "config.json").write_text(json.dumps(config))
    tiny = [
        *("data=jsonl", f"data.path={task_folder}", f"backbone.name_or_path={folder / 't5'}"),
        *("data.batch_size=8", "data.source.min_rows_to_split=10", "data.max_input_length=16"),
        *("data.max_target_length=8", "data.test_examples_per_task=5", "module.max_new_tokens=2"),
        *("adapter.r=2", "adapter.n_skills=4", "optim.lr=0.05", "optim.router_lr=0.5"),
        *("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
        *("trainer.precision=64-true", "logger=none"),
        "callbacks.figures=null",  # seconds, and drawn from what allocations/ has
    ]
    jobs = {name: [*tiny, *own] for name, own in JOBS.items()}
    for n in (1, 2):
        codes, errors = start_ranks(train, folder / str(n), n, jobs)
        assert codes == [0] * n, errors
    return folder / "1", folder / "2"


def _agree(one, two, *, path=""):
    """The same keys and texts, numbers as close as above."""
    if isinstance(one, dict):
        left_out = [key for key in one if str(key).startswith(TIMES)]
        assert one.keys() == two.keys(), path
        for key in one.keys() - left_out:
            _agree(one[key], two[key], path=f"{path}/{key}")
    elif isinstance(one, float):
        assert math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12), (path, one, two)
    else:
        assert one == two, path


def _lines(path):
    return dict(enumerate(map(json.loads, path.read_text().splitlines())))


def _cells(path):
    rows = list(csv.reader(path.read_text().splitlines()))
    return np.array([[_number(cell) for cell in row] for row in rows], dtype=object)


def _number(cell):
    try:
        return round(float(cell), 5)
    except ValueError:
        return cell


@pytest.mark.parametrize("job", JOBS)
def test_curves_and_scores(runs, job):
    one, two = (folder / job for folder in runs)
    curve = _lines(one / "history.jsonl")
    assert sum("train/loss" in line for line in curve.values()) == 4
    _agree(curve, _lines(two / "history.jsonl"))
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert len(scores[0]["val"]["tasks"]) == len(scores[0]["test"]["intervals"]["tasks"]) == 3
    _agree(*scores)


@pytest.mark.parametrize("job", JOBS)
def test_weights(runs, job):
    one, two = (load_file(f / job / "adapter" / "adapter_model.safetensors") for f in runs)
    assert {tensor.dtype for tensor in one.values()} == {torch.float64}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("job", JOBS)
def test_tables_and_pictures(runs, job):
    one, two = (folder / job for folder in runs)
    names = {str(p.relative_to(one)) for p in one.rglob("*.*") if p.suffix in (".csv", ".png")}
    assert {"mix.csv", "routing.csv", "skills.csv"} <= names
    assert (job == "tasks") == ({"grad_alignment.csv", "figures/grad_alignment.png"} <= names)
    for name in names:
        if name.endswith(".csv"):
            assert (_cells(one / name) == _cells(two / name)).all(), name
        else:
            assert np.array_equal(*(np.asarray(Image.open(f / name)) for f in (one, two))), name
    looks = [*(one / "allocations").iterdir()]
    assert {look.stem for look in looks} >= {"step000004", "best"}
    for look in looks:
        tensors, others = load_file(look), load_file(two / "allocations" / look.name)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():  # float16
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-6)


def test_only_rank_zero_writes(runs):
    zero, one = (json.loads((runs[1] / f"{rank}.json").read_text()) for rank in (0, 1))
    assert {"tasks/metrics.json", "tasks/history.jsonl", "inputs/routing.csv"} <= {*zero}
    assert set(one) <= {f"{job}/rank1.log" for job in JOBS} | {*JOBS}  # Hydra's own
