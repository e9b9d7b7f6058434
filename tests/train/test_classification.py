"""Classification with the command."""

import json

import pytest
import torch
from safetensors.torch import load_file

QUICK = [
    "experiment=classification",
    "trainer=cpu",
    "logger=none",
    "callbacks.progress=null",
    "callbacks.figures=null",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture(scope="module")
def learned(run_here, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("learned")
    steps = ["trainer.max_steps=150", "trainer.val_check_interval=75"]
    done = run_here(*QUICK, *steps, cwd=cwd)
    assert done.code == 0, done.err
    return done


def test_it_beats_the_majority_class(learned):
    metrics = json.loads((learned.folder / "metrics.json").read_text())
    test = metrics["test"]
    assert test["macro"]["accuracy"] == test["macro"]["exact_match"] > 0.85
    assert set(test["tasks"]) == {"is_capital", "is_plural", "last_is_capital", "last_is_plural"}


def test_heads_and_labels_are_saved(learned):
    adapter = learned.folder / "adapter"
    labels = json.loads((adapter / "labels.json").read_text())
    assert labels["is_plural"] == ["no", "yes"]
    shapes = [
        list(tensor.shape)
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
        if "task_heads" in name
    ]
    assert sorted(shapes) == [[4, 2], [4, 2, 64]]


def test_a_run_is_not_exported(learned, run_here):
    done = run_here(f"run={learned.folder}", "to=out", cwd=learned.cwd, command="export")
    assert done.code == 1
    assert "it classifies (module=classification)" in done.err


@pytest.mark.parametrize("adapter", ["poly", "mope"])
def test_a_continued_run_is_the_uninterrupted_one(run_here, tmp_path, adapter):
    args = [*QUICK, f"adapter={adapter}", "callbacks.recovery=null", "optim.schedule=constant"]
    states = {}
    for name, steps in (("whole", 6), ("first", 3)):
        cwd = tmp_path / name
        cwd.mkdir()
        done = run_here(*args, f"trainer.max_steps={steps}", cwd=cwd)
        assert done.code == 0, done.err
        states[name] = done.folder / "checkpoints" / "last.ckpt"
    cwd = tmp_path / "second"
    cwd.mkdir()
    done = run_here(*args, "trainer.max_steps=6", f"ckpt_path={states['first']}", cwd=cwd)
    assert done.code == 0, done.err
    whole, second = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (states["whole"], done.folder / "checkpoints" / "last.ckpt")
    )
    assert any("task_heads" in name for name in whole)
    assert all(torch.equal(whole[name], second[name]) for name in whole)


def test_other_labels_do_not_continue_a_run(run_here, tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = ["data=jsonl", f"data.path={folder}", "data.source.min_rows_to_split=10"]
    args = [*QUICK, *data, "trainer.max_steps=2", "callbacks.recovery=null"]

    def write(labels):
        rows = [{"input": f"text {i}", "target": labels[i % 2]} for i in range(40)]
        (folder / "side.jsonl").write_text("\n".join(map(json.dumps, rows)))

    write(["left", "right"])
    first = run_here(*args, cwd=tmp_path)
    assert first.code == 0, first.err
    write(["left", "up"])
    last = first.folder / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"task 'side': its labels are \['left', 'right'\]"):
        run_here(*args, f"ckpt_path={last}", cwd=tmp_path)


def test_heads_need_an_adapter(run_here, tmp_path):
    groups = ["backbone=tiny_encoder", "module=classification", "data=mixture_judge"]
    done = run_here(*groups, "adapter=none", "callbacks=none", "logger=none", cwd=tmp_path)
    assert done.code == 1
    assert "module=classification with adapter=none" in done.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone=tiny", "backbone.from_scratch=false"], "an encoder-only backbone"),
        (["module=multitask"], "is an encoder alone and does not generate"),
        (["backbone.from_scratch=false"], "it is an architecture without weights"),
        (["data.source.tasks=train"], "it looks like generation"),
    ],
)
def test_what_does_not_classify_is_refused(run_here, tmp_path, overrides, message):
    args = [*QUICK[:3], *overrides]
    done = run_here(*args, cwd=tmp_path)
    assert done.code == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
