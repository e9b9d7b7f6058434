"""Static caches equal the dynamic one, in generate and by hand (compiled: test_compile.py)."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from tests.poly.tiny import SEQ, inputs_of, poly, task_ids

KINDS = ["t5", "llama", "gpt2"]
TYPES = ["poly", "mope", "private"]


def generate(model, prompts, ids, **how):
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **how}
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), task_ids=ids, **how)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_generate(kind, poly_type, beams):
    model, prompts = poly(kind, poly_type=poly_type), inputs_of(kind)["input_ids"]
    wanted = generate(model, prompts, task_ids(), num_beams=beams)
    for _ in range(2):  # the second call finds the first one's cache
        how = {"cache_implementation": "static", "num_beams": beams}
        assert torch.equal(generate(model, prompts, task_ids(), **how), wanted)


@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_by_hand(kind, poly_type):
    model, ids = poly(kind, poly_type=poly_type), task_ids()
    runs = []
    for make in (dynamic, static):
        cache = make(model, kind)
        for turn in range(2):  # a cache may be emptied and used again
            if turn:
                cache.reset()
            logits = decode(model, kind, ids=(ids + turn) % 6, cache=cache, seed=turn)
        runs.append(logits)
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-4, atol=1e-5)  # sums of masked terms
    if kind == "llama" and poly_type == "poly":
        whole = model(inputs_of(kind, 1)["input_ids"], task_ids=(ids + 1) % 6).logits
        torch.testing.assert_close(runs[1], whole, rtol=1e-4, atol=1e-5)


def dynamic(model, kind):
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    return EncoderDecoderCache(*caches) if kind == "t5" else caches[0]


def static(model, kind):
    caches = [StaticCache(config=model.config, max_cache_len=12) for _ in range(2)]
    if kind == "t5":
        caches[1] = StaticCache(config=model.config, max_cache_len=SEQ)
        return EncoderDecoderCache(*caches)
    return caches[0]


@torch.no_grad()
def decode(model, kind, *, ids, cache, seed):
    tokens, steps = inputs_of(kind, seed)["input_ids"], []
    for start, stop in ((0, 5), (5, 6), (6, 7)):
        part = tokens[:, start:stop]
        given = {"input_ids": tokens, "decoder_input_ids": part}
        given = given if kind == "t5" else {"input_ids": part}
        output = model(**given, task_ids=ids, past_key_values=cache, use_cache=True)
        steps.append(output.logits)
    return torch.cat(steps, 1)
