"""Packed rows whose examples have one id each: the results of the same examples row by row."""

import pytest
import torch
from torch.nn.functional import pad
from transformers import BartConfig, BartForConditionalGeneration, MistralConfig, MistralForCausalLM

from polylab import PolyConfig, get_peft_model
from polylab.poly import compile_blocks, packing
from polylab.poly.fused import Group
from polylab.poly.packable import check_packable
from polylab.poly.packing import Packed, Packing
from polylab.poly.ragged import PackedMixed
from tests.poly.tiny import VOCABULARY, base, gradients, inputs_of, poly, trained

KINDS = ["llama", "gpt2", "t5"]
LENGTHS = [(5, 3), (2, 4), (3, 1), (7, 2), (1, 6)]  # inputs and targets
ROWS = [[0, 2], [4, 1], [3]]
ORDER = [0, 2, 4, 1, 3]
IDS = torch.tensor([0, 5, 2, 5, 1])
NUMBERS = torch.tensor([8, 3, 12, 4, 7])  # in the global batch
ADAPTERS = {
    "poly": {"n_splits": 1},
    "mhr": {},
    "products": {"combine": "products"},
    "c-poly": {"poly_type": "c-poly"},
    "private": {"poly_type": "private"},
    "uniform": {"poly_type": "uniform"},
    "lora": {"poly_type": "shared"},
    "mope": {"poly_type": "mope"},
    "mope of the embeddings": {"poly_type": "mope", "router_input": "embeddings"},
    "mope of tokens": {"poly_type": "mope", "router_level": "token"},
    "noise per task": {"noise_per": "task"},
    "one router": {"granularity": "model"},
    "annealed": {"uniform_share": 0.3},
}


def examples(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randint(3, VOCABULARY, (n,), generator=draw) for n in lengths)
        for lengths in LENGTHS
    ]


def rows_of(sequences, rows=None, width=None):
    """One row for each group of sequences, and their lengths."""
    groups = [[sequences[i] for i in row] for row in rows or [[i] for i in range(len(sequences))]]
    width = width or max(sum(map(len, group)) for group in groups)
    joined = [torch.cat(group) for group in groups]
    lengths = [[*map(len, group)] for group in groups]
    return torch.stack([pad(row, (0, width - len(row))) for row in joined]), lengths


def call_of(kind, found, rows=None):
    """A call's arguments for these examples, each in a row of its own or packed."""
    if kind == "t5":
        tokens, lengths = rows_of([x for x, _ in found], rows)
        targets, decoder_lengths = rows_of([y for _, y in found], rows)
        if rows:
            own = {"packed_lengths": lengths, "decoder_packed_lengths": decoder_lengths}
        else:
            own = {"attention_mask": mask_of(lengths, tokens)}
        return {"input_ids": tokens, "decoder_input_ids": targets, **own}
    tokens, lengths = rows_of([torch.cat(example) for example in found], rows)
    prompts, _ = rows_of([torch.cat([x * 0 + 1, y * 0]) for x, y in found], rows)
    own = {"packed_lengths": lengths} if rows else {"attention_mask": mask_of(lengths, tokens)}
    return {"input_ids": tokens, "prompt_mask": prompts.bool(), **own}


def mask_of(lengths, tokens):
    return (torch.arange(tokens.shape[1]) < torch.tensor(lengths)).long()


def apart(kind, logits, rows):
    """The logits of each example, in the examples' order."""
    sizes = [y if kind == "t5" else x + y for x, y in LENGTHS]
    found = {}
    for row, members in enumerate(rows):
        ends = torch.tensor([sizes[i] for i in members]).cumsum(0).tolist()
        for i, end in zip(members, ends, strict=True):
            found[i] = logits[row, end - sizes[i] : end]
    return [found[i] for i in range(len(sizes))]


def results(model, kind, rows=None, *, found=None, seed=3):
    """Logits of each example, and gradients of a function of them."""
    order = [i for row in rows for i in row] if rows else [*range(len(LENGTHS))]
    model.zero_grad()
    if model.config_of("default").noise_source == "keyed":
        model.set_noise_key(seed, 4, rows=NUMBERS[order])
    call = call_of(kind, found or examples(), rows)
    logits = model(**call, task_ids=IDS[order], use_cache=False).logits
    logits = apart(kind, logits, rows or [[i] for i in range(len(LENGTHS))])
    torch.cat([x.sin().flatten() * (i + 1) for i, x in enumerate(logits)]).sum().backward()
    return [x.detach() for x in logits], gradients(model)


def assert_equal(kind, model, rows=ROWS):
    alone, alone_grads = results(model, kind)
    packed, packed_grads = results(model, kind, rows)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-11)
    torch.testing.assert_close(packed_grads, alone_grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_packed_rows_give_what_their_examples_give_alone(kind, adapter):
    model = poly(kind, noise_source="keyed", **ADAPTERS[adapter]).double().train()
    assert_equal(kind, model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_attention(kind, implementation):
    model = base(kind)
    model.set_attn_implementation(implementation)
    targets = {"t5": ["q", "wo"], "llama": ["q_proj"], "gpt2": ["c_attn"]}[kind]
    config = PolyConfig(r=3, n_tasks=6, n_skills=2, target_modules=targets)
    assert_equal(kind, trained(get_peft_model(model, config)).double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_under_gradient_checkpointing(kind, use_reentrant):
    model = poly(kind, noise_source="keyed").double().train()
    alone, alone_grads = results(model, kind)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    packed, packed_grads = results(model, kind, ROWS)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-11)
    torch.testing.assert_close(packed_grads, alone_grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ["mhr", "mope"])
def test_no_example_sees_another(kind, adapter):
    model = poly(kind, **ADAPTERS[adapter])
    found = examples()
    before, _ = results(model, kind, ROWS)
    found[1] = tuple((tokens + 5) % VOCABULARY for tokens in found[1])
    after, _ = results(model, kind, ROWS, found=found)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, True, True]


@pytest.mark.parametrize("spec", ["uniform", "rounded", "top1", "shuffled", "task:3", "drop:1"])
def test_interventions(spec):
    model = poly("llama").double()
    learned, _ = results(model, "llama", ROWS)
    with model.routing(spec), torch.no_grad():
        logits = [
            model(**call_of("llama", examples(), rows), task_ids=IDS[order]).logits
            for rows, order in ((None, [0, 1, 2, 3, 4]), (ROWS, ORDER))
        ]
    alone, packed = (
        apart("llama", x, rows)
        for x, rows in zip(logits, ([[i] for i in range(5)], ROWS), strict=True)
    )
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-11)
    assert max(float((a - b).abs().max()) for a, b in zip(packed, learned, strict=True)) > 1e-4


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_layers_that_are_not_plain_are_called_themselves(combine):
    model, seen = poly("llama", combine=combine).double(), []
    layer = next(iter(model.poly_layers().values())).base_layer
    layer.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    assert_equal("llama", model)
    assert len(seen) == 2


def test_layers_of_a_group_that_read_different_inputs():
    bases = [torch.nn.Linear(6, 4, bias=False) for _ in range(2)]
    packed = Packed(Packing([[2, 1], [3]], width=3, device=torch.device("cpu")))
    a, bs = torch.randn(3, 6, 4), [torch.randn(3, 2, 4) for _ in bases]
    together = PackedMixed(Group(bases, 0.3), a, bs, packed)
    for place, base_layer in enumerate(bases):
        x = torch.randn(2, 3, 6)
        own = a[..., 2 * place : 2 * place + 2]
        alone = PackedMixed(Group([base_layer], 0.3), own, [bs[place]], packed)
        y = base_layer(x)
        torch.testing.assert_close(together.add(place, y, x), alone.add(0, y, x))


def test_under_autocast():
    model = poly("llama")
    call = call_of("llama", examples(), ROWS)
    with torch.no_grad():
        exact = model(**call, task_ids=IDS[ORDER]).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = model(**call, task_ids=IDS[ORDER]).logits
    torch.testing.assert_close(coarse.float(), exact, rtol=0.1, atol=0.3)


def test_a_window_of_attention_stays_that_of_an_example():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=VOCABULARY, **size, num_hidden_layers=2, num_key_value_heads=1,
        sliding_window=3, initializer_range=0.3, head_dim=8,
    )  # fmt: skip
    config_of = PolyConfig(r=3, n_tasks=6, n_skills=2, target_modules=["q_proj"])
    model = trained(get_peft_model(MistralForCausalLM(config).eval(), config_of))
    assert_equal("mistral", model.double())


def test_the_tensors_of_a_packing():
    found = Packing([[2, 1], [3]], width=4, device=torch.device("cpu"))
    assert len(found) == 3
    assert found.place.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert found.positions.tolist() == [[0, 1, 0, 0], [0, 1, 2, 0]]
    assert found.attended.tolist() == [[True, True, True, False], [True, True, True, False]]
    values = torch.tensor([[1.0, 2.0, 4.0, 0.0], [8.0, 16.0, 32.0, 0.0]])
    assert found.sum(values).tolist() == [3.0, 4.0, 56.0]
    by_example = torch.arange(3.0)[:, None, None]
    assert found.take(found.arrange(by_example)[..., 0]).flatten().tolist() == [0.0, 1.0, 2.0]
    targets = Packing([[1, 1], [2]], width=3, device=torch.device("cpu"))
    assert targets.sees(found).long().tolist() == [
        [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]],
        [[1, 1, 1, 0]] * 3,
    ]


@pytest.mark.parametrize("lengths", [[[3, 2]], [[]], [[2, 0]], [[-1]]])
def test_lengths_that_cannot_be(lengths):
    message = rf"packed lengths \[{', '.join(map(str, lengths[0]))}\] of row 0, which is 4 tokens"
    with pytest.raises(ValueError, match=message):
        Packing(lengths, width=4, device=torch.device("cpu"))


WRONG = {
    "rows": ("llama", {"packed_lengths": [[3]]}, r"lengths of 1 rows, and input_ids .*\[3, 13\]"),
    "mask": ("llama", {"attention_mask": torch.ones(3, 8)}, "leave attention_mask out"),
    "positions": ("llama", {"position_ids": torch.ones(3, 8)}, "leave position_ids out"),
    "segments": ("llama", {"segment_ids": torch.ones(3, 8)}, "leave segment_ids out"),
    "labels": ("llama", {"labels": torch.ones(3, 8)}, "packed_lengths with labels: .* logits only"),
    "ids": ("llama", {"task_ids": IDS[:3]}, r"task_ids has length 3, but the batch has 5 rows"),
    "decoder": ("llama", {"decoder_packed_lengths": [[1]]}, "Llama.* not an encoder-dec.*: leave"),
    "no decoder": ("t5", {"decoder_packed_lengths": None}, "T5.* is an encoder-decoder .*: give"),
    "no tokens": ("t5", {"decoder_input_ids": None}, "need decoder_input_ids, of shape"),
    "examples": (
        "t5",
        {"decoder_packed_lengths": [[3], [1, 2], [2]]},
        r"has \[2, 2, 1\] examples in its rows, and decoder_packed_lengths \[1, 2, 1\]",
    ),
    "width": (
        "t5",
        {"decoder_input_ids": torch.ones(3, 8, dtype=torch.int64)},
        "are both 8 tokens wide, by which",
    ),
    "only the decoder's": ("t5", {"packed_lengths": None}, "decoder_packed_lengths without packed"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_packed_rows_do_not_go_with(wrong):
    kind, changes, message = WRONG[wrong]
    call = {**call_of(kind, examples(), ROWS), "task_ids": IDS[ORDER], **changes}
    with pytest.raises(ValueError, match=message):
        poly(kind)(**call)


def test_models_that_packed_rows_do_not_go_with():
    with pytest.raises(ValueError, match="T5EncoderModel is an encoder alone"):
        poly("encoder")(**inputs_of("encoder"), task_ids=IDS[:4], packed_lengths=[[7]] * 4)
    model = poly("llama")
    model.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"Llama.* by 'flash_attention_2', which .* eager or sdpa"):
        model(**call_of("llama", examples(), ROWS), task_ids=IDS[ORDER])


def test_compiled_blocks_take_none():
    model = poly("llama").train()
    compile_blocks(model)
    with pytest.raises(ValueError, match=r"compiled blocks know no packed rows.*Leave out packed"):
        model(**call_of("llama", examples(), ROWS), task_ids=IDS[ORDER])


def test_a_router_of_the_prompt_needs_to_know_it():
    call = call_of("llama", examples(), ROWS) | {"prompt_mask": None}
    with pytest.raises(ValueError, match=r"router of the prompt.*Give prompt_mask \[batch, seq\]"):
        poly("llama", poly_type="mope")(**call, task_ids=IDS[ORDER])


def test_a_layer_with_other_tokens_is_refused():
    packed = Packing([[2, 1]], width=4, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"sees 6 tokens, and the packed rows are \[1, 4\]"):
        Packed(packed).of(torch.zeros(6, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_keep_examples_apart(kind):
    model = poly(kind).train()
    check_packable(model)
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_model_that_reads_positions_from_the_row_is_refused():
    torch.manual_seed(0)
    size = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(
        vocab_size=VOCABULARY, **size, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8,
        decoder_ffn_dim=8, max_position_embeddings=32, init_std=0.3, pad_token_id=0,
    )  # fmt: skip
    adapter = PolyConfig(r=2, n_tasks=2, target_modules=["q_proj"])
    model = get_peft_model(BartForConditionalGeneration(config), adapter)
    with pytest.raises(ValueError, match=r"BartForConditionalGeneration gives an example other"):
        check_packable(model)


def test_a_model_whose_examples_see_each_other_is_refused(monkeypatch):
    model = poly("t5")

    def whole(_model, allowed):  # every token sees all of its row
        return torch.zeros(allowed.shape)[:, None]

    monkeypatch.setattr(packing, "_mask", whole)
    with pytest.raises(
        ValueError, match=r"T5.* does not keep packed examples apart · set data\.pa"
    ):
        check_packable(model)
