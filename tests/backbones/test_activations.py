"""A chain of operations becomes one, and nothing else changes."""

import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM
from transformers.activations import NewGELUActivation

from polylab.backbones import load_backbone
from polylab.backbones.activations import fuse_activations


def test_the_fused_form_computes_the_same_with_its_gradient(tolerance):
    chain, fused = nn.Sequential(NewGELUActivation()), nn.Sequential(NewGELUActivation())
    fuse_activations(fused)
    assert type(fused[0]) is nn.GELU
    results = []
    for layer in (chain, fused):
        x = torch.linspace(-6, 6, 301).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0], **tolerance)


def test_other_activations_stay():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.GELU()))
    before = [*model.modules()]
    fuse_activations(model)
    assert [*model.modules()] == before


def test_a_loaded_backbone_is_fused_and_saves_what_transformers_loads(tmp_path):
    model = load_backbone("tiny").model
    assert not any(isinstance(part, NewGELUActivation) for part in model.modules())
    model.save_pretrained(tmp_path)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert any(isinstance(part, NewGELUActivation) for part in theirs.modules())
    ids = torch.randint(3, 259, (3, 11), generator=torch.Generator().manual_seed(0))
    call = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
    with torch.no_grad():
        ours, expected = model(**call).logits, theirs(**call).logits
    # seven activations deep, logits of size 10: rounding grows
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
