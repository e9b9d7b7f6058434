"""What of the task the input carries."""

import pytest

from polylab.data import Example, TaskCollection, TaskData
from polylab.data.prompts import check_instructions, check_prompt, choose_paraphrase, render_input

EXAMPLE = Example("3 4", "7", instruction="Add.\n3 4")


@pytest.mark.parametrize(
    ("prompt", "text"), [("none", "3 4"), ("name", "sum: 3 4"), ("instruction", "Add.\n3 4")]
)
def test_rendered_input(prompt: str, text: str) -> None:
    check_prompt(prompt)
    assert render_input(EXAMPLE, task_name="sum", prompt=prompt) == text


def test_an_unknown_prompt() -> None:
    with pytest.raises(ValueError, match=r"data.prompt='task' · valid: none, name, instruction"):
        check_prompt("task")


def test_tasks_without_instructions_are_named() -> None:
    tasks = [TaskData("a", [EXAMPLE]), TaskData("b", [EXAMPLE], test=[Example("1", "2")])]
    with pytest.raises(ValueError, match="examples of 'b' have no instruction"):
        check_instructions(TaskCollection(tasks))
    check_instructions(TaskCollection(tasks[:1]))


def test_paraphrases_are_fixed_per_text_and_all_are_used() -> None:
    chosen = [choose_paraphrase(["x", "y", "z"], f"text {i}") for i in range(60)]
    assert chosen == [choose_paraphrase(["x", "y", "z"], f"text {i}") for i in range(60)]
    assert set(chosen) == {"x", "y", "z"}
