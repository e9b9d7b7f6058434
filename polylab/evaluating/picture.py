"""The figure of a study: the knock-out matrix beside the allocations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polylab.evaluating.scores import LOSS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polylab.evaluating.study import Study

__all__ = ["draw", "in_words"]


def draw(study: Study) -> Figure:
    """See `Study.figure`."""
    from polylab.callbacks.figures import draw_knockout

    if study.allocation is None or not study.skills:
        why = study.note or "no drop:SKILL was among the routings"
        raise ValueError(f"there is no knock-out to draw: {why}")
    skills, allocation = study.skills, study.allocation
    tasks = len(study.effects.tasks)
    pearson, spearman, cells = study.correlations()
    return draw_knockout(
        study.gain(),
        allocation.relative[:, skills],
        tasks=study.effects.tasks,
        skills=[str(k) for k in skills],
        title=f"What {tasks} tasks lose when a skill is taken away",
        shown=[
            f"{in_words(study.cell_metric)} · with the allocation: Pearson {_number(pearson)}, "
            f"Spearman {_number(spearman)} over {cells:,} cells",
            f"aligned skills, agreement {_number(allocation.agreement)} · {study.n_examples:,} "
            "examples · the other skills share the weight of the one taken away",
        ],
        order=allocation.order,
    )


def in_words(metric: str) -> str:
    """The metric's name; of the loss, what is better when higher."""
    return "log-likelihood per token" if metric == LOSS else metric


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.2f}"
