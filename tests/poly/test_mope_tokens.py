"""Routing token by token, the gates of routers by input, and packed rows."""

import pytest
import torch

from polylab import PolyConfig, PolyModel, get_peft_model
from polylab.poly.prompts import prompt_before_labels
from polylab.poly.routers import InputRouter
from tests.poly.tiny import (
    BATCH,
    N_SKILLS,
    N_SPLITS,
    SEQ,
    TARGET_SEQ,
    base,
    config_of,
    gradients,
    inputs_of,
    output_of,
    poly,
)

CAUSAL = ["llama", "gpt2"]
KINDS = [*CAUSAL, "t5"]


def tokens(kind, **changes):
    return poly(kind, poly_type="mope", router_level="token", **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_weights_of_its_own_input(kind, tolerance):
    model, inputs = tokens(kind), inputs_of(kind)
    layer = next(iter(model.poly_layers().values()))
    seen = []
    layer.register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    weights = model.mixing_weights(**inputs)
    for name, w in weights.items():
        cross = "EncDecAttention.v" in name  # reads the encoder's tokens
        seq = TARGET_SEQ if name.startswith("decoder") and not cross else SEQ
        assert w.shape == (BATCH, seq, N_SPLITS, N_SKILLS)
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]), **tolerance)
    wanted = layer.poly_router["default"](input_ids=seen[0])
    torch.testing.assert_close(weights[layer.name], wanted, **tolerance)


@pytest.mark.parametrize("combine", ["factors", "products"])
def test_tokens_compute_what_a_loop_does(combine):
    model = tokens("llama", combine=combine).double()
    layer = model.poly_layers()["model.layers.0.mlp.down_proj"]
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    from polylab.poly.routing import Routing, entered

    with entered(Routing(reads="tokens")):
        ours = layer(x)
    a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    for row in range(2):
        for at in range(3):
            token = x[row, at]
            w = layer.poly_router["default"](input_ids=token)
            blocks = token.view(N_SPLITS, -1)
            if combine == "factors":
                mixed_a = torch.einsum("qs,qsdr->qdr", w, a)
                mixed_b = torch.einsum("qs,qsrd->qrd", w, b)
                hidden = torch.einsum("qd,qdr->r", blocks, mixed_a)
                update = torch.einsum("r,qrd->qd", hidden, mixed_b).flatten()
            else:
                hidden = torch.einsum("qd,qsdr->sr", blocks, a)
                update = torch.einsum("qs,sr,qsrd->qd", w, hidden, b).flatten()
            wanted = layer.base_layer(token) + update * layer.scaling["default"]
            torch.testing.assert_close(ours[row, at], wanted)


@pytest.mark.parametrize("kind", CAUSAL)
def test_no_token_sees_a_later_one(kind):
    model, inputs = tokens(kind), inputs_of(kind)
    wanted, logits = model.mixing_weights(**inputs), model(**inputs).logits
    inputs["input_ids"][:, -1] = 3 + (inputs["input_ids"][:, -1] + 1) % 30
    assert torch.equal(model(**inputs).logits[:, :-1], logits[:, :-1])
    for name, w in model.mixing_weights(**inputs).items():
        assert torch.equal(w[:, :-1], wanted[name][:, :-1])
        assert not torch.equal(w[:, -1], wanted[name][:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels_leave_the_prompts_weights_bit_equal(kind):
    model, inputs = tokens(kind), inputs_of(kind)
    wanted = model.mixing_weights(**inputs)
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["labels"] = inputs_of(kind, seed=9)["labels"]
    if kind != "t5":
        changed["input_ids"][:, 3:] = inputs_of(kind, seed=9)["input_ids"][:, 3:]
    for name, w in model.mixing_weights(**changed).items():
        prompt = slice(0, 3) if kind != "t5" else slice(None)
        if not name.startswith("decoder"):
            assert torch.equal(w[:, prompt], wanted[name][:, prompt])
        else:  # a decoder's token knows the targets before it, and no others
            first = 1 if "EncDecAttention.v" not in name else SEQ
            assert torch.equal(w[:, :first], wanted[name][:, :first])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_padding_changes_no_token(kind, side):
    model, ids = tokens(kind), inputs_of(kind)["input_ids"]
    pad, at = torch.zeros(BATCH, 4, dtype=torch.int64), slice(0, SEQ)
    parts = [ids, pad]
    if side == "left":
        parts, at = [pad, ids], slice(4, 4 + SEQ)
    padded = torch.cat(parts, 1)
    found = model.mixing_weights(input_ids=padded, attention_mask=(padded != 0).long())
    for name, w in model.mixing_weights(input_ids=ids).items():
        if not name.startswith("decoder"):
            torch.testing.assert_close(found[name][:, at], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind, beams):
    model, ids = tokens(kind), inputs_of(kind)["input_ids"]
    how = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False}
    assert torch.equal(model.generate(ids, **how), model.generate(ids, use_cache=False, **how))
    if kind == "t5":
        return
    with torch.no_grad():
        whole, output = model(ids).logits, model(ids[:, :3])
        steps = [output.logits]
        for step in range(3, SEQ):
            output = model(ids[:, step : step + 1], past_key_values=output.past_key_values)
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant):
    def run(checkpointing):
        model = tokens("t5").double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model(**inputs_of("t5")).loss.backward()
        return gradients(model)

    wanted, found = run(False), run(True)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, msg=name)


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("changes", [{"gating": "sigmoid"}, {"top_k": 2}, {"n_splits": 1}])
def test_it_is_saved_and_loaded(changes, level, tmp_path):
    model = poly("llama", poly_type="mope", router_level=level, **changes)
    model.save_pretrained(tmp_path)
    again = PolyModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(output_of(again, "llama"), output_of(model, "llama"))


def router_of(**options):
    router = InputRouter(8, 5, n_splits=2, **options)
    router.reset()
    torch.manual_seed(0)
    torch.nn.init.normal_(router.proj.weight)
    return router


def test_sigmoid_gates_are_normalised():
    router, h = router_of(gating="sigmoid", temperature=2.0), torch.randn(3, 8)
    z = torch.sigmoid(router.proj(router.norm(h)).view(3, 2, 5) / 2)
    torch.testing.assert_close(router(input_ids=h), z / z.sum(-1, keepdim=True))


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
def test_top_k_keeps_the_largest(gating):
    whole, top = router_of(gating=gating), router_of(gating=gating, top_k=2)
    h = torch.randn(7, 8)
    full, kept = whole(input_ids=h), top(input_ids=h)
    for row, its in zip(full.flatten(0, 1), kept.flatten(0, 1), strict=True):
        best = row.topk(2).indices.sort().values
        assert its.nonzero().flatten().tolist() == best.tolist()
        torch.testing.assert_close(its[best], row[best] / row[best].sum())
    kept.square().sum().backward()
    assert torch.isfinite(top.proj.weight.grad).all()


def test_top_k_starts_without_ties():
    router = InputRouter(8, 5, n_splits=2, top_k=1)
    router.reset()
    w = router(input_ids=torch.randn(400, 8)).sum(0)
    assert (w > 0).all()


def packed(kind="llama"):
    """Two rows of two examples each, and the same four examples unpacked."""
    ids = inputs_of(kind)["input_ids"]
    lengths, answers = [4, 3, 5, 6], [2, 1, 3, 2]
    rows = [ids[i, :n] for i, n in enumerate(lengths)]
    width = 11
    row_ids = torch.zeros(2, width, dtype=torch.int64)
    segments = torch.full((2, width), 9)
    places = torch.zeros(2, width, dtype=torch.int64)
    labels = torch.full((2, width), -100)
    where = []
    for i, row in enumerate(rows):
        r, start = divmod(i, 2)
        start = lengths[i - 1] if start else 0
        at = slice(start, start + len(row))
        row_ids[r, at], segments[r, at] = row, i
        places[r, at] = torch.arange(len(row))
        labels[r, start + len(row) - answers[i] : start + len(row)] = row[-answers[i] :]
        where.append((r, at))
    allowed = (segments[:, :, None] == segments[:, None]) & torch.ones(width, width).tril().bool()
    mask = torch.zeros(2, 1, width, width).masked_fill(~allowed[:, None], -1e9)
    return {
        "rows": rows,
        "answers": answers,
        "where": where,
        "inputs": {"input_ids": row_ids, "position_ids": places, "attention_mask": mask},
        "segments": segments,
        "labels": labels,
    }


@pytest.mark.parametrize(
    ("level", "router_input"),
    [("sequence", "layer"), ("sequence", "embeddings"), ("token", "layer")],
)
def test_packed_and_unpacked_batches_agree(level, router_input):
    model = poly("llama", poly_type="mope", router_level=level, router_input=router_input).double()
    data = packed()
    prompt = prompt_before_labels(data["segments"] != 9, data["labels"], data["segments"])
    inputs = {**data["inputs"], "attention_mask": data["inputs"]["attention_mask"].double()}
    logits = model(**inputs, segment_ids=data["segments"], prompt_mask=prompt).logits
    for row, (r, at), answer in zip(data["rows"], data["where"], data["answers"], strict=True):
        labels = row.clone()
        labels[:-answer] = -100
        alone = model(input_ids=row[None], labels=labels[None]).logits[0]
        torch.testing.assert_close(logits[r, at], alone)


def test_segments_that_do_not_fit_are_refused():
    model, ids = poly("llama", poly_type="mope"), inputs_of("llama")["input_ids"]
    with pytest.raises(ValueError, match=r"segment_ids has shape \[4\].*Give integers of shape"):
        model(ids, segment_ids=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"dtype torch.float32"):
        model(ids, segment_ids=torch.zeros(4, SEQ))
    t5 = poly("t5", poly_type="mope")
    with pytest.raises(ValueError, match="an encoder-decoder model takes none"):
        t5(**inputs_of("t5"), segment_ids=torch.zeros(BATCH, SEQ, dtype=torch.int64))


def test_a_row_without_a_prompt_is_refused():
    model, inputs = poly("llama", poly_type="mope"), inputs_of("llama")
    inputs["labels"][2] = inputs["input_ids"][2]
    with pytest.raises(ValueError, match="labels of row 2 start at its first token"):
        model(**inputs)
    mask = torch.ones(BATCH, SEQ).bool()
    assert model(**inputs, prompt_mask=mask).loss > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 6}, "top_k=6 exceeds n_skills=5"),
        ({"top_k": 0}, "top_k=0 is not valid"),
        ({"gating": "tanh"}, r"gating='tanh' is not valid: give one of \['softmax', 'sigmoid'\]"),
        ({"poly_type": "poly", "top_k": 2}, "top_k=2 has no effect with poly_type='poly'"),
        (
            {"router_level": "token", "router_input": "embeddings"},
            "router_level='token' with router_input='embeddings'",
        ),
        ({"granularity": "block"}, "granularity='block' with poly_type='mope' needs"),
        ({"priors": {"ibp": 1.0}}, "priors.ibp is on the gates of tasks"),
    ],
)
def test_options_that_do_not_go_together(changes, message):
    values = {"n_skills": 5, "poly_type": "mope", **changes}
    with pytest.raises(ValueError, match=message):
        PolyConfig(**values)


def test_embeddings_need_a_table():
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 6)

        def forward(self, x):
            return self.linear(x)

    config = config_of(
        "llama", poly_type="mope", router_input="embeddings", target_modules=["linear"]
    )
    with pytest.raises(ValueError, match="Bare has no table of input embeddings"):
        get_peft_model(Bare(), config)
