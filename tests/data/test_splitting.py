"""Splits by the text of the input."""

import pytest

from polylab.data import Example, TaskData
from polylab.data.splitting import (
    check_shares,
    dedupe,
    pairs_of,
    share_references,
    side_of,
    split_task,
    split_text,
    without_held_out,
)

SHARES = {"validation_share": 0.3, "test_share": 0.2}


def _examples(count: int, target: str = "t") -> list[Example]:
    return [Example(f"text {i}", f"{target}{i}") for i in range(count)]


def test_shares_of_many_texts_are_kept() -> None:
    sides = [side_of(f"text {i}", **SHARES) for i in range(4000)]
    assert sides.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert sides.count("validation") / 4000 == pytest.approx(0.3, abs=0.02)


def test_the_side_never_changes() -> None:
    """Pinned: another hash would move the examples of published runs."""
    sides = [side_of(f"text {i}", **SHARES) for i in range(14)]
    assert "".join(side[1] for side in sides) == "rreerrerrrarer"


def test_a_smaller_validation_share_does_not_move_the_test() -> None:
    for text in map(str, range(200)):
        small = side_of(text, validation_share=0.1, test_share=0.2)
        assert (side_of(text, **SHARES) == "test") == (small == "test")


def test_tasks_agree_about_a_text() -> None:
    first = split_task(TaskData("a", _examples(90, "x")), **SHARES, min_inputs=1)
    second = split_task(TaskData("b", _examples(90, "y")[::-1]), **SHARES, min_inputs=1)
    for split in ("train", "validation", "test"):
        inputs = {example.input for example in first.split(split)}
        assert inputs == {example.input for example in second.split(split)}
        assert inputs


def test_rows_of_one_input_stay_together() -> None:
    rows = [example for t in "xyz" for example in _examples(40, t)]
    task = split_task(TaskData("a", rows), **SHARES, min_inputs=40)
    held_out = {example.input for example in (*task.validation, *task.test)}
    assert len(task.train) + len(task.validation) + len(task.test) == 120
    assert held_out
    assert not held_out & {example.input for example in task.train}


def test_spaces_do_not_make_another_text() -> None:
    assert split_text(Example(" a \n b\u00a0c", "")) == split_text(Example("a b c", ""))


def test_an_empty_input_is_split_by_its_instruction() -> None:
    assert split_text(Example(" ", "t", instruction="Do  it.")) == "Do it."
    assert split_text(Example("a", "t", instruction="Do it.\na")) == "a"
    assert split_text(Example("", "t")) == ""


def test_a_tiny_task_keeps_all_rows() -> None:
    task = TaskData("a", [*_examples(9, "x"), *_examples(9, "y")])
    assert split_task(task, **SHARES, min_inputs=10) == task
    assert split_task(task, **SHARES, min_inputs=9) != task


def test_given_held_out_rows_are_kept() -> None:
    test = [Example("given", "t")]
    task = split_task(
        TaskData("a", _examples(60), test=test),
        validation_share=0.3,
        test_share=0.0,
        min_inputs=1,
    )
    assert task.test == test
    assert task.validation


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.2, -0.3), (0.6, 0.4)])
def test_impossible_shares(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match=f"validation_share={validation} .*test_share={test} "):
        check_shares(validation, test)


def test_exact_duplicates_go_and_other_targets_stay() -> None:
    rows = [Example("b", "1"), Example("a", "2"), Example("b", "1"), Example("b", "3")]
    assert dedupe(rows) == [rows[0], rows[1], rows[3]]


def test_the_same_input_under_another_instruction_is_no_duplicate() -> None:
    rows = [Example("", "1", instruction="Do."), Example("", "1", instruction="Do not.")]
    assert dedupe(rows) == rows


def test_targets_of_one_input_are_references_of_each_other() -> None:
    rows = [Example("a", "1"), Example("b", "2"), Example("a", "3", ("3", "1", "4"))]
    shared = share_references(rows)
    assert [example.references for example in shared] == [("1", "3", "4"), ("2",), ("3", "1", "4")]
    assert [example.target for example in shared] == ["1", "2", "3"]


def test_held_out_texts_of_the_task_and_pairs_of_all_tasks_leave_the_training_rows() -> None:
    other_task = [Example("d", "x"), Example("e", "y")]
    own = [Example("a  b", "1")]
    train = [Example("a b", "2"), Example("d", "x"), Example("e", "z"), Example("f", "3")]
    kept = without_held_out(train, own, pairs_of([*own, *other_task]))
    assert kept == [Example("e", "z"), Example("f", "3")]
