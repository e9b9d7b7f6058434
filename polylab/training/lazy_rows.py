"""Adam that steps only the router rows of the tasks that were in the batches: `optim.router=lazy`.

A dense step moves every row of every router, also by the momentum of tasks that are not there, and
its cost grows with the tasks. Here the tables of all routers lie side by side in one storage, and
the present rows of all are stepped in a few operations, whatever the numbers of layers and tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from polylab.poly.routers import Router
from polylab.poly.routers.rows import side_by_side

__all__ = ["LazyRows", "task_tables"]


def task_tables(model: nn.Module) -> list[list[nn.Parameter]]:
    """The trainable tables of tasks in the model's routers, those that are alike together."""
    alike: dict[tuple, list[nn.Parameter]] = {}
    for router in model.modules():
        if isinstance(router, Router):
            for name, table in router.task_tables().items():
                if table.requires_grad:
                    key = (name, table.shape, table.dtype, table.device)
                    alike.setdefault(key, []).append(table)
    return [*alike.values()]


class LazyRows(torch.optim.Optimizer):
    """Lazy Adam for tables of tasks, beside an Adam or AdamW for all other parameters.

    Rows of tasks that were in no batch since the last step keep their bits and their moments. A row
    counts its own steps, by which its moments are corrected, so that one which is always present
    moves as under dense Adam.

    Args:
        dense: An Adam or AdamW of all parameters, whose groups this optimiser takes over. Its step
            is used for what is no table. Groups of tables have no weight decay.
        tables: Tables `[tasks, ...]`, those of one shape, dtype and device together.
    """

    def __init__(
        self, dense: torch.optim.Optimizer, tables: Iterable[Sequence[nn.Parameter]]
    ) -> None:
        super().__init__(dense.param_groups, dense.defaults)
        self._dense = dense
        self._tables = [_Tables(alike) for alike in tables]
        lazy = {id(p): alike for alike in self._tables for p in alike.parameters}
        self._others: list[list[nn.Parameter]] = []
        for index, group in enumerate(self.param_groups):
            self._others.append([p for p in group["params"] if id(p) not in lazy])
            for parameter in group["params"]:
                if id(parameter) in lazy:
                    assert not group["weight_decay"]
                    lazy[id(parameter)].group = index
        self._task_ids: Tensor | None = None
        for alike in self._tables:
            alike.lay_out(self.state)

    def mark(self, task_ids: Int64[Tensor, "*batch"]) -> None:
        """Say which tasks were in the batches since the last step: all of them, in one call.

        On several ranks those of all ranks, so that all step the same rows.
        """
        self._task_ids = task_ids.flatten()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step the rows of the marked tasks, and all parameters that are no tables.

        Args:
            closure: Evaluates the model, and its result is returned; it may call `mark`.

        Raises:
            RuntimeError: If no tasks have been marked.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_others()
        if self._tables:
            if self._task_ids is None:
                raise RuntimeError(
                    "optim.router=lazy steps the router rows of the tasks in the batch, and none "
                    "have been named since the last step: call optimizer.mark(task_ids) before it."
                )
            for alike in self._tables:
                alike.step(self._task_ids, self.param_groups[alike.group], self.state)
        self._task_ids = None
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimiser's; moments move into storages side by side."""
        super().load_state_dict(state_dict)
        for alike in self._tables:
            alike.lay_out(self.state)

    def _step_others(self) -> None:
        groups = zip(self.param_groups, self._others, strict=True)
        self._dense.state = self.state
        self._dense.param_groups = [{**group, "params": own} for group, own in groups if own]
        self._dense.step()


class _Tables:
    """Tables that are alike, and their Adam state, each in one storage.

    The parameters, and what the optimiser's `state` holds of them, are views.
    """

    group: int  # of the parameters, in `param_groups`

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = [*parameters]

    def lay_out(self, state: dict[Any, Any]) -> None:
        """Move parameters and state side by side, wherever they are; new state is 0."""
        parameters, first = self.parameters, self.parameters[0]
        self.values = torch.stack([p.data for p in parameters])
        self.mean, self.square = (
            torch.stack(
                [state[p][key].to(p) if state[p] else torch.zeros_like(p.data) for p in parameters]
            )
            for key in ("exp_avg", "exp_avg_sq")
        )
        none = torch.zeros(len(first), device=first.device)
        self.steps = torch.stack(
            [state[p]["step"].to(none).expand_as(none) if state[p] else none for p in parameters]
        )
        for place, parameter in enumerate(parameters):
            parameter.data = self.values[place]
            state[parameter] = {
                "step": self.steps[place],
                "exp_avg": self.mean[place],
                "exp_avg_sq": self.square[place],
            }

    def step(self, ids: Int64[Tensor, " n"], group: dict[str, Any], state: dict[Any, Any]) -> None:
        """Step the rows of the tasks `ids`."""
        now = side_by_side(self.parameters)
        if now is None or now.data_ptr() != self.values.data_ptr():
            self.lay_out(state)  # a parameter has been given other memory, as by `model.to`
        rows, is_present = _unique(ids.to(self.values.device), self.values.shape[1])
        grads: list[Any] = [p.grad for p in self.parameters]
        if any(grad is None for grad in grads):  # layers that no forward has reached
            for place, grad in enumerate(grads):
                if grad is not None:
                    own = slice(place, place + 1)
                    self._step_rows(own, rows, is_present, grad[None].index_select(1, rows), group)
            return
        grad = side_by_side(grads)
        if grad is None:
            grad = torch.stack([grad.index_select(0, rows) for grad in grads])
        else:
            grad = grad.index_select(1, rows)
        self._step_rows(slice(None), rows, is_present, grad, group)

    def _step_rows(
        self,
        own: slice,
        rows: Int64[Tensor, " k"],
        is_present: Bool[Tensor, " k"],
        grad: Float[Tensor, "tables k *cells"],
        group: dict[str, Any],
    ) -> None:
        """Adam (https://arxiv.org/abs/1412.6980), rounded as torch's, on some rows of tables."""
        tensors = [t[own] for t in (self.values, self.mean, self.square, self.steps)]
        old = [tensor.index_select(1, rows) for tensor in tensors]
        value, mean, square, steps = old
        beta1, beta2 = group["betas"]
        mean = mean.lerp(grad, 1 - beta1)
        square = (square * beta2).addcmul_(grad, grad, value=1 - beta2)
        steps = steps + 1
        count = steps.double().view(*steps.shape, *(1 for _ in value.shape[2:]))
        rate = (group["lr"] / (1 - beta1**count)).to(value.dtype)
        root = (1 - beta2**count).sqrt().to(value.dtype)
        value = value - (rate * mean).div_((square.sqrt() / root).add_(group["eps"]))
        new = (value, mean, square, steps)
        for tensor, before, after in zip(tensors, old, new, strict=True):
            kept = is_present.view(1, -1, *(1 for _ in after.shape[2:]))
            tensor.index_copy_(1, rows, torch.where(kept, after, before))


def _unique(
    ids: Int64[Tensor, " n"], n_tasks: int
) -> tuple[Int64[Tensor, " k"], Bool[Tensor, " k"]]:
    """Distinct rows that hold all ids, and which of them do: k = min(n, n_tasks).

    A shape that depends on the ids would make the host wait for the device.
    """
    is_present = torch.zeros(n_tasks, dtype=torch.uint8, device=ids.device).index_fill_(0, ids, 1)
    rows = torch.argsort(is_present, descending=True, stable=True)[: len(ids)]
    return rows, is_present[rows].bool()
