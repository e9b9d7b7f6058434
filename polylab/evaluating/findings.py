"""What a study found, in sentences."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from polylab.evaluating.picture import in_words
from polylab.evaluating.scores import LOSS
from polylab.evaluating.study import sign

if TYPE_CHECKING:
    from polylab.evaluating.study import Study

__all__ = ["Verdict", "findings", "judge", "margin", "verdict"]

MARGIN = 0.01  # of a score from 0 to 1
LOSS_MARGIN = 0.05  # share of the learned loss
_ENOUGH = 5  # examples of a task: of one, every resample is the same
_CLEAR, _WEAK = 0.5, 0.2  # correlations


class Verdict(Enum):
    """What a changed routing does to a metric, by the interval of the change."""

    SAME = "all of it within the margin"
    WORSE = "below 0, and not all of it within the margin"
    BETTER = "above 0, and not all of it within the margin"
    OPEN = "it holds 0, and more than the margin: too few examples to say"


def margin(metric: str, learned: float) -> float:
    """A change below it counts as none: 0.01 of a score, 5 % of the learned loss."""
    return LOSS_MARGIN * learned if metric == LOSS else MARGIN


def verdict(study: Study, routing: str, metric: str) -> Verdict:
    """Of a routing, by one metric."""
    at = study.routings.index(routing), study.metrics.index(metric)
    change, bound = study.effects.change, margin(metric, float(study.effects.macro.value[0, at[1]]))
    low, high = sorted(sign(metric) * float(x[at]) for x in (change.low, change.high))
    if -bound <= low and high <= bound:
        return Verdict.SAME
    if low > 0:
        return Verdict.BETTER
    return Verdict.WORSE if high < 0 else Verdict.OPEN


def judge(study: Study, routing: str) -> tuple[Verdict, bool]:
    """Of a routing, by the study's metric; where that shows nothing, by the loss.

    The loss moves where no answer does yet: a score can stay at 0.

    Returns:
        The verdict, and whether the loss alone shows it.
    """
    found, by_loss = (verdict(study, routing, metric) for metric in (study.metric, LOSS))
    if found in (Verdict.WORSE, Verdict.BETTER) or found is by_loss:
        return found, False
    moved = by_loss in (Verdict.WORSE, Verdict.BETTER)
    return (by_loss, True) if moved else (Verdict.OPEN, False)


_SAYS: dict[str, dict[Verdict, str]] = {
    "shuffled": {
        Verdict.SAME: "The routing is not used: with another task's allocation nothing changes",
        Verdict.WORSE: "The routing is used: with another task's allocation tasks are worse",
        Verdict.BETTER: "The routing misleads: with another task's allocation tasks are better",
        Verdict.OPEN: "Whether the routing is used cannot be told from these examples",
    },
    "uniform": {
        Verdict.SAME: "The average of all skills does as well as the learned allocations",
        Verdict.WORSE: "The average of all skills does worse than the learned allocations",
        Verdict.BETTER: "The average of all skills does better than the learned allocations",
        Verdict.OPEN: "Whether the average of all skills does as well cannot be told",
    },
    "rounded": {
        Verdict.SAME: "Skills that are on or off do as well as the learned shares",
        Verdict.WORSE: "Skills that are on or off do worse: the learned shares matter",
        Verdict.BETTER: "Skills that are on or off do better than the learned shares",
        Verdict.OPEN: "Whether skills could be just on or off cannot be told",
    },
    "top1": {
        Verdict.SAME: "The one strongest skill of each layer does as well as the mix",
        Verdict.WORSE: "The one strongest skill of each layer does worse: skills are mixed",
        Verdict.BETTER: "The one strongest skill of each layer does better than the mix",
        Verdict.OPEN: "Whether the strongest skill of each layer is enough cannot be told",
    },
}
_ROWS_ROUTED = "another example's"  # what an input router is given instead of another task's


def findings(study: Study) -> list[str]:
    """What was found, a sentence each."""
    said = _caution(study)
    for routing, words in _SAYS.items():
        if routing in study.routings:
            found, by_loss = judge(study, routing)
            sentence = words[found] + (", by the loss alone" if by_loss else "")
            if study.by_input:
                sentence = sentence.replace("another task's", _ROWS_ROUTED)
            said.append(f"{sentence}: {_evidence(study, routing)}.")
    if study.skills:
        said += [_spared(study), _correlation(study)]
    elif study.note:
        said.append(f"No knock-out: {study.note}")
    return said


def _caution(study: Study) -> list[str]:
    """What to know of the intervals before they are read."""
    each = study.n_examples / len(study.effects.tasks)
    if each >= _ENOUGH:
        return []
    return [
        f"The intervals are too narrow: they resample each task's examples, of which there are "
        f"{each:.3g} on average; {_ENOUGH} or more are needed."
    ]


def _evidence(study: Study, routing: str) -> str:
    """The change of the metric, and of the loss, which often shows more."""
    metrics = dict.fromkeys([study.metric, LOSS])
    return ", ".join(f"{metric} {_change(study, routing, metric)}" for metric in metrics)


def _change(study: Study, routing: str, metric: str) -> str:
    at, change = (study.routings.index(routing), study.metrics.index(metric)), study.effects.change
    return f"{change.value[at]:+.3f} ({change.low[at]:+.3f} to {change.high[at]:+.3f})"


def _spared(study: Study) -> str:
    """Which skills nobody misses."""
    verdicts = {k: judge(study, f"drop:{k}")[0] for k in study.skills}
    spared = [str(k) for k, found in verdicts.items() if found in (Verdict.SAME, Verdict.BETTER)]
    missed = [str(k) for k, found in verdicts.items() if found is Verdict.WORSE]
    left = len(verdicts) - len(missed) - len(spared)
    rest = f", of {left} it cannot be told" if left else ""
    return (
        f"Of the skills taken away one at a time, {_named(missed)} of {len(verdicts)} are missed "
        f"and {_named(spared)} are not{rest}."
    )


def _named(skills: list[str]) -> str:
    return f"{len(skills)} ({', '.join(skills)})" if skills else "none"


def _correlation(study: Study) -> str:
    if study.allocation is None:
        return "There is no allocation to compare the knock-out with."
    pearson, spearman, cells = study.correlations()
    if pearson != pearson:
        return "Allocation and loss of score cannot be compared: one is the same everywhere."
    missed = any(judge(study, f"drop:{k}")[0] is Verdict.WORSE for k in study.skills)
    meaning = _meaning(min(pearson, spearman)) if missed else "No skill is missed over all tasks"
    return (
        f"{meaning}: allocation against lost {in_words(study.cell_metric)}"
        f", Pearson {pearson:.2f}, Spearman {spearman:.2f} over {cells:,} cells of task and skill."
    )


def _meaning(correlation: float) -> str:
    if correlation >= _CLEAR:
        return "Tasks miss the skills that they weigh most"
    if correlation >= _WEAK:
        return "Tasks miss somewhat more the skills that they weigh most"
    return (
        "Tasks do not miss more the skills that they weigh most (others stand in for them, or the "
        "map means little)"
    )
