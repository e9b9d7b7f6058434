"""Which layers read one input."""

import pytest

from polylab.poly.together import read_together


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (
            ["b.0.SelfAttention.q", "b.0.SelfAttention.k", "b.0.SelfAttention.o", "b.0.DReLU.wi_1"],
            [
                ["b.0.SelfAttention.q", "b.0.SelfAttention.k"],
                ["b.0.SelfAttention.o"],
                ["b.0.DReLU.wi_1"],
            ],
        ),
        (
            ["d.EncDecAttention.q", "d.EncDecAttention.k", "d.EncDecAttention.v"],
            [["d.EncDecAttention.q"], ["d.EncDecAttention.k", "d.EncDecAttention.v"]],
        ),
        (
            ["l.0.mlp.gate_proj", "l.1.mlp.gate_proj", "l.0.mlp.up_proj", "l.0.mlp.down_proj"],
            [
                ["l.0.mlp.gate_proj", "l.0.mlp.up_proj"],
                ["l.1.mlp.gate_proj"],
                ["l.0.mlp.down_proj"],
            ],
        ),
        (["q", "k", "v"], [["q", "k", "v"]]),
        (["h.0.c_attn", "h.0.c_proj"], [["h.0.c_attn"], ["h.0.c_proj"]]),
    ],
)
def test_groups(names, groups):
    assert read_together(names) == groups
