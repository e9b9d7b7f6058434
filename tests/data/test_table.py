"""Compact columns hold what the examples hold."""

import gc
import random
import tracemalloc

import pyarrow as pa
import pytest

from polylab.data import Example, ExampleTable, TaskCollection, TaskData

EXAMPLES = [
    Example("one", "1"),
    Example("", "two words", options=("two words", "no")),
    Example("dré \U0001f600\x85\n", "3", references=("3", "drei", "")),
    Example("four", "4", instruction="Do it.\nfour"),
    Example("five", "5", references=("V",), options=("", "b", "c"), instruction=""),
    Example("a lone \ud800 surrogate", "\udfff"),
]


def test_examples_come_back_as_they_were() -> None:
    table = ExampleTable(EXAMPLES)
    assert list(table) == EXAMPLES
    assert [table[i] for i in range(len(table))] == EXAMPLES
    assert [table.input_at(i) for i in range(6)] == [example.input for example in EXAMPLES]
    assert [table.target_at(i) for i in range(6)] == [example.target for example in EXAMPLES]


def test_a_table_is_a_sequence() -> None:
    table = ExampleTable(iter(EXAMPLES))
    assert len(table) == 6
    assert table[-1] == EXAMPLES[-1]
    assert table[1:4] == EXAMPLES[1:4]
    assert table[::-2] == EXAMPLES[::-2]
    assert EXAMPLES[2] in table
    assert table == ExampleTable(EXAMPLES)
    assert table != EXAMPLES[:5]
    assert table != [*EXAMPLES[:5], EXAMPLES[0]]
    assert table != 6
    assert repr(table[:1]) == f"ExampleTable({EXAMPLES[:1]!r})"
    assert not ExampleTable()


@pytest.mark.parametrize("row", [6, -7])
def test_a_row_that_is_not_there(row: int) -> None:
    with pytest.raises(IndexError):
        ExampleTable(EXAMPLES)[row]


def test_a_collection_holds_tables() -> None:
    (task,) = TaskCollection([TaskData("a", EXAMPLES[:3], test=EXAMPLES[3:])]).tasks
    assert task == TaskData("a", ExampleTable(EXAMPLES[:3]), ExampleTable(), EXAMPLES[3:])
    assert isinstance(task.train, ExampleTable)
    assert task.compact().train is task.train


def _rows(n: int) -> list[Example]:
    rng = random.Random(0)
    return [Example(f"{rng.random()} {i}" * 4, f"answer {i}", options=("a", "b")) for i in range(n)]


def test_a_table_takes_little_more_than_its_text() -> None:
    """Offsets of 8 bytes: input, target, two options and their tuple, references; and null bits."""
    gc.collect()
    tracemalloc.start()
    try:
        before = pa.total_allocated_bytes()
        table = ExampleTable(_rows(5_000))
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    text = sum(len(example.input) + len(example.target) + 2 for example in table)
    assert text < used < text + 5_000 * 7 * 8 * 1.2


def test_a_table_has_no_object_per_row() -> None:
    """Reference counts that change would copy the pages which worker processes share."""
    small, large = (len(_reachable(ExampleTable(_rows(n)))) for n in (1_000, 10_000))
    assert small == large


def _reachable(start: object) -> set[int]:
    found: set[int] = set()
    ahead = [start]
    while ahead:
        item = ahead.pop()
        if id(item) not in found and not isinstance(item, type):
            found.add(id(item))
            ahead.extend(gc.get_referents(item))
    return found
