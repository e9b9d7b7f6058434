"""The check of users' samplers."""

import pytest
import torch

from polylab.poly.routers import RelaxedBernoulli, Sampler, StraightThrough
from polylab.testing import check_sampler
from tests.testing.broken import fails

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("cls", [RelaxedBernoulli, StraightThrough])
def test_samplers_that_pass(cls, temperature):
    check_sampler(cls, temperature=temperature)


class SamplerShape(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits + uniform)[..., :1]


class Half(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits + uniform).half()


class InPlace(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits + uniform.log_())


class Unclamped(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits / uniform.logit())


class TooOpen(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits) + uniform


class AllShut(Sampler):
    def __call__(self, logits, uniform):
        soft = torch.sigmoid(logits)
        return (uniform < soft).to(soft.dtype) + soft - soft.detach()


class Own(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits + uniform + torch.rand_like(logits))


class Deaf(Sampler):
    def __call__(self, logits, uniform):  # noqa: ARG002
        return torch.sigmoid(logits)


class SociableSampler(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(logits + uniform - logits.mean(0))


class Inverted(Sampler):
    def __call__(self, logits, uniform):
        return torch.sigmoid(uniform.logit() - logits)


class Hard(Sampler):
    def __call__(self, logits, uniform):
        hard = (uniform < torch.sigmoid(logits)).to(logits.dtype)
        return hard.clamp(min=0.01)


class SamplerWaiting(Sampler):
    def __call__(self, logits, uniform):
        noisy = logits + uniform.logit()
        return torch.sigmoid(noisy if noisy.max().item() < 99 else noisy.clamp(max=99))


BROKEN_SAMPLERS: dict[type, list[str]] = {
    SamplerShape: ["gates of torch.float32 logits", "shape [6, 2, 1]", "[6, 2, 5]"],
    Half: ["dtype torch.float16", "torch.float32, as the logits"],
    InPlace: ["its arguments were changed in place"],
    Unclamped: ["gates of logits -1, 0 and 1", "not finite"],
    TooOpen: ["from", "from 0 to 1"],
    AllShut: ["all gates of a head are 0", "a gate above 0 in every head"],
    Own: ["noise", "differ", "equal gates from the same `uniform`"],
    Deaf: ["another `uniform` changes nothing", "other gates"],
    SociableSampler: ["one example alone", "differ", "in a batch with others"],
    Inverted: ["the mean gate of logits -2, 0 and 2", "the higher the logit"],
    Hard: ["the gradient", "gates that carry none"],
    SamplerWaiting: ["torch.compile(fullgraph=True)", "no error"],
}


@pytest.mark.parametrize("cls", BROKEN_SAMPLERS, ids=lambda cls: cls.__name__)
def test_broken_samplers_are_named(cls):
    fails(lambda: check_sampler(cls), cls, BROKEN_SAMPLERS[cls])
