"""Whether a model keeps the examples of packed rows apart, found by trying."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from polylab.poly.model import PolyModel
from polylab.poly.prior_loss import refuse_packed_priors
from polylab.poly.structure import encoder_of

__all__ = ["check_packable"]

_INPUTS, _TARGETS = (4, 5), (3, 2)  # tokens of two examples
_DIFFERENCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_COARSE = 5e-2
"""Of the largest logit: how far results may differ by rounding, for 16 and fewer bits."""


def check_packable(model: PolyModel) -> None:
    """Refuse a model in which an example depends on the one before it in its row.

    Some read positions from the row whatever they are given, some remember across tokens in other
    ways than by attention. So a short example is computed behind another, and alone.

    Raises:
        ValueError: If the results differ, or the model's kind of attention or the adapter's priors
            are known not to do.
    """
    config = model.config_of(model.active_adapter)
    if config.priors and config.router_level == "token" and encoder_of(model.model) is not None:
        refuse_packed_priors()
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            behind = _logits(model, (0, 1))[0]
            alone = _logits(model, (1,))[0]
    finally:
        for module in training:
            module.training = True
    difference = (behind[-len(alone) :] - alone).abs().max()
    largest = alone.abs().max()
    if not difference <= _DIFFERENCE.get(alone.dtype, _COARSE) * largest:
        raise ValueError(
            f"{type(model.model).__name__} gives an example other logits behind another one in its "
            f"row (by {float(difference):.2g}, of at most {float(largest):.2g}): it does not keep "
            "packed examples apart · set data.packing=false."
        )


def _logits(model: PolyModel, examples: tuple[int, ...]) -> Float[Tensor, "1 seq vocabulary"]:
    """Of one row with these of the two examples."""
    lengths = [[_INPUTS[i] for i in examples]]
    inputs = torch.cat([_tokens(model, _INPUTS[i], seed=i) for i in examples], dim=1)
    if encoder_of(model.model) is None:
        return model(input_ids=inputs, packed_lengths=lengths).logits
    targets = torch.cat([_tokens(model, _TARGETS[i], seed=2 + i) for i in examples], dim=1)
    return model(
        input_ids=inputs,
        decoder_input_ids=targets,
        packed_lengths=lengths,
        decoder_packed_lengths=[[_TARGETS[i] for i in examples]],
    ).logits


def _tokens(model: PolyModel, count: int, *, seed: int) -> Int64[Tensor, "1 seq"]:
    table = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(table), (1, count), generator=generator).to(table.device)
