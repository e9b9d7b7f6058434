"""Names, ids and skills."""

import pytest
import torch

from polylab.data import Example, TaskCollection, TaskData
from polylab.data.tasks import check_names, quote, skill_matrix


def _task(name: str) -> TaskData:
    return TaskData(name, [Example("in", "out")])


def test_the_target_is_the_reference_unless_others_are_given() -> None:
    assert Example("in", "out").references == ("out",)
    assert Example("in", "out", ("other", "out")).references == ("other", "out")


def test_names_are_sorted() -> None:
    collection = TaskCollection([_task("b.2"), _task("a-1"), _task("B")])
    assert collection.names == ["B", "a-1", "b.2"]
    assert [task.name for task in collection.tasks] == ["B", "a-1", "b.2"]


def test_known_tasks_keep_their_ids_and_new_ones_follow() -> None:
    collection = TaskCollection([_task("d"), _task("a"), _task("c")])
    assert collection.appended() == ["a", "c", "d"]
    assert collection.appended(["c", "gone"]) == ["c", "gone", "a", "d"]


def test_known_names_must_be_distinct() -> None:
    with pytest.raises(ValueError, match="'c' occur more than once"):
        TaskCollection([_task("a")]).appended(["c", "c"])


def test_no_tasks() -> None:
    with pytest.raises(ValueError, match="0 tasks were given"):
        TaskCollection([])


def test_an_empty_name() -> None:
    with pytest.raises(ValueError, match="' ' at position 1 "):
        check_names(["a", " ", "b"])


def test_repeated_names() -> None:
    with pytest.raises(ValueError, match="'a', 'b' occur more than once"):
        TaskCollection([_task("b"), _task("a"), _task("c"), _task("a"), _task("b")])


def test_a_task_without_examples_is_named() -> None:
    with pytest.raises(ValueError, match="no examples in 'void' "):
        TaskCollection([_task("a"), TaskData("void", [])])


def test_a_task_may_have_test_examples_only() -> None:
    assert TaskCollection([TaskData("a", [], test=[Example("in", "out")])]).names == ["a"]


def test_skills_of_unknown_tasks() -> None:
    with pytest.raises(ValueError, match="for 'z' · the tasks are 'a'"):
        TaskCollection([_task("a")], skills={"z": ("copy",)})


def test_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="split='dev' · valid: train, validation, test"):
        _task("a").split("dev")


def test_skill_matrix_rows_follow_the_ids() -> None:
    matrix, names = skill_matrix({"a": ("y", "x"), "c": ("z",)}, ["c", "new", "a", "b"])
    assert names == ["x", "y", "z"]
    expected = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert torch.equal(matrix, expected)


def test_long_lists_of_names_are_cut() -> None:
    assert quote(["a", "b", "c"], 2) == "'a', 'b' and 1 more"
    assert quote(["a", "b"], 2) == "'a', 'b'"
