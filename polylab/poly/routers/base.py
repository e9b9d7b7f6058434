"""What every router is: from a task id, or from the input, to the weights of a layer's skills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["EPS", "Router", "normalise", "required"]

EPS = 1e-12

Weights = Float[Tensor, "*batch splits skills"]
Ids = Int64[Tensor, "*batch"]


class Router(nn.Module, ABC):
    """Chooses the weights of the skills for each example; the weights of one head sum to 1.

    A class of your own is named in the configuration, `router: {_target_: my_lab.Mine, ...}`, and
    built as `Mine(n_tasks=..., n_skills=..., n_splits=..., d_in=..., **the other keys)`. Check it
    with `polylab.testing.check_router`.
    """

    needs_task_ids: bool = True
    """False: `forward` reads no `task_ids`."""
    reads: str | None = None
    """What `forward` gets as `input_ids`: `prompt`, each row's mean prompt token `[batch, d_in]`;
    `tokens`, the layer's whole input `[batch, seq, d_in]`; None, nothing."""
    draws_noise: bool = False
    """True: weights are random in training."""
    is_hard: bool = False
    """True: the weights are one-hot, so a skill may be indexed instead of mixed."""
    uniform_needs_task_ids: bool = False
    """True: `uniform` differs between tasks."""
    n_skills: int
    n_splits: int

    @abstractmethod
    def reset(self) -> None:
        """Draw the initial parameters."""

    @abstractmethod
    def forward(
        self,
        task_ids: Ids | None,
        input_ids: Float[Tensor, "batch *seq d_in"] | None = None,
        *,
        uniform: Float[Tensor, "*batch splits gates"] | None = None,
        sample: bool | None = None,
    ) -> Weights:
        """`weights[b, q, s]`, normalised over the skills `s` of each head `q`.

        Args:
            task_ids: One id per example, or per token of packed rows.
            input_ids: What `reads` says (the argument's name is PEFT's).
            uniform: Noise in (0, 1) to use; None draws it from torch's global generator.
            sample: Whether to add noise; None means in training only.
        """

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
        """`forward` of several routers of this class, one adapter's, with the same arguments.

        Where a kind of router can, it does so in one operation for all. Noise that is drawn from
        torch's generator is drawn router by router.
        """
        found = []
        for place, router in enumerate(routers):
            ids, hidden, noise = task_ids, input_ids, None if uniform is None else uniform[place]
            own = [*router.parameters(), *router.buffers()]  # torch 2.11 compiles no state_dict()
            if own:
                device = own[0].device
                ids, hidden, noise = [
                    x if x is None else x.to(device) for x in (ids, hidden, noise)
                ]
            found.append(router(ids, hidden, uniform=noise, sample=sample))
        return torch.stack([weights.to(found[0].device) for weights in found])

    @property
    def n_gates(self) -> int:
        """Random numbers that one example needs in each head."""
        return self.n_skills

    def task_tables(self) -> Mapping[str, nn.Parameter]:
        """Parameters with a row for each task, of which a call reads those of its tasks only.

        By name; the optimiser may leave the other rows alone (`optim.router=lazy`).
        """
        return {}

    def gates(self, task_ids: Ids) -> Weights | None:  # noqa: ARG002
        """`z = sigmoid(logits)` where the weights are normalised gates of a task, else None."""
        return None

    @classmethod
    def all_gates(
        cls, routers: Sequence[Router], task_ids: Ids
    ) -> Float[Tensor, "routers *batch splits skills"] | None:
        """`gates` of several routers of this class and one size; None where one has none."""
        found = [router.gates(task_ids) for router in routers]
        known = [gates for gates in found if gates is not None]
        return torch.stack(known) if len(known) == len(found) else None

    def uniform(
        self,
        task_ids: Ids | None,  # noqa: ARG002
        like: Float[Tensor, "*rows splits skills"],
    ) -> Float[Tensor, "*shape splits skills"]:
        """Equal weights of all skills that these tasks may use, that broadcast to `like`."""
        return torch.full_like(like, 1 / like.shape[-1])

    def copy_from(self, old: Router) -> None:
        """Take over what a smaller router (fewer tasks or skills) has learnt, exactly.

        Raises:
            ValueError: If this kind of router does not know how.
        """
        raise ValueError(
            f"{type(self).__name__} cannot take over a {type(old).__name__}: define copy_from(old) "
            "on it to let adapters grow by tasks or skills."
        )

    def start_tasks(self, first: int, like: int | str) -> None:  # noqa: ARG002
        """Give the tasks from id `first` on the allocation of task `like`, or the `mean` one.

        Raises:
            ValueError: If this kind of router has no allocation to start from.
        """
        raise ValueError(
            f"{type(self).__name__} has no learned allocation for new tasks to start from "
            f"(like={like!r}): give like='fresh'."
        )


def normalise(gates: Weights) -> Weights:
    """`gates / (sum_s gates + EPS)`; a head whose gates are all 0 keeps zeros."""
    return gates / (gates.sum(-1, keepdim=True) + EPS)


def required(task_ids: Ids | None) -> Ids:
    """The ids.

    Raises:
        ValueError: If there are none.
    """
    if task_ids is None:
        raise ValueError(
            "task_ids=None: this adapter is routed by task. Pass an int64 tensor [batch]."
        )
    return task_ids
