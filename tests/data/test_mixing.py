"""How often each task is drawn: caps, weights, shares of sources."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from polylab.data import DataModule, Example, TaskCollection, TaskData
from polylab.data.mixing import Mixing

SIZES = {"a": 1000, "b": 100, "c": 10, "d": 40}


def collection(shares: dict[str, float] | None = None, **sources: str) -> TaskCollection:
    return TaskCollection(
        [
            TaskData(
                name,
                [Example(f"{name} {i}", str(i)) for i in range(size)],
                source=sources.get(name),
            )
            for name, size in SIZES.items()
        ],
        shares=shares,
    )


@pytest.mark.parametrize(
    ("mixing", "wanted"),
    [
        (Mixing(), [1000, 100, 10, 40]),
        (Mixing(cap=50), [50, 50, 10, 40]),
        (Mixing(temperature=2.0, cap=64), [8, 8, math.sqrt(10), math.sqrt(40)]),
        (Mixing(temperature=math.inf), [1, 1, 1, 1]),
        (Mixing(math.inf, weights={"b": 3.0, "d": 0.5}), [1, 3, 1, 0.5]),
        (Mixing(cap=20, weights={"c": 4.0}), [20, 20, 40, 20]),
    ],
)
def test_the_formula(mixing: Mixing, wanted: list[float]) -> None:
    found = mixing.probabilities(collection())
    assert found == pytest.approx(np.array(wanted) / sum(wanted))


def test_sources_have_their_shares() -> None:
    tasks = collection({"x": 3.0, "y": 1.0}, a="x", b="y", c="x", d="y")
    found = Mixing().probabilities(tasks)
    x, y = 0.75, 0.25
    assert found == pytest.approx([x * 1000 / 1010, y * 100 / 140, x * 10 / 1010, y * 40 / 140])
    found = Mixing(math.inf, weights={"d": 3.0}).probabilities(tasks)
    assert found == pytest.approx([x / 2, y / 4, x / 2, y * 3 / 4])


def test_what_is_drawn(byt5: Any) -> None:
    """In whole passes the counts are the probabilities, up to one row."""
    module = DataModule(
        lambda: collection(),
        byt5,
        is_encoder_decoder=True,
        batch_size=30,
        steps_per_epoch=20,
        cap=100,
        weights={"c": 5.0},
    )
    rows = Counter(int(i) for batch in module.train_dataloader() for i in batch["task_ids"])
    expected = np.array([100, 100, 50, 40]) / 290 * 600
    assert [rows[i] for i in range(4)] == pytest.approx(expected, abs=1)


def test_a_resume_needs_the_same_mix(byt5: Any) -> None:
    def loader(**changes: Any) -> Any:
        module = DataModule(
            lambda: collection(), byt5, is_encoder_decoder=True, batch_size=30, **changes
        )
        return module.train_dataloader()

    first = loader(cap=100)
    next(iter(first))
    state = first.state_dict()
    loader(cap=100).load_state_dict(state)
    other = loader(cap=101)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="cannot resume: probabilities was"):
        next(iter(other))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cap": 0}, r"data\.cap=0 "),
        ({"weights": {"a": 0.0}}, r"data\.weights\.a=0\.0 "),
        ({"weights": {"a": math.nan}}, r"data\.weights\.a=nan "),
        ({"weights": {"a": "big"}}, r"data\.weights\.a=big · a weight must be a number above 0"),
        ({"weights": 5}, r"data\.weights=5 · weights are of tasks"),
        ({"temperature": -1.0}, r"data\.temperature=-1\.0 "),
    ],
)
def test_numbers_that_are_not_valid(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Mixing(**changes)


def test_names_that_are_not_there() -> None:
    tasks = TaskCollection([TaskData("copying", [Example("x", "y")])])
    with pytest.raises(ValueError, match=r"data\.weights\.copyin: .* did you mean copying\?"):
        Mixing(weights={"copyin": 2.0}).probabilities(tasks)
    with pytest.raises(ValueError, match="the sources of 'a', 'b' have no share"):
        collection({"x": 1.0}, c="x", d="x")
