"""Routers by task id that learn: Polytropon's, and C-Poly's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.routers.base import Ids, Router, Weights, normalise, required
from polylab.poly.routers.rows import rows_of
from polylab.poly.routers.sampling import Sampler

__all__ = ["CLOSED", "CPolyRouter", "TaskRouter"]

CLOSED = -40.0
"""Logit of a gate that is shut: in float32 its sigmoid changes no sum of gates."""


class TaskRouter(Router):
    """`w = z / sum_s z` with a learned logit for each task, head and skill.

    In evaluation `z = sigmoid(Z)`; in training the `sampler` draws z around it, for each example or
    (`noise_per_task`) once for all examples of a task in the batch. Polytropon
    (https://arxiv.org/abs/2202.13914); heads as in MHR
    (https://arxiv.org/abs/2211.03831).
    """

    def __init__(
        self,
        n_tasks: int,
        n_skills: int,
        *,
        n_splits: int,
        sampler: Sampler | None,
        noise_per_task: bool = False,
    ) -> None:
        super().__init__()
        self.n_tasks, self.n_skills, self.n_splits = n_tasks, n_skills, n_splits
        self.sampler, self.noise_per_task = sampler, noise_per_task
        self.draws_noise = sampler is not None
        self.module_logits = nn.Parameter(torch.empty(n_tasks, n_splits * n_skills))

    def reset(self) -> None:
        """`Z ~ U(-1e-3, 1e-3)`: almost uniform weights."""
        nn.init.uniform_(self.module_logits, -1e-3, 1e-3)

    def forward(
        self,
        task_ids: Ids | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,  # noqa: ARG002
        *,
        uniform: Float[Tensor, "*batch splits gates"] | None = None,
        sample: bool | None = None,
    ) -> Weights:
        """See `Router.forward`.

        Raises:
            ValueError: If there are no task ids.
        """
        return self._weigh([self], task_ids, uniform, sample)[0]

    @classmethod
    def evaluate(
        cls,
        routers: Sequence[Router],
        task_ids: Ids | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,
        *,
        uniform: Float[Tensor, "routers *batch splits gates"] | None = None,
        sample: bool | None = None,
    ) -> Float[Tensor, "routers *batch splits skills"]:
        """See `Router.evaluate`: all in one operation, unless a subclass or a hook adds to each."""
        is_plain = cls.forward is TaskRouter.forward
        if not is_plain or any(r._forward_hooks or r._forward_pre_hooks for r in routers):
            return super().evaluate(routers, task_ids, input_ids, uniform=uniform, sample=sample)
        first = routers[0]
        assert isinstance(first, TaskRouter)
        return first._weigh(routers, task_ids, uniform, sample)

    def _weigh(
        self,
        routers: Sequence[Router],
        task_ids: Ids | None,
        uniform: Tensor | None,
        sample: bool | None,
    ) -> Float[Tensor, "routers *batch splits skills"]:
        """Weights of `routers`, this one and others that differ from it in their logits only."""
        ids = required(task_ids)
        logits = self._logits(routers, ids)
        sample = self.training if sample is None else sample
        if self.sampler is None or not sample:
            return self._spread(normalise(torch.sigmoid(logits)), ids)
        if uniform is None:
            uniform = self._draw(logits, ids)
        return self._spread(normalise(self.sampler(logits, uniform.to(logits.dtype))), ids)

    def task_tables(self) -> Mapping[str, nn.Parameter]:
        """See `Router.task_tables`."""
        return {"module_logits": self.module_logits}

    def gates(self, task_ids: Ids) -> Weights:
        """`sigmoid(Z)` of the given tasks."""
        return self._spread(torch.sigmoid(self._logits([self], task_ids)), task_ids)[0]

    @classmethod
    def all_gates(
        cls, routers: Sequence[Router], task_ids: Ids
    ) -> Float[Tensor, "routers *batch splits skills"] | None:
        """See `Router.all_gates`: in one operation, unless a subclass has gates of its own."""
        if cls.gates is not TaskRouter.gates:
            return super().all_gates(routers, task_ids)
        first = routers[0]
        assert isinstance(first, TaskRouter)
        return first._spread(torch.sigmoid(first._logits(routers, task_ids)), task_ids)

    def copy_from(self, old: Router) -> None:
        """Old rows keep their logits; new skills are shut for old tasks, whose weights stay."""
        assert isinstance(old, TaskRouter)
        _copy_logits(old.module_logits, self.module_logits, n_splits=self.n_splits)

    @torch.no_grad()
    def start_tasks(self, first: int, like: int | str) -> None:
        """See `Router.start_tasks`: the mean is that of the normalised weights of all old tasks."""
        (logits,) = self._logits([self], torch.arange(first, device=self.module_logits.device))
        if like != "mean":
            self._set_rows(first, logits[int(like)])
            return
        gates = torch.sigmoid(logits)
        mean = normalise(gates).mean(0)  # q g
        # gates in proportion to it, as open as those of the old tasks are on average
        open_gates = gates.sum(-1, keepdim=True).mean(0)
        scale = torch.minimum(open_gates, 0.999 / mean.amax(-1, keepdim=True))
        self._set_rows(first, torch.logit(mean * scale))

    def _set_rows(self, first: int, row: Float[Tensor, "splits gates"]) -> None:
        self.module_logits[first:] = row.flatten().to(self.module_logits)

    def _logits(
        self, routers: Sequence[Router], task_ids: Ids
    ) -> Float[Tensor, "routers *batch splits gates"]:
        return self._rows([router.module_logits for router in routers], task_ids)

    def _rows(
        self, tables: Sequence[Any], task_ids: Ids
    ) -> Float[Tensor, "routers *batch splits gates"]:
        rows = rows_of([table.to(task_ids.device) for table in tables], task_ids)
        logits = rows.unflatten(-1, (self.n_splits, -1))
        # A sum of 16-bit gates underflows where one of fp32 does not.
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _spread(
        self,
        weights: Float[Tensor, "*rows splits gates"],
        task_ids: Ids,  # noqa: ARG002
    ) -> Float[Tensor, "*rows splits skills"]:
        """From gates to skills of the bank: here the same."""
        return weights

    def _draw(self, logits: Float[Tensor, "routers *batch splits gates"], task_ids: Ids) -> Tensor:
        """Router by router, in the order in which layers by themselves would draw."""
        if task_ids.ndim == 1 and not self.noise_per_task:
            return torch.rand_like(logits)
        # Packed rows: the tokens of one row and task are one example, and share its noise.
        n_rows = 1 if self.noise_per_task else len(task_ids)
        shape = (len(logits), n_rows, self.n_tasks, *logits.shape[-2:])
        drawn = torch.rand(shape, dtype=logits.dtype, device=logits.device)
        if self.noise_per_task:
            return drawn[:, 0, task_ids]
        return drawn[:, torch.arange(n_rows, device=logits.device)[:, None], task_ids]


class CPolyRouter(TaskRouter):
    """`n_shared` skills of all tasks beside `n_private` ones of each task, normalised together.

    C-Poly (https://arxiv.org/abs/2312.03248). The bank holds the shared skills, then
    the private ones of task 0, of task 1, ...; a task's weight of another task's private skills is
    exactly 0. The joint normalisation is ours: the paper's text does not settle it.
    """

    uniform_needs_task_ids = True

    def __init__(
        self,
        n_tasks: int,
        n_shared: int,
        *,
        n_private: int,
        n_splits: int,
        sampler: Sampler | None,
        noise_per_task: bool = False,
    ) -> None:
        super().__init__(
            n_tasks, n_shared, n_splits=n_splits, sampler=sampler, noise_per_task=noise_per_task
        )
        self.n_shared, self.n_private = n_shared, n_private
        self.n_skills = n_shared + n_tasks * n_private
        self.private_logits = nn.Parameter(torch.empty(n_tasks, n_splits * n_private))

    @property
    def n_gates(self) -> int:
        """A task's own skills: shared and private."""
        return self.n_shared + self.n_private

    def reset(self) -> None:
        """All logits near 0: a task starts with equal weights of the skills it may use."""
        super().reset()
        nn.init.uniform_(self.private_logits, -1e-3, 1e-3)

    def uniform(
        self, task_ids: Ids | None, like: Float[Tensor, "*rows splits skills"]
    ) -> Float[Tensor, "*shape splits skills"]:
        """Equal weights of the shared skills and the task's private ones."""
        ids = required(task_ids)
        ones = like.new_full((*ids.shape, self.n_splits, self.n_gates), 1 / self.n_gates)
        return self._spread(ones, ids)

    def task_tables(self) -> Mapping[str, nn.Parameter]:
        """See `Router.task_tables`."""
        return {**super().task_tables(), "private_logits": self.private_logits}

    def copy_from(self, old: Router) -> None:
        """As `TaskRouter`, for both tables."""
        assert isinstance(old, CPolyRouter)
        super().copy_from(old)
        _copy_logits(old.private_logits, self.private_logits, n_splits=self.n_splits)

    def _set_rows(self, first: int, row: Float[Tensor, "splits gates"]) -> None:
        shared, private = row.split([self.n_shared, self.n_private], dim=-1)
        super()._set_rows(first, shared)
        self.private_logits[first:] = private.flatten().to(self.private_logits)

    def _logits(
        self, routers: Sequence[Router], task_ids: Ids
    ) -> Float[Tensor, "routers *batch splits gates"]:
        private = self._rows([router.private_logits for router in routers], task_ids)
        return torch.cat([super()._logits(routers, task_ids), private], dim=-1)

    def _spread(
        self, weights: Float[Tensor, "*rows splits gates"], task_ids: Ids
    ) -> Float[Tensor, "*rows splits skills"]:
        shared, private = weights.split([self.n_shared, self.n_private], dim=-1)
        own = self.n_private * task_ids[..., None] + torch.arange(
            self.n_private, device=task_ids.device
        )  # *batch p
        columns = own[..., None, :].expand(private.shape)
        empty = private.new_zeros(*private.shape[:-1], self.n_skills - self.n_shared)
        return torch.cat([shared, empty.scatter(-1, columns, private)], dim=-1)


@torch.no_grad()
def _copy_logits(old: Tensor, new: Tensor, *, n_splits: int) -> None:
    rows = old.unflatten(1, (n_splits, -1)).to(new)
    into = new.unflatten(1, (n_splits, -1))
    into[: len(rows)] = CLOSED
    into[: len(rows), :, : rows.shape[-1]] = rows
