"""The check of users' priors."""

import pytest
import torch

from polylab.poly.priors import PRIORS, Prior
from polylab.testing import check_prior
from tests.testing.broken import fails

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("cls", PRIORS.values())
def test_priors_that_pass(cls):
    check_prior(cls)


class Vector(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        return weights.mean((1, 2))


class Moody(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        return weights.square().mean() + torch.rand(())


class Padded(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        return weights.square().mean()


class NoGradient(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        return (shares @ weights.flatten(1).square()).sum().detach()


class Constant(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        return (shares @ weights.sum(-1)).sum() + 0 * weights.sum()


class Cornered(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        return -(shares @ (weights * weights.log()).sum((1, 2)))


class PriorWaiting(Prior):
    def __call__(self, weights, gates, shares):  # noqa: ARG002
        value = (shares.to(weights.dtype) @ weights.square().sum((1, 2))).sum()
        return value if value.item() > 0 else value * 2


class OnlyFiveSkills(Prior):
    """Fits the rows of the other checks only."""

    def __call__(self, weights, gates, shares):  # noqa: ARG002
        values = (weights.square() @ torch.arange(5.0).to(weights.dtype)).sum(1)
        return (shares.to(weights.dtype) @ values).sum()


BROKEN_PRIORS: dict[type, list[str]] = {
    Vector: ["its value", "shape [6]", "[] (a scalar)"],
    Moody: ["its value", "differ by up to", "the same value for the same rows"],
    Padded: ["rows with a share of 0 (padding)", "no effect on the value"],
    NoGradient: ["a value that carries none", "one in the weights"],
    Constant: ["that of the weights is 0 everywhere", "that keep their sum"],
    Cornered: ["value and gradient of one-hot weights", "not finite"],
    PriorWaiting: ["torch.compile(fullgraph=True)", "no error"],
    OnlyFiveSkills: ["in the loss of an adapter with {'poly_type': 'poly'}", "no error"],
}


@pytest.mark.parametrize("cls", BROKEN_PRIORS, ids=lambda cls: cls.__name__)
def test_broken_priors_are_named(cls):
    fails(lambda: check_prior(cls), cls, BROKEN_PRIORS[cls])
