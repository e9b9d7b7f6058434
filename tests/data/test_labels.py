"""Answers as classes."""

import pytest
from transformers import ByT5Tokenizer

from polylab.data import DataModule, Example, TaskCollection, TaskData
from polylab.data.labels import NO_LABEL, LabelSets, label_set


def task(name, targets, options=None, **splits):
    rows = [Example(f"input {i}", target, options=options) for i, target in enumerate(targets)]
    return TaskData(name, rows, **splits)


def test_options_are_the_labels_even_those_never_seen():
    found = label_set(task("t", ["b", "a", "b"], ("c", "b", "a")), max_labels=3)
    assert found == ["a", "b", "c"]


def test_targets_are_the_labels_of_a_task_without_options():
    assert label_set(task("t", ["no", "yes", "no"]), max_labels=2) == ["no", "yes"]


def test_what_looks_like_generation_is_named():
    with pytest.raises(ValueError, match=r"task 'free': more than 4 labels .*generation"):
        label_set(task("free", list("abcde")), max_labels=4)
    with pytest.raises(ValueError, match=r"task 'one': labels \['a'\]"):
        label_set(task("one", ["a", "a"]), max_labels=4)
    with pytest.raises(ValueError, match=r"task 'odd': the training target 'z' is none of its 2"):
        label_set(task("odd", ["a", "z"], ("a", "b")), max_labels=4)


def test_a_class_is_the_position_in_the_tasks_own_labels():
    sets = LabelSets([["b", "d"], ["a", "b", "c"]])
    b, c, none = sets.text_ids(["b", "c", "never"])
    assert [sets.class_of(0, b), sets.class_of(1, b), sets.class_of(1, c)] == [0, 1, 2]
    assert sets.class_of(0, c) == NO_LABEL
    assert none == NO_LABEL


@pytest.fixture
def make_data():
    strange = [Example("x", "maybe"), Example("long input", "yes")]
    tasks = [
        task("a_side", ["left", "right", "left", "up"]),
        task("b_truth", ["no", "yes"], validation=strange),
    ]

    def make(**settings):
        return DataModule(
            lambda: TaskCollection(tasks),
            ByT5Tokenizer(),
            is_encoder_decoder=False,
            is_encoder=True,
            batch_size=6,
            **settings,
        )

    return make


def test_batches_hold_classes(make_data):
    data = make_data()
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == (6, 1)
    sizes = [3, 2]
    for label, i in zip(batch["labels"][:, 0].tolist(), batch["task_ids"].tolist(), strict=True):
        assert 0 <= label < sizes[i]


def test_an_evaluation_target_that_is_no_label_is_ignored_and_noted(make_data, caplog):
    data = make_data()
    with caplog.at_level("INFO"):
        data.setup("validate")
    assert "b_truth: 1 of 2 validation targets are none of its labels" in caplog.text
    (batch,) = data.val_dataloader()
    found = dict(zip(batch["inputs"], batch["labels"][:, 0].tolist(), strict=True))
    assert found == {"x": NO_LABEL, "long input": 1}


def test_a_known_task_without_data_has_no_labels(make_data):
    with pytest.raises(ValueError, match="'gone' has no data"):
        _ = make_data(known_tasks=["gone"]).label_sets
