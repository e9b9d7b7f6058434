"""Classification with the command."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import polylab

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


@pytest.fixture
def evaluate(run_here, tmp_path):
    """Evaluates a run in this process, into `tmp_path/out` unless said otherwise."""

    def run(folder, *arguments, out="out"):
        given = [f"run={folder}", f"hydra.run.dir={tmp_path / out}", *arguments]
        return run_here(*given, cwd=tmp_path, command="evaluate")

    return run


@pytest.fixture(scope="module")
def mope(run_here, tmp_path_factory):
    steps = ["trainer.max_steps=3", "callbacks.recovery=null", "data.test_examples_per_task=9"]
    done = run_here(*QUICK, *steps, "adapter=mope", cwd=tmp_path_factory.mktemp("mope"))
    assert done.code == 0, done.err
    return done


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def _lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["learned", "mope"])
def test_an_evaluation_has_the_numbers_of_the_run(request, evaluate, tmp_path, name):
    done = request.getfixturevalue(name)
    wanted = _metrics(done.folder)
    found = evaluate(done.folder)
    assert found.code == 0, found.err
    assert _metrics(tmp_path / "out")["test"] == wanted["test"]
    assert "macro_f1" in wanted["test"]["macro"]
    assert evaluate(done.folder, "split=validation", out="val").code == 0
    assert _metrics(tmp_path / "val")["val"] == wanted["val"]


def test_an_evaluation_in_parts_and_otherwise_routed(learned, evaluate, tmp_path):
    wanted = _metrics(learned.folder)["test"]["tasks"]
    assert evaluate(learned.folder, "task=[is_plural,last_is_plural]").code == 0
    found = _metrics(tmp_path / "out")["test"]["tasks"]
    assert found == {name: pytest.approx(wanted[name], rel=1e-5) for name in found}
    assert {*found} == {"is_plural", "last_is_plural"}
    lines = _lines(tmp_path / "out")
    assert {line["prediction"] for line in lines} == {"no", "yes"}
    right = [line["prediction"] in line["references"] for line in lines]
    macro = _metrics(tmp_path / "out")["test"]["macro"]
    assert macro["accuracy"] == pytest.approx(sum(right) / len(right))
    given = ["task=is_plural", "routing=task:is_capital"]
    assert evaluate(learned.folder, *given, out="routed").code == 0
    other = _metrics(tmp_path / "routed")["test"]["tasks"]["is_plural"]["loss"]
    assert other != pytest.approx(wanted["is_plural"]["loss"], rel=1e-3)


def test_classes_of_other_data_are_those_of_the_run(learned, evaluate, tmp_path):
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    rows = [("ants", "yes"), ("ant", "perhaps"), ("bees", "yes"), ("bee", "maybe")]
    text = "".join(json.dumps({"input": a, "target": b}) + "\n" for a, b in rows)
    for name in ("is_plural", "is_red"):
        (folder / f"{name}.jsonl").write_text(text.replace('input": "', 'input": "old '))
        (folder / "test" / f"{name}.jsonl").write_text(text)
    given = ["data=jsonl", f"data.path={folder}"]
    for way in ("null", "mean", "input"):
        done = evaluate(learned.folder, *given, f"zero_shot={way}")
        assert done.code == 1
        assert "the run knows no 'is_red'" in done.err
        assert "a task without a trained head has no answers" in done.err
    done = evaluate(learned.folder, *given, "task=is_plural")
    assert done.code == 0, done.err
    assert "is_plural: 2 of 4 test targets are none of its labels" in done.out
    lines = _lines(tmp_path / "out")
    assert {line["prediction"] for line in lines} <= {"no", "yes"}
    found = _metrics(tmp_path / "out")["test"]["tasks"]["is_plural"]
    right = sum(line["prediction"] in line["references"] for line in lines)
    assert found["accuracy"] == right / 4
    said = sum(line["prediction"] == "yes" for line in lines)
    assert found["macro_f1"] == pytest.approx(right / (said + 2))  # of no, nothing is right


def test_load_classifies(learned, mope, evaluate, tmp_path):
    before = torch.get_rng_state()
    run = polylab.load(learned.folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert run.labels is not None
    assert run.labels["is_plural"] == ["no", "yes"]
    assert list(run.allocation().index) == run.tasks
    assert evaluate(learned.folder, "task=is_plural").code == 0
    lines = _lines(tmp_path / "out")[:40]
    found = run.classify([line["input"] for line in lines], task="is_plural")
    assert [next(iter(shares)) for shares in found] == [line["prediction"] for line in lines]
    for shares in found:
        assert {*shares} == {"no", "yes"}
        assert sum(shares.values()) == pytest.approx(1)
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
    assert run.classify([], task="is_plural") == []
    with pytest.raises(ValueError, match=r"the run classifies .* use classify"):
        run.generate(["ants"], task="is_plural")
    with pytest.raises(ValueError, match="'is_plurl' is none of the run's"):
        run.classify(["ants"], task="is_plurl")
    with pytest.raises(ValueError, match="texts is one string"):
        run.classify("ants", task="is_plural")
    with pytest.raises(ValueError, match="say whose head to use"):
        polylab.load(mope.folder).classify(["ants"])  # routed by the input: the head is not


def test_damaged_labels_are_refused(mope, evaluate, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(mope.folder, folder)
    path = folder / "adapter" / "labels.json"
    whole = json.loads(path.read_text())
    for damaged, says in (
        (None, "labels.json"),
        ("[]", "an object of task names and lists of different labels is needed"),
        (json.dumps({**whole, "is_plural": ["no", "no"]}), "lists of different labels is needed"),
        (json.dumps({"is_plural": ["no", "yes"]}), "and those of tasks.json"),
        (json.dumps({**whole, "is_plural": ["a", "b", "c"]}), "task_heads"),
    ):
        path.unlink() if damaged is None else path.write_text(damaged)
        done = evaluate(folder)
        assert done.code == 1
        assert says in done.err


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("adapt", ["data=mixture_judge"]),
        ("train", ["init_from=RUN", "backbone=tiny_encoder", "module=classification"]),
    ],
)
def test_what_a_classification_is_not_for(mope, run_here, tmp_path, command, arguments):
    given = [x.replace("RUN", str(mope.folder)) for x in arguments]
    run = [f"run={mope.folder}"] if command == "adapt" else ["data=mixture_judge", "logger=none"]
    done = run_here(*run, *given, cwd=tmp_path, command=command)
    assert done.code == 1
    assert "it classifies (module=classification)" in done.err
