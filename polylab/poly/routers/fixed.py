"""Routers by task id that learn nothing: shared, uniform, private, and a given matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.routers.base import Ids, Router, Weights, required

__all__ = ["GivenRouter", "PrivateRouter", "UniformRouter"]


class UniformRouter(Router):
    """Every skill with weight `1 / n_skills`, for all tasks.

    With one skill a plain LoRA (`shared`). With more, the average of the skills: the released
    code's form of Poly-mu and MHR-mu (https://arxiv.org/abs/2211.03831).
    """

    needs_task_ids = False

    def __init__(self, n_skills: int, n_splits: int) -> None:
        super().__init__()
        self.n_skills, self.n_splits = n_skills, n_splits
        row = torch.full((1, n_splits, n_skills), 1 / n_skills)
        self.register_buffer("row", row, persistent=False)

    def reset(self) -> None:
        """Nothing to draw."""

    def forward(
        self,
        task_ids: Ids | None = None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits gates"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> Weights:
        """A single row without `task_ids`, else one for each."""
        row = self.get_buffer("row")
        return row if task_ids is None else row[0].expand(*task_ids.shape, -1, -1)

    def copy_from(self, old: Router) -> None:
        """Nothing is learnt."""


class PrivateRouter(Router):
    """One skill for each task, chosen by its id."""

    is_hard = True

    def __init__(self, n_tasks: int, n_splits: int) -> None:
        super().__init__()
        self.n_skills, self.n_splits = n_tasks, n_splits

    def reset(self) -> None:
        """Nothing to draw."""

    def forward(
        self,
        task_ids: Ids | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits gates"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> Weights:
        """One-hot rows, the same in every head.

        Raises:
            ValueError: If there are no task ids.
        """
        rows = nn.functional.one_hot(required(task_ids), self.n_skills).float()
        return rows[..., None, :].expand(*rows.shape[:-1], self.n_splits, -1)

    def copy_from(self, old: Router) -> None:
        """Nothing is learnt."""


class GivenRouter(Router):
    """Rows of a given tasks x skills matrix, normalised, the same in every head.

    The `Expert` baseline of https://arxiv.org/abs/2202.13914: skills that a person
    assigned. The matrix is part of the configuration, not of the weights.
    """

    def __init__(self, allocation: Sequence[Sequence[float]], n_splits: int) -> None:
        super().__init__()
        matrix = torch.tensor(allocation, dtype=torch.float32)
        self.n_skills, self.n_splits = matrix.shape[1], n_splits
        rows = matrix / matrix.sum(1, keepdim=True)
        self.register_buffer("rows", rows, persistent=False)

    def reset(self) -> None:
        """Nothing to draw."""

    def forward(
        self,
        task_ids: Ids | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits gates"] | None = None,  # noqa: ARG002
        sample: bool | None = None,  # noqa: ARG002
    ) -> Weights:
        """See `Router.forward`.

        Raises:
            ValueError: If there are no task ids.
        """
        rows = self.get_buffer("rows")[required(task_ids)]
        return rows[..., None, :].expand(*rows.shape[:-1], self.n_splits, -1)

    def copy_from(self, old: Router) -> None:
        """Nothing is learnt."""
