"""The check of users' combining rules."""

import pytest
import torch

from polylab.poly.combining import AverageFactors, Combine, SumProducts
from polylab.testing import check_combine
from tests.testing.broken import fails

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("cls", [AverageFactors, SumProducts])
def test_combining_rules_that_pass(cls):
    check_combine(cls)


class Average(AverageFactors):
    """Keeps every promise; each class below breaks one."""


class Transposed(Average):
    def factors(self, weights, bank_a, bank_b):
        a, b = super().factors(weights, bank_a, bank_b)
        return a.transpose(1, 2), b


class Upcast(Average):
    def factors(self, weights, bank_a, bank_b):
        a, b = super().factors(weights, bank_a, bank_b)
        return a.double(), b.double()


class CombineInPlace(Average):
    def factors(self, weights, bank_a, bank_b):
        bank_b.mul_(2)
        return super().factors(weights, bank_a, bank_b)


class Overflow(Average):
    def factors(self, weights, bank_a, bank_b):
        a, b = super().factors(weights, bank_a * 1e5, bank_b)
        return a / 1e5, b


class OtherTokens(Average):
    def per_token(self, x, weights, *, banks):
        return super().per_token(x, weights, banks=banks) * 2


class Squared(Average):
    """Consistent, but a single skill is not its own LoRA, and it does not say so."""

    def factors(self, weights, bank_a, bank_b):
        a, b = super().factors(weights, bank_a, bank_b)
        return a, 2 * b

    def per_token(self, x, weights, *, banks):
        return 2 * super().per_token(x, weights, banks=banks)


class SaysSo(Squared):
    def pick(self, weights, bank_a, bank_b):
        a, b = super().pick(weights, bank_a, bank_b)
        return a, 2 * b


def test_a_rule_that_picks_in_its_own_way_passes():
    check_combine(SaysSo)


class Shifted(Average):
    """Adds a constant to B*: nothing is the base model at the start."""

    def factors(self, weights, bank_a, bank_b):
        a, b = super().factors(weights, bank_a, bank_b)
        return a, b + 0.1

    def per_token(self, x, weights, *, banks):
        return (x[:, None] @ self.factors(weights, *banks)[0] @ self.factors(weights, *banks)[1])[
            :, 0
        ]

    def pick(self, weights, bank_a, bank_b):
        return self.factors(weights, bank_a, bank_b)


class Whole(Combine):
    """Written from the factors, with a change of them in `mix`."""

    def mix(self, weights: torch.Tensor) -> torch.Tensor:
        return weights

    def factors(self, weights, bank_a, bank_b):
        return AverageFactors().factors(self.mix(weights), bank_a, bank_b)

    def per_token(self, x, weights, *, banks):
        a, b = self.factors(weights, *banks)
        return (x[:, None] @ a @ b)[:, 0]

    def pick(self, weights, bank_a, bank_b):
        return self.factors(weights, bank_a, bank_b)


class SociableRule(Whole):
    def mix(self, weights):
        return weights - weights.mean(0) + 0.2


class Detached(Whole):
    def mix(self, weights):
        return weights.detach()


class RuleWaiting(Whole):
    def mix(self, weights):
        return weights if weights.max().item() > 0 else 2 * weights


def _reversed(x):
    """The same values, with the gradient of -x."""
    return 2 * x.detach() - x


class Uphill(Whole):
    def factors(self, weights, bank_a, bank_b):
        return super().factors(weights, _reversed(bank_a), _reversed(bank_b))


BROKEN_RULES: dict[type, list[str]] = {
    Transposed: ["n_splits=1: factors of banks in torch.float32", "shape", "groups or 1, d_in, k"],
    Upcast: ["dtype torch.float64", "Required: torch.float32"],
    CombineInPlace: ["the banks were changed in place"],
    Overflow: ["factors of banks in torch.float16", "not finite"],
    OtherTokens: ["per_token against factors", "differ", "factors of the same weights"],
    Squared: ["one-hot weights, one skill: pick against factors", "without a pick of its own"],
    Shifted: ["the update of B = 0", "a fresh adapter is the base model"],
    SociableRule: ["one group alone", "differ", "beside other groups"],
    Detached: ["gradients through factors", "the weights gets none"],
    RuleWaiting: ["torch.compile(fullgraph=True)", "no error"],
    Uphill: ["on a T5: training for 12 steps", "the loss of the same batch went from", "smaller"],
}


@pytest.mark.parametrize("cls", BROKEN_RULES, ids=lambda cls: cls.__name__)
def test_broken_rules_are_named(cls):
    fails(lambda: check_combine(cls), cls, BROKEN_RULES[cls])
