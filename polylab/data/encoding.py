"""Text into token ids, within a budget for each side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from numpy import ndarray
from transformers import PreTrainedTokenizerBase

from polylab.data.chat import ChatTemplate, Message, exchanges
from polylab.data.tokenizing import BareTokenizer

Tokens = Int32[ndarray, " _"]  # anonymous: sequences of one list differ in length
Pair = tuple[Tokens, Tokens]
"""Ids of the input, ids of the target."""


class TextEncoder:
    """Encodes inputs and targets apart, so that each keeps its own budget.

    An input carries the tokenizer's own special tokens and loses its start if it is too long (the
    question mostly is at the end). A target ends with the end-of-sequence token and loses its end
    if it is longer than its budget. For a decoder-only model the separator joins the two, and
    no special token follows the input. Where it has a chat template (`chat`) this is what comes
    before, between and after them instead.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        is_encoder_decoder: False for a decoder-only model.
        max_input_length: Tokens of the input, special ones and the separator included.
        max_target_length: Tokens of the target, the end-of-sequence token included.
        separator: Text between input and target for a decoder-only model.
        keep_input: Which side of a long input stays, `end` or `start`.
        chat: Whether a decoder-only model gets its tokenizer's chat template, where there is one.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token, a budget leaves no room for
            text, or `keep_input` is not valid.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_encoder_decoder: bool,
        max_input_length: int,
        max_target_length: int,
        separator: str = "\n",
        keep_input: str = "end",
        chat: bool = True,
    ) -> None:
        if keep_input not in ("end", "start"):
            raise ValueError(
                f"data.keep_input={keep_input!r} · valid: end, start · choose one of them."
            )
        self._tokenize = BareTokenizer(tokenizer)
        self._eos = end_id(tokenizer)
        self.chat = None
        if chat and not is_encoder_decoder and tokenizer.chat_template:
            self.chat = ChatTemplate(tokenizer)
            self._prefix, self._suffix, ending = self._tokenize(self.chat.around)
            self._ending = ending if ending[-1:] == [self._eos] else [*ending, self._eos]
        else:
            self._prefix, suffix = special_tokens(tokenizer)
            self._suffix = suffix if is_encoder_decoder else self._tokenize([separator])[0]
            self._ending = [self._eos]
        self._keep_end = keep_input == "end"
        self._max_lengths = max_input_length, max_target_length
        self._input_room = max_input_length - len(self._prefix) - len(self._suffix)
        self._target_room = max_target_length - len(self._ending)
        for name, budget, room in (
            ("max_input_length", max_input_length, self._input_room),
            ("max_target_length", max_target_length, self._target_room),
        ):
            if room < 1:
                raise ValueError(
                    f"data.{name}={budget} · it must hold {budget - room} tokens around the "
                    f"text and at least 1 of it · use {budget - room + 1} or more."
                )

    def fingerprint(self) -> str:
        """Changes with the tokenizer and with whatever else the ids depend on."""
        template = self.chat and self.chat.source
        around = (self._prefix, self._suffix, self._ending, self._keep_end, template)
        return f"{self._tokenize.fingerprint()} {around} {self._input_room} {self._target_room}"

    def encode_inputs(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of every input with the tokens around it; never none at all."""
        encoded = []
        for ids in self._tokenize(self._shown_inputs(texts)):
            kept = ids[-self._input_room :] if self._keep_end else ids[: self._input_room]
            encoded.append(_array([*self._prefix, *kept, *self._suffix] or [self._eos]))
        return encoded

    def encode_targets(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of every target, with the end-of-sequence token."""
        found = self._tokenize(self._shown_targets(texts))
        return [_array([*ids[: self._target_room], *self._ending]) for ids in found]

    def encode_conversation(self, messages: Sequence[Message], *, learns: bool) -> Pair:
        """Token ids of a conversation by the chat template, as input and target.

        Where it is longer than its budget its oldest exchanges are left out, then the system
        message, then the start of the last input.

        Args:
            messages: To the last answer.
            learns: True gives all answers: the input ends before the first; what is between
                answers has `masked` ids in the target. The budget is that of input and target
                together. False gives the last answer alone.
        """
        assert self.chat is not None
        for kept in exchanges(messages):
            texts, are_answers = zip(*self.chat.pieces(kept), strict=True)
            pieces = self._tokenize(texts)
            if pieces[-1][-1:] != [self._eos]:
                pieces[-1].append(self._eos)
            start, *rest = map(_array, pieces)
            if learns:
                signed = zip(rest, are_answers[1:], strict=True)
                pair = start, np.concatenate([ids if own else masked(ids) for ids, own in signed])
                fits = len(pair[0]) + len(pair[1]) <= sum(self._max_lengths)
            else:
                pair = np.concatenate([start, *rest[:-1]]), rest[-1]
                fits = all(len(i) <= n for i, n in zip(pair, self._max_lengths, strict=True))
            if fits:
                return pair
        (_, text), (_, answer) = messages[-2:]
        return self.encode_inputs([text])[0], self.encode_targets([answer])[0]

    def count(self, inputs: Sequence[str], targets: Sequence[str]) -> Int32[ndarray, "texts 2"]:
        """Lengths of what `encode_inputs` and `encode_targets` would give, without the ids."""
        around = len(self._prefix) + len(self._suffix)
        lengths = [
            (
                max(1, min(n_input, self._input_room) + around),
                min(n_target, self._target_room) + len(self._ending),
            )
            for n_input, n_target in zip(
                self._tokenize.count(self._shown_inputs(inputs)),
                self._tokenize.count(self._shown_targets(targets)),
                strict=True,
            )
        ]
        return np.asarray(lengths, dtype=np.int32).reshape(-1, 2)

    @property
    def runs_beside(self) -> bool:
        """Whether encoding in a thread leaves the others alone (a fast tokenizer in Rust)."""
        return self._tokenize.is_fast

    def is_truncated(self, text: str, target: str) -> tuple[bool, bool]:
        """Whether the input, and whether the target, exceeds its budget."""
        shown = [*self._shown_inputs([text]), *self._shown_targets([target])]
        ids, target_ids = self._tokenize(shown)
        return len(ids) > self._input_room, len(target_ids) > self._target_room

    def _shown_inputs(self, texts: Sequence[str]) -> Sequence[str]:
        return texts if self.chat is None else [*map(self.chat.input, texts)]

    def _shown_targets(self, texts: Sequence[str]) -> Sequence[str]:
        return texts if self.chat is None else [*map(self.chat.target, texts)]


def masked(ids: Tokens) -> Tokens:
    """How ids are kept in a target whose tokens are read, but not learnt: negative.

    It is its own inverse.
    """
    return -1 - ids


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text.

    Raises:
        ValueError: If it changes the text's own ids when adding them.
    """
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    full: list[int] = tokenizer("a")["input_ids"]  # type: ignore[assignment]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError(
        f"{type(tokenizer).__name__} encodes 'a' as {bare} without and {full} with special tokens "
        "· the second must contain the first · use another tokenizer."
    )


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a target.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token.
    """
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has eos_token=None · an end-of-sequence token must end "
            "every target · set tokenizer.eos_token."
        )
    return int(eos)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up: the padding token or, if there is none, the end-of-sequence one.

    Attention masks and labels of -100 hide the padding, so its id never matters to a loss.
    """
    pad: Any = tokenizer.pad_token_id
    return end_id(tokenizer) if pad is None else int(pad)


def _array(ids: Sequence[int]) -> Tokens:
    return np.asarray(ids, dtype=np.int32)
