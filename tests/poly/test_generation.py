"""Ways to generate besides greedy and beam search (see test_calls.py): ids are per prompt."""

import pytest
import torch

from tests.poly.tiny import BATCH, SEQ, base, inputs_of, poly, task_ids

KINDS = ["t5", "llama", "gpt2"]
TYPES = ["poly", "mope", "private"]
CAUSAL = ["llama", "gpt2"]


def generate(model, prompts, ids=None, **how):
    how = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, **how}
    mask = torch.ones_like(prompts)
    return model.generate(prompts, attention_mask=mask, task_ids=ids, **how)


def prompts_of(kind, seed=2):
    return inputs_of(kind, seed)["input_ids"]


@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [1, 3])
def test_every_sample_is_drawn_under_its_own_prompts_task(kind, poly_type, copies):
    model, prompts, ids = poly(kind, poly_type=poly_type), prompts_of(kind), task_ids()
    torch.manual_seed(5)
    how = {"do_sample": True, "num_return_sequences": copies, "top_k": 0}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    output = generate(model, prompts, ids, **how)
    found, rows = torch.stack(output.logits, 1), output.sequences
    assert len(rows) == copies * BATCH
    for row, sequence in enumerate(rows):
        own = slice(row // copies, row // copies + 1)
        with torch.no_grad():
            if kind == "t5":
                given = {"input_ids": prompts[own], "decoder_input_ids": sequence[None, :-1]}
                wanted = model(**given, task_ids=ids[own]).logits[0]
            else:
                prompt = torch.arange(len(sequence) - 1)[None] < SEQ
                wanted = model(sequence[None, :-1], task_ids=ids[own], prompt_mask=prompt).logits
                wanted = wanted[0, SEQ - 1 :]
        # cached and uncached attention, over two layers
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [{"do_sample": True}, {"do_sample": True, "num_beams": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seeded_sample_depends_on_no_other_rows_task(kind, how):
    model, prompts, runs = poly(kind), prompts_of(kind), []
    for ids in (task_ids(), torch.tensor([0, 1, 2, 3])):
        torch.manual_seed(5)
        more = {"max_new_tokens": 20, "min_new_tokens": 20, **how}
        runs.append(generate(model, prompts, ids, **more))
    same = (runs[0] == runs[1]).all(-1)  # ids 0 and 2 are
    assert same[0]
    assert same[2]
    assert not same.all()


@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("helper", ["prompt lookup", "base model"])
def test_speculative_decoding_equals_greedy(kind, poly_type, helper):
    model, ids = poly(kind, poly_type=poly_type), task_ids()[1:2]
    how = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    for seed in range(2):
        prompts = prompts_of(kind, seed)[:1]
        prompts[0, -1] = prompts[0, 2]  # something to look up in the first call
        if helper == "base model":
            how = {"assistant_model": base(kind)}
        wanted = generate(model, prompts, ids)
        assert torch.equal(generate(model, prompts, ids, **how), wanted)


@pytest.mark.parametrize("poly_type", TYPES)
def test_early_exit_equals_greedy(poly_type):
    model, prompts, ids = poly("llama", poly_type=poly_type), prompts_of("llama")[:1], task_ids()
    wanted = generate(model, prompts, ids[:1])
    assert torch.equal(generate(model, prompts, ids[:1], assistant_early_exit=1), wanted)


def test_an_assistant_routed_by_task_is_refused():
    how = {"assistant_model": poly("llama", seed=3)}
    with pytest.raises(ValueError, match=r"task_ids=None.*int64 tensor \[1\] of ids 0 to 5"):
        generate(poly("llama"), prompts_of("llama")[:1], task_ids()[:1], **how)


@pytest.mark.parametrize("poly_type", ["mope", "shared"])
def test_an_assistant_without_ids_of_its_own(poly_type):
    model, prompts = poly("llama"), prompts_of("llama")[:1]
    wanted = generate(model, prompts, task_ids()[:1])
    how = {"assistant_model": poly("llama", seed=3, poly_type=poly_type)}
    assert torch.equal(generate(model, prompts, task_ids()[:1], **how), wanted)


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_prompt_in_chunks(kind):
    prompts, how = prompts_of(kind), {"prefill_chunk_size": 3}
    model = poly(kind)
    wanted = generate(model, prompts, task_ids())
    assert torch.equal(generate(model, prompts, task_ids(), **how), wanted)
    with pytest.raises(ValueError, match=r"the model 3 of the prompt's 7 .*prefill_chunk_size"):
        generate(poly(kind, poly_type="mope"), prompts, **how)


@pytest.mark.parametrize("poly_type", TYPES)
@pytest.mark.parametrize("kind", CAUSAL)
def test_generation_goes_on_from_its_cache(kind, poly_type):
    model, prompts, ids = poly(kind, poly_type=poly_type), prompts_of(kind), task_ids()
    wanted = generate(model, prompts, ids)
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True}
    first = generate(model, prompts, ids, **how)
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "past_key_values": first.past_key_values}
    assert torch.equal(generate(model, first.sequences, ids, **how), wanted)


def test_a_cache_of_another_models_prompt_is_refused():
    model, prompts = poly("llama", poly_type="mope"), prompts_of("llama")
    with torch.no_grad(), model.disable_adapter():
        cache = model(prompts).past_key_values
    longer = torch.cat([prompts, prompts[:, :1]], 1)
    with pytest.raises(ValueError, match="past_key_values holds 7 tokens of a prompt"):
        generate(model, longer, past_key_values=cache)
