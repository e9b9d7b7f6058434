"""The check of users' routers: polylab's own pass, and each broken promise is named."""

import random

import pytest
import torch
from torch import nn

from polylab.poly.routers import Router
from polylab.testing import check_router
from tests.testing import own
from tests.testing.broken import fails

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (own.Task, {}),
        (own.Task, {"noise": None, "n_splits": 1}),
        (own.Task, {"noise": "straight", "per_task": True}),
        (own.CPoly, {}),
        (own.Input, {}),
        (own.Input, {"top_k": 2, "gating": "sigmoid"}),
        (own.Input, {"per_token": True}),
        (own.Uniform, {}),
        (own.Uniform, {"n_skills": 1}),
        (own.Private, {"n_tasks": 5}),
        (own.Given, {}),
        (own.TaskAndInput, {}),
        (own.TaskAndInput, {"reads": "tokens"}),
    ],
    ids=str,
)
def test_routers_that_pass(cls, options):
    state = torch.get_rng_state()
    check_router(cls, **options)
    assert torch.equal(torch.get_rng_state(), state)


class Base(Router):
    """A router by task that keeps every promise; each class below breaks one."""

    def __init__(self, n_tasks: int, n_skills: int, n_splits: int, d_in: int) -> None:
        super().__init__()
        self.n_tasks, self.n_skills, self.n_splits, self.d_in = n_tasks, n_skills, n_splits, d_in
        self.table = nn.Parameter(torch.empty(n_tasks, n_splits, n_skills))

    def reset(self):
        nn.init.zeros_(self.table)

    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):  # noqa: ARG002
        return torch.softmax(self.table[task_ids].float(), -1)


def test_the_base_of_the_broken_ones_passes():
    check_router(Base)


class Flat(Base):
    def forward(self, task_ids, input_ids=None, **_):
        return super().forward(task_ids, input_ids).flatten(-2)


class OnlyRows(Base):
    def forward(self, task_ids, input_ids=None, **_):
        return super().forward(task_ids.reshape(len(task_ids), -1)[:, 0], input_ids)


class Integers(Base):
    def forward(self, task_ids, input_ids=None, **_):
        return super().forward(task_ids, input_ids).round().long()


class Halves(Base):
    def forward(self, task_ids, input_ids=None, **_):
        return super().forward(task_ids, input_ids) / 2


class Negative(Base):
    def forward(self, task_ids, input_ids=None, **_):  # noqa: ARG002
        w = self.table[task_ids].float()
        return w - w.mean(-1, keepdim=True) + 1 / self.n_skills


class Infinite(Base):
    def forward(self, task_ids, input_ids=None, **_):
        return super().forward(task_ids, input_ids) / 0


class NotHard(Base):
    is_hard = True


class WrongGates(Base):
    def gates(self, task_ids):
        return torch.sigmoid(self.table[task_ids])


class Restless(Base):
    def forward(self, task_ids, input_ids=None, **_):
        w = super().forward(task_ids, input_ids)
        return torch.softmax(w + torch.rand_like(w), -1)


class Noisy(Base):
    """Noise that it does not announce."""

    draws_noise = False

    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):
        w = super().forward(task_ids, input_ids)
        sample = self.training if sample is None else sample
        if not sample:
            return w
        u = torch.rand_like(w) if uniform is None else uniform
        return torch.softmax(w + u, -1)


class Announced(Noisy):
    draws_noise = True


def test_noise_that_is_announced_passes():
    check_router(Announced)


class Silent(Base):
    draws_noise = True


class DeafToUniform(Announced):
    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):  # noqa: ARG002
        return super().forward(task_ids, input_ids, sample=sample)


class DeafToSample(Announced):
    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):  # noqa: ARG002
        return super().forward(task_ids, input_ids, uniform=uniform)


class FrozenNoise(Announced):
    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):
        uniform = None if uniform is None else torch.full_like(uniform, 0.5)
        return super().forward(task_ids, input_ids, uniform=uniform, sample=sample)


class OtherInTraining(Base):
    def forward(self, task_ids, input_ids=None, **_):
        w = super().forward(task_ids, input_ids)
        return w.square() / w.square().sum(-1, keepdim=True) if self.training else w


class Sociable(Base):
    def forward(self, task_ids, input_ids=None, **_):
        w = super().forward(task_ids, input_ids)
        return (w + w.flatten(0, -3).mean(0)) / 2


class DeadParameter(Base):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.extra = nn.Parameter(torch.zeros(3))


class ConstantParameter(Base):
    """The shift of all logits of a head changes no softmax."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, task_ids, input_ids=None, **_):
        return super().forward(task_ids, input_ids) + 0 * self.shift


class Overflowing(Base):
    def forward(self, task_ids, input_ids=None, **_):  # noqa: ARG002
        raised = (10 * self.table[task_ids]).exp()
        return raised / raised.sum(-1, keepdim=True)


class Forgetful(Base):
    """A tensor that is drawn at the start, and not saved."""

    def reset(self):
        super().reset()
        self.shift = torch.randn(self.n_skills)

    def forward(self, task_ids, input_ids=None, **_):  # noqa: ARG002
        return torch.softmax(self.table[task_ids].float() + self.shift, -1)


class Waiting(Base):
    def forward(self, task_ids, input_ids=None, **_):
        if self.table.abs().max().item() > 100:
            raise ValueError("too large")
        return super().forward(task_ids, input_ids)


class Secretive(Base):
    """Works alone, and reads from the model what its configuration does not say."""

    def forward(self, task_ids, input_ids=None, **_):
        assert self.d_in == 12, "not the width that the other checks use"
        return super().forward(task_ids, input_ids)


class Unrepeatable(Announced):
    """Noise of its own source: the recompute of a checkpoint draws anew."""

    reads, needs_task_ids = "prompt", False

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.table = nn.Parameter(torch.empty(sizes["d_in"], self.n_splits * self.n_skills))

    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):  # noqa: ARG002
        logits = (input_ids.float() @ self.table.float()).unflatten(-1, (self.n_splits, -1))
        if self.training if sample is None else sample:
            logits = logits * (1 + random.random()) if uniform is None else logits + uniform
        return torch.softmax(logits, -1)


class WrongSizes(Base):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.n_skills += 1


BROKEN_ROUTERS: dict[type, list[str]] = {
    Flat: ["weights of task_ids [batch] in evaluation", "shape [4, 10]", "[4, 2, 5] (batch"],
    OnlyRows: ["weights of task_ids [batch, seq]", "shape [4, 2, 5]", "[4, 7, 2, 5]"],
    Integers: ["dtype torch.int64", "a tensor of floating-point numbers"],
    Halves: ["the weights of a head sum to 0.5", "Required: 1."],
    Negative: ["a weight of -", "no weight below 0"],
    Infinite: ["40 of 40 values are not finite"],
    NotHard: ["not one-hot", "as is_hard says"],
    WrongGates: ["gates of all tasks", "differ by up to", "gates / their sum"],
    Restless: ["evaluating task_ids [batch] twice", "differ by up to", "Required: equal weights."],
    Noisy: ["noise of task_ids [batch]", "as draws_noise=False says"],
    Silent: ["two calls give equal weights", "as draws_noise=True says"],
    DeafToUniform: ["noise of", "differ", "equal weights from the same `uniform`"],
    DeafToSample: ["differ", "in training with sample=False the weights of evaluation"],
    FrozenNoise: ["another one changes nothing", "weights that depend on `uniform`"],
    OtherInTraining: ["differ", "the weights of evaluation"],
    Sociable: ["one example of task_ids [batch] alone", "in a batch with others"],
    DeadParameter: ["gradients in evaluation", "extra gets none", "for every parameter"],
    ConstantParameter: ["that of shift is 0 everywhere", "one that is not 0"],
    Overflowing: ["the router in torch.float16", "are not finite"],
    Forgetful: ["after loading a saved state_dict", "differ by up to", "equal weights"],
    Waiting: ["torch.compile(fullgraph=True)", "raised", "no error"],
    Secretive: ["an adapter on a T5", "AssertionError: not the width", "no error"],
    Unrepeatable: ["gradient checkpointing", "differ", "without checkpointing"],
    WrongSizes: ["n_skills=6 and n_splits=2, but the adapter n_skills=5"],
}


@pytest.mark.parametrize("cls", BROKEN_ROUTERS, ids=lambda cls: cls.__name__)
def test_broken_routers_are_named(cls):
    fails(lambda: check_router(cls), cls, BROKEN_ROUTERS[cls])


def test_a_class_that_no_path_leads_to():
    class Local(Base):
        pass

    with pytest.raises(
        AssertionError, match=r"Local'?, its dotted path: .*<locals>.Local does not"
    ):
        check_router(Local)


def test_options_that_the_class_does_not_take():
    with pytest.raises(AssertionError, match=r"unexpected keyword argument 'temprature'"):
        check_router(Base, temprature=2)
