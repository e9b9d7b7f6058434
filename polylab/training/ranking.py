"""Rank classification: which option of an example a model finds the likeliest.

With the mean over tokens as in T-Few (https://arxiv.org/abs/2205.05638, section 3.1), or their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.sharding import is_sharded
from polylab.training.distributed import gather_objects
from polylab.training.losses import example_losses

if TYPE_CHECKING:
    from polylab.poly import PolyModel

__all__ = ["Choices", "RankOptions", "check_rank_options", "option_scores"]

RankOptions = Literal["mean", "sum"]
Choices = dict[str, float]
"""The options of an example with their scores; empty if it has none."""


def check_rank_options(rank_options: str | None) -> None:
    """Accept one of mean and sum, or None.

    Raises:
        ValueError: If it is another word.
    """
    if rank_options is not None and rank_options not in get_args(RankOptions):
        raise ValueError(
            f"module.rank_options={rank_options!r} · valid: {', '.join(get_args(RankOptions))}, "
            "null · choose one of them."
        )


def option_scores(
    model: PolyModel,
    batch: Mapping[str, Any],
    *,
    rank_options: str,
    start: int | None,
    pad: int,
    encoded: Float[Tensor, "batch seq d_model"] | None = None,
) -> list[Choices]:
    """The log-likelihood of every option of every example, the end of the answer included.

    Options are asked as many at a time as the batch has examples. A sharded model is asked as often
    as the rank with the most needs: all ranks must call this equally often.

    Args:
        model: Answers, in evaluation mode.
        batch: Of the data module, for evaluation; its `ranked` part has the options.
        rank_options: `mean` divides by the option's number of tokens, `sum` does not.
        start: As `example_losses`.
        pad: As `example_losses`.
        encoded: As `example_losses`.
    """
    n_rows = len(batch["task_ids"])
    choices: list[Choices] = [{} for _ in range(n_rows)]
    ranked = batch.get("ranked")
    asked = [] if ranked is None else _options(ranked, n_rows)
    if is_sharded(model):
        most = max(gather_objects(len(asked)))
        first = {"rows": torch.zeros(1, dtype=torch.int64), "labels": batch["labels"][:1]}
        asked += [first] * (most - len(asked))
    scores = []
    for part in asked:
        rows = part["rows"]
        inputs = {key: batch[key][rows] for key in ("input_ids", "attention_mask", "task_ids")}
        known = None if encoded is None else encoded[rows]
        found = example_losses(model, {**inputs, **part}, start=start, pad=pad, encoded=known)
        scores.append(-found.losses / (found.tokens if rank_options == "mean" else 1))
    if ranked is not None:
        own, texts = ranked["rows"].tolist(), ranked["texts"]
        values = torch.cat(scores)[: len(own)].tolist()  # what follows is for the other ranks
        for row, same, score in zip(own, texts, values, strict=True):
            choices[row] |= dict.fromkeys(same, score)
    return choices


def _options(ranked: Mapping[str, Any], at_a_time: int) -> list[dict[str, Tensor]]:
    """The batch's options in parts."""
    tensors = {key: value for key, value in ranked.items() if isinstance(value, Tensor)}
    starts = range(0, len(ranked["rows"]), at_a_time)
    return [{k: value[i : i + at_a_time] for k, value in tensors.items()} for i in starts]


def is_right(choices: Choices, references: Sequence[str]) -> float:
    """1.0 if the option with the highest score is a reference, else 0.0.

    Of several with that score all must be: a model that cannot tell options apart knows nothing.
    """
    best = max(choices.values())
    return float(all(text in references for text, score in choices.items() if score == best))
