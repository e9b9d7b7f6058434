"""Packed rows: several examples side by side in one row, each attended to and routed by itself.

A packed call has fewer padded tokens and the same results: skills are mixed per example as in any
other call, and only their products with the tokens follow the examples through the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from polylab.poly.structure import batch_shape, encoder_of, is_causal

__all__ = ["Packed", "Packing", "call_packed", "make_packed"]

Lengths = Sequence[Sequence[int]]
_IMPLEMENTATIONS = ("eager", "sdpa")
_DERIVED = ("attention_mask", "decoder_attention_mask", "position_ids", "segment_ids")
_REFUSED = ("labels", "past_key_values", "encoder_outputs")


class Packing:
    """Where the examples lie in the rows of one sequence.

    Padding at the end of a row counts as the row's last example's, whose tokens do not attend to
    it.

    Args:
        lengths: Of each row: the tokens of its examples, in their order.
        width: Tokens in a row, padding included.
        device: Of the tensors.

    Raises:
        ValueError: If an example or a row has no tokens, or a row's examples exceed its width.
    """

    def __init__(self, lengths: Lengths, *, width: int, device: torch.device) -> None:
        _check_lengths(lengths, width)
        self.shape = len(lengths), width
        most = max(map(len, lengths))
        places = np.zeros((len(lengths), width), dtype=np.int64)
        positions = np.zeros_like(places)
        for row, examples in enumerate(lengths):
            start = 0
            for place, length in enumerate(examples):
                places[row, start:] = place
                positions[row, start : start + length] = np.arange(length)
                start += length
        attended = np.arange(width) < np.array([*map(sum, lengths)])[:, None]
        own = np.flatnonzero(np.arange(most) < np.array([*map(len, lengths)])[:, None])

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(np.array(values)).to(device, non_blocking=True)

        self.place: Int64[Tensor, "rows seq"] = tensor(places)
        """Which of its row's examples a token belongs to."""
        self.positions: Int64[Tensor, "rows seq"] = tensor(positions)
        """Of each token in its example; 0 of padding."""
        self.attended: Bool[Tensor, "rows seq"] = tensor(attended)
        number = torch.arange(most, device=device)
        self.members: Bool[Tensor, "rows most seq"] = self.place[:, None] == number[:, None]
        """The tokens of each example of a row, as many as the fullest row has."""
        self._own: Int64[Tensor, " examples"] = tensor(own)
        examples = np.zeros(len(lengths) * most, dtype=np.int64)  # where there is none: any one
        examples[own] = np.arange(len(own))
        self._examples: Int64[Tensor, " places"] = tensor(examples)

    def __len__(self) -> int:
        return len(self._own)

    def arrange(self, by_example: Float[Tensor, "examples x y"]) -> Float[Tensor, "rows most x y"]:
        """By row what is by example; a row's free places hold any."""
        chosen = by_example.index_select(0, self._examples)
        return chosen.unflatten(0, (self.shape[0], -1))

    def take(self, by_row: Float[Tensor, "rows most d"]) -> Float[Tensor, "examples d"]:
        """What was computed with `members`, example by example."""
        return by_row.flatten(0, 1).index_select(0, self._own)

    def sum(self, values: Tensor) -> Float[Tensor, " examples"]:
        """The sum of each example's tokens, of values `[rows, seq]`."""
        members = self.members.to(values.dtype)
        return self.take(torch.bmm(members, values[..., None]))[:, 0]

    def sees(self, keys: Packing) -> Bool[Tensor, "rows seq keys"]:
        """Which tokens of `keys` are of the example that a token belongs to, and no padding."""
        return (self.place[:, :, None] == keys.place[:, None]) & keys.attended[:, None]


@dataclass(frozen=True)
class Packed:
    """The packing of a call: of its input, and of the decoder's beside an encoder."""

    input: Packing
    decoder: Packing | None = None

    def of(self, x: Tensor) -> Packing:
        """That of a layer's input, known by its number of tokens.

        Raises:
            ValueError: If the layer does not see the tokens of one of the sequences.
        """
        tokens = x.numel() // x.shape[-1]
        known = [self.input] if self.decoder is None else [self.input, self.decoder]
        for packing in known:
            rows, width = packing.shape
            if rows * width == tokens:
                return packing
        shapes = " or ".join(str([*packing.shape]) for packing in known)
        raise ValueError(
            f"a layer sees {tokens} tokens, and the packed rows are {shapes}: it cannot be told "
            "which example they belong to. Leave out packed_lengths."
        )


def make_packed(
    model: nn.Module,
    inputs: Mapping[str, Any],
    lengths: Lengths | None,
    decoder_lengths: Lengths | None,
) -> Packed | None:
    """The packing of a call; None for a call that is not packed.

    Args:
        model: The base model.
        inputs: Of the call.
        lengths: Of each row, the tokens of its examples.
        decoder_lengths: The same of the decoder's rows, for an encoder-decoder model.

    Raises:
        ValueError: If the model, or what else the call gives, does not go with packed rows.
    """
    if lengths is None:
        if decoder_lengths is not None:
            raise ValueError("decoder_packed_lengths without packed_lengths: give both.")
        return None
    _check_call(model, inputs, has_decoder=decoder_lengths is not None)
    device = inputs["input_ids"].device
    own = Packing(lengths, width=_width(inputs["input_ids"], lengths, "input_ids"), device=device)
    if decoder_lengths is None:
        return Packed(own)
    if [*map(len, lengths)] != [*map(len, decoder_lengths)]:
        raise ValueError(
            f"packed_lengths has {[*map(len, lengths)]} examples in its rows, and "
            f"decoder_packed_lengths {[*map(len, decoder_lengths)]}. Give the same examples."
        )
    width = _width(inputs["decoder_input_ids"], decoder_lengths, "decoder_input_ids")
    if width == own.shape[1]:
        raise ValueError(
            f"packed rows of the encoder and of the decoder are both {width} tokens wide, by which "
            "layers tell them apart. Pad one of them by a column."
        )
    return Packed(own, Packing(decoder_lengths, width=width, device=device))


def call_packed(model: nn.Module, inputs: Mapping[str, Any], packed: Packed) -> Any:
    """The base model's output, each example attending to itself only.

    A decoder-only model gets positions that start anew with every example, from which transformers
    makes its masks; the parts of an encoder-decoder model get masks.
    """
    given = {**inputs, "use_cache": False}
    encoder = encoder_of(model)
    if encoder is None:
        tokens = given["input_ids"]  # without a mask transformers would warn of padding
        given["input_ids"] = torch.where(packed.input.attended, tokens, tokens[:, :1])
        return model(**given, position_ids=packed.input.positions)
    own, other = packed.input, packed.decoder
    assert other is not None
    tokens = given.pop("input_ids")
    encoded = encoder(input_ids=tokens, attention_mask=_mask(model, own.sees(own)))
    return model(
        **given,
        encoder_outputs=encoded,
        attention_mask=_mask(model, other.sees(own)),
        decoder_attention_mask=_mask(model, other.sees(other).tril()),
    )


def _mask(model: nn.Module, allowed: Bool[Tensor, "rows queries keys"]) -> Tensor:
    """The mask in the form that the model's attention adds or reads."""
    if model.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        return allowed[:, None]
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    closed = torch.finfo(dtype).min
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, closed)[:, None]


def _check_call(model: nn.Module, inputs: Mapping[str, Any], *, has_decoder: bool) -> None:
    name = type(model).__name__
    encoder = encoder_of(model)
    if encoder is None and not is_causal(model):
        raise ValueError(f"packed_lengths: {name} is an encoder alone. Leave them out.")
    how = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if how not in _IMPLEMENTATIONS:
        raise ValueError(
            f"packed_lengths: {name} computes attention by {how!r}, which does not keep the "
            "examples of a row apart. Load it with attn_implementation "
            f"{' or '.join(_IMPLEMENTATIONS)}."
        )
    if has_decoder != (encoder is not None):
        raise ValueError(
            f"{name} is {'not ' if encoder is None else ''}an encoder-decoder model: "
            f"{'leave out' if encoder is None else 'give'} decoder_packed_lengths."
        )
    derived = [key for key in _DERIVED if inputs.get(key) is not None]
    if derived:
        raise ValueError(f"packed_lengths say what {derived[0]} says: leave {derived[0]} out.")
    wrong = [key for key in _REFUSED if inputs.get(key) is not None]
    if wrong:
        raise ValueError(
            f"packed_lengths with {wrong[0]}: a packed call gives logits only. Leave {wrong[0]} "
            "out, and compute the loss of each example from the logits."
        )
    needed = ["input_ids", "decoder_input_ids"][: 1 + has_decoder]
    absent = [key for key in needed if not isinstance(inputs.get(key), Tensor)]
    if absent:
        raise ValueError(f"packed_lengths need {absent[0]}, of shape [rows, seq].")


def _width(tokens: Tensor, lengths: Lengths, name: str) -> int:
    rows, width = batch_shape({"input_ids": tokens})
    if rows != len(lengths) or width is None:
        raise ValueError(
            f"packed lengths of {len(lengths)} rows, and {name} has shape {[*tokens.shape]}."
        )
    return width


def _check_lengths(lengths: Lengths, width: int) -> None:
    for row, examples in enumerate(lengths):
        if not examples or min(examples) < 1 or sum(examples) > width:
            raise ValueError(
                f"packed lengths {[*examples]} of row {row}, which is {width} tokens wide. Give at "
                "least one example, each of at least one token, that fit into the row."
            )
