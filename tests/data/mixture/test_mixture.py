"""The embedded mixture: what it promises to whoever trains and scores on it."""

import re

import pytest

from polylab.data.mixture import MixtureSource
from polylab.data.mixture.recipes import HELD_OUT, TRAIN
from polylab.data.mixture.skills import SKILLS, solve
from polylab.data.mixture.source import split_of
from polylab.data.mixture.vocabulary import NOUNS, PLURALS, is_reserved, plural
from polylab.data.tasks import TaskCollection


@pytest.fixture(scope="module")
def collection() -> TaskCollection:
    return MixtureSource()()


@pytest.mark.parametrize(
    ("skills", "items", "target"),
    [
        ("plural", ("city",), "cities"),
        ("plural", ("toy",), "toys"),
        ("plural", ("box",), "boxes"),
        ("reverse", ("cup",), "puc"),
        ("reverse upper", ("cup",), "PUC"),
        ("initial upper", ("cup",), "C"),
        ("compare", ("sun", "cup"), "cup"),
        ("compare", ("19", "7"), "7"),
        ("compare reverse", ("45", "12"), "21"),
        ("read", ("cup", "sun"), "sun"),
        ("read plural upper", ("cup", "box"), "BOXES"),
        ("read tenfold", ("12", "45"), "450"),
        ("plural judge", ("glass",), "no"),
        ("plural judge", ("glasses",), "yes"),
        ("read upper judge", ("CUP", "sun"), "no"),
        ("read upper judge", ("cup", "SUN"), "yes"),
    ],
)
def test_solve(skills: str, items: tuple[str, ...], target: str) -> None:
    assert solve(frozenset(skills.split()), items) == target


def test_solve_refuses_items_that_no_skill_chooses_from() -> None:
    with pytest.raises(ValueError, match=r"\['upper'\] do not say which of the items \('a', 'b'\)"):
        solve(frozenset({"upper"}), ("a", "b"))


def test_size_and_skills(collection: TaskCollection) -> None:
    assert len(TRAIN) == 27
    assert len(HELD_OUT) == 8
    sizes = [len(task.train) for task in collection.tasks]
    assert max(sizes) >= 10 * min(sizes)
    assert collection.skills is not None
    used = {skill for skills in collection.skills.values() for skill in skills}
    assert used == set(SKILLS)


def test_every_skill_has_its_own_column() -> None:
    columns = {skill: tuple(skill in r.skills for r in TRAIN.values()) for skill in SKILLS}
    assert len(set(columns.values())) == len(SKILLS)


def test_held_out_tasks_are_new_combinations() -> None:
    seen = {(r.skills, r.items) for r in TRAIN.values()}
    assert all((r.skills, r.items) not in seen for r in HELD_OUT.values())
    assert not set(HELD_OUT) & set(TRAIN)


def test_several_templates_of_their_own() -> None:
    templates = [t for r in (*TRAIN.values(), *HELD_OUT.values()) for t in r.templates]
    assert len(set(templates)) == len(templates)
    assert min(len(r.templates) for r in TRAIN.values()) == 4
    for recipe in (*TRAIN.values(), *HELD_OUT.values()):
        for template in recipe.templates:
            fields = re.findall(r"{(\w)}", template)
            assert sorted(fields) == list("ab")[: recipe.n_items], template


def test_no_content_is_in_two_splits(collection: TaskCollection) -> None:
    """Alike for all tasks: a pair of words in one test split is in no training split."""
    where: dict[str, set[str]] = {}
    for task in collection.tasks:
        for split in ("train", "validation", "test"):
            for example in getattr(task, split):
                key = " ".join(sorted(example.input.lower().split()))
                where.setdefault(key, set()).add(split)
    assert len(where) > 10_000
    assert all(len(splits) == 1 for splits in where.values())


def test_no_row_twice(collection: TaskCollection) -> None:
    for task in collection.tasks:
        inputs = [e.input for e in (*task.train, *task.validation, *task.test)]
        assert len(set(inputs)) == len(inputs), task.name


def test_split_ignores_order_and_case() -> None:
    assert split_of(("cup", "SUN")) == split_of(("sun", "cup"))


def test_same_rows_on_every_machine(collection: TaskCollection) -> None:
    assert MixtureSource()().tasks == collection.tasks
    assert MixtureSource(seed=1)().tasks != collection.tasks
    look = next(t for t in collection.tasks if t.name == "plural_backwards").train[0]
    assert look.instruction == 'Write the plural of "mouth" from last letter to first.'
    assert look.target == "shtuom"


def test_judgements_are_balanced(collection: TaskCollection) -> None:
    for task in collection.tasks:
        if "judge" in TRAIN[task.name].skills:
            yes = sum(e.target == "yes" for e in task.train) / len(task.train)
            assert 0.4 < yes < 0.6, (task.name, yes)
            assert {e.options for e in task.test} == {("yes", "no")}


def test_nothing_is_solved_by_copying(collection: TaskCollection) -> None:
    for task in collection.tasks:
        copied = sum(e.target == e.input for e in task.test)
        assert copied == 0, task.name


def test_number_pairs_are_the_reserved_ones(collection: TaskCollection) -> None:
    pairs = [
        tuple(map(int, e.input.split()))
        for task in collection.tasks
        if TRAIN[task.name].items == "number" and TRAIN[task.name].n_items == 2
        for e in task.train
    ]
    assert len(pairs) > 1000
    assert all(is_reserved(a, b) for a, b in pairs)


def test_no_noun_is_another_ones_plural() -> None:
    assert not set(NOUNS) & PLURALS
    assert plural("bus") == "buses"


def test_size_scales(collection: TaskCollection) -> None:
    small = MixtureSource(size=0.1)()
    sizes = {t.name: len(t.train) for t in collection.tasks}
    assert {t.name: len(t.train) for t in small.tasks}["last_seen"] == sizes["last_seen"] // 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "test"}, r"tasks='test' is no set of the mixture: use train, held_out or judge"),
        ({"size": -0.5}, r"size=-0.5 must be positive"),
        ({"n_validation": 0}, r"n_validation=0 must be positive"),
        ({"n_test": -3}, r"n_test=-3 must be positive"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureSource(**arguments)  # pyright: ignore[reportArgumentType]
