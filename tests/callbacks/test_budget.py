"""A share of the time, whatever a single thing takes."""

import gc

import pytest

from polylab.callbacks import budget
from polylab.callbacks.budget import TimeBudget
from polylab.callbacks.collecting import uncollected
from tests.callbacks.tiny import Clock


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


@pytest.mark.parametrize("step", [0.05, 0.4, 7.0])
@pytest.mark.parametrize("costs", [(1.0,), (0.5, 2.0, 1.0)])
def test_what_is_spent_stays_within_the_share(clock, step, costs):
    kept, done = TimeBudget(0.01), 0
    with kept.spending():
        clock.wait(costs[0])  # before the time that counts
    kept.begin()
    for look in range(400):
        clock.wait(step * 25)
        if kept.allows:
            with kept.spending():
                clock.wait(costs[done % len(costs)])
            done += 1
        # the next may take longer than the last one, by no more than the longest
        assert kept.spent <= 0.01 * clock.now + max(costs) - min(costs), look
    if step == 7.0:  # there is time for nearly all
        assert done > 390
    else:  # nothing is left out that there was time for
        assert done >= 2
        assert kept.spent >= 0.01 * clock.now - 2 * max(costs)


def test_none_is_no_bound(clock):
    kept = TimeBudget(None)
    for _ in range(3):
        assert kept.allows
        with kept.spending():
            clock.wait(9.0)
    assert (kept.spent, kept.last) == (27.0, 9.0)


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_as_it_was_also_after_an_error(before):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with pytest.raises(KeyError, match="False"), uncollected():
            {}[gc.isenabled()]
        assert gc.isenabled() == before
    finally:
        (gc.enable if was_enabled else gc.disable)()
