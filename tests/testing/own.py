"""polylab's own classes, in the form in which a configuration builds a user's."""

import torch
from torch import nn

from polylab.poly.routers import (
    CPolyRouter,
    GivenRouter,
    InputRouter,
    PrivateRouter,
    RelaxedBernoulli,
    Router,
    StraightThrough,
    TaskRouter,
    UniformRouter,
)

SAMPLERS = {"relaxed": RelaxedBernoulli, "straight": StraightThrough}


class Task(TaskRouter):
    """`poly` and, with n_splits > 1, MHR."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in, *, noise="relaxed", per_task=False):  # noqa: ARG002
        sampler = SAMPLERS[noise]() if noise else None
        super().__init__(
            n_tasks, n_skills, n_splits=n_splits, sampler=sampler, noise_per_task=per_task
        )


class CPoly(CPolyRouter):
    """`c-poly`; of `n_skills` one is each task's own."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in, *, noise="relaxed"):  # noqa: ARG002
        sampler = SAMPLERS[noise]() if noise else None
        shared = n_skills - n_tasks
        super().__init__(n_tasks, shared, n_private=1, n_splits=n_splits, sampler=sampler)


class Input(InputRouter):
    """`mope`."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in, **options):  # noqa: ARG002
        super().__init__(d_in, n_skills, n_splits=n_splits, **options)


class Uniform(UniformRouter):
    """`uniform`; with one skill `shared`."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in):  # noqa: ARG002
        super().__init__(n_skills, n_splits)


class Private(PrivateRouter):
    """`private`, for as many skills as tasks."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in):  # noqa: ARG002
        super().__init__(n_tasks, n_splits)


class Given(GivenRouter):
    """`custom`, with an allocation of its own making."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in):  # noqa: ARG002
        rows = [
            [float(1 + (task * skill) % 4) for skill in range(n_skills)] for task in range(n_tasks)
        ]
        super().__init__(rows, n_splits)


class TaskAndInput(Router):
    """Reads both: a table of tasks, and a linear map of the prompt or of each token."""

    def __init__(self, n_tasks, n_skills, n_splits, d_in, *, reads="prompt"):
        super().__init__()
        self.n_skills, self.n_splits, self.reads = n_skills, n_splits, reads
        self.table = nn.Parameter(torch.empty(n_tasks, n_splits * n_skills))
        self.proj = nn.Linear(d_in, n_splits * n_skills, bias=False)

    def reset(self):
        nn.init.zeros_(self.table)
        nn.init.zeros_(self.proj.weight)

    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):  # noqa: ARG002
        by_task = self.table[task_ids]
        if input_ids.ndim > task_ids.ndim + 1:
            by_task = by_task[:, None]
        logits = by_task + self.proj(input_ids.to(by_task.dtype))
        return torch.softmax(logits.float().unflatten(-1, (self.n_splits, -1)), dim=-1)
