"""Texts into the ids of their own tokens, as fast as the tokenizer can."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


class BareTokenizer:
    """Gives the ids that `tokenizer(texts, add_special_tokens=False)` gives.

    A fast tokenizer is called below transformers, in a copy of its own: that spares offsets which
    nobody reads, and padding that others set on the tokenizer meanwhile does not matter, in
    whichever thread.

    Args:
        tokenizer: Any Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # a class that has its own way of encoding keeps it
        self.is_fast = (
            isinstance(tokenizer, PreTrainedTokenizerFast)
            and type(tokenizer).__call__ is PreTrainedTokenizerFast.__call__
            and type(tokenizer)._encode_plus is PreTrainedTokenizerFast._encode_plus
        )

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text."""
        if self.is_fast:
            return [encoding.ids for encoding in self._encodings(texts)]
        if not texts:
            return []  # a slow tokenizer refuses
        return self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]  # type: ignore[return-value]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Number of ids of every text."""
        return [*map(len, self._encodings(texts) if self.is_fast else self(texts))]

    def fingerprint(self) -> str:
        """Changes with the tokenizer, so far as it gives other ids for the same text."""
        kind = type(self._tokenizer)
        if self.is_fast:
            state = self._backend.to_str()
        else:  # what a tokenizer in Python goes by, as far as it says
            told = (sorted(self._tokenizer.get_vocab().items()), self._tokenizer.init_kwargs)
            state = json.dumps([kind.__module__, kind.__qualname__, told], default=str)
        return blake2b(state.encode(), digest_size=16).hexdigest()

    @cached_property
    def _backend(self) -> Any:
        assert isinstance(self._tokenizer, PreTrainedTokenizerFast)
        backend = copy.deepcopy(self._tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = self._tokenizer.split_special_tokens
        return backend

    def _encodings(self, texts: Sequence[str]) -> Sequence[Any]:
        # encode_batch_fast came with tokenizers 0.21
        encode = getattr(self._backend, "encode_batch_fast", self._backend.encode_batch)
        return encode(list(texts), add_special_tokens=False)
