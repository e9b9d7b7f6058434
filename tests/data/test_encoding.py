"""Token ids and budgets."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from polylab.data.encoding import TextEncoder, padding_id, special_tokens
from polylab.data.tokenizing import BareTokenizer


def _encoder(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> TextEncoder:
    arguments = {"is_encoder_decoder": True, "max_input_length": 6, "max_target_length": 4}
    return TextEncoder(tokenizer, **{**arguments, **changes})


def _input(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.encode_inputs([text])[0].tolist()


def _byt5(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


def test_inputs_and_targets_end(byt5: PreTrainedTokenizerBase) -> None:
    encoder = _encoder(byt5)
    assert _input(encoder, "abc") == [*_byt5("abc"), 1]
    assert encoder.encode_targets(["é"])[0].tolist() == [*_byt5("é"), 1]


def test_a_long_input_keeps_its_end_and_a_long_target_its_start(
    byt5: PreTrainedTokenizerBase,
) -> None:
    encoder = _encoder(byt5)
    assert _input(encoder, "abcdefgh") == [*_byt5("defgh"), 1]
    assert _input(_encoder(byt5, keep_input="start"), "abcdefgh") == [*_byt5("abcde"), 1]
    assert encoder.encode_targets(["abcdefgh"])[0].tolist() == [*_byt5("abc"), 1]


def test_a_batch_is_encoded_like_its_rows(byt5: PreTrainedTokenizerBase) -> None:
    encoder = _encoder(byt5)
    together = encoder.encode_inputs(["ab", "", "abcdefgh"])
    assert [ids.tolist() for ids in together] == [
        _input(encoder, text) for text in ("ab", "", "abcdefgh")
    ]


def test_a_text_that_spells_the_end_does_not_warn(byt5: PreTrainedTokenizerBase) -> None:
    assert _input(_encoder(byt5), "ab</s>")[-1] == 1


def test_decoder_only_inputs_end_with_the_separator(
    gpt2_like: PreTrainedTokenizerBase, llama_like: PreTrainedTokenizerBase
) -> None:
    ids = gpt2_like("cde\n")["input_ids"]
    encoder = _encoder(gpt2_like, is_encoder_decoder=False, max_input_length=4)
    assert _input(encoder, "abcde") == ids
    encoder = _encoder(llama_like, is_encoder_decoder=False, max_input_length=5)
    assert _input(encoder, "abcde") == [0, *ids]
    cut = _encoder(gpt2_like, is_encoder_decoder=False, max_input_length=4, keep_input="start")
    assert _input(cut, "abcde") == gpt2_like("abc\n")["input_ids"]


def test_a_decoder_only_input_is_never_empty(gpt2_like: PreTrainedTokenizerBase) -> None:
    encoder = _encoder(gpt2_like, is_encoder_decoder=False, separator="")
    assert _input(encoder, "") == [1]


@pytest.mark.parametrize("kind", ["byt5", "gpt2_like", "llama_like"])
@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_lengths_are_those_of_the_ids(
    kind: str, is_encoder_decoder: bool, request: pytest.FixtureRequest
) -> None:
    encoder = _encoder(request.getfixturevalue(kind), is_encoder_decoder=is_encoder_decoder)
    inputs, targets = ["", "a", "abcd", "abcdefgh"], ["abcdef", "", "é", "ab"]
    assert encoder.count(inputs, targets).tolist() == [
        [len(x), len(y)]
        for x, y in zip(encoder.encode_inputs(inputs), encoder.encode_targets(targets), strict=True)
    ]
    assert encoder.count([], []).shape == (0, 2)


def test_an_empty_decoder_only_input_counts(gpt2_like: PreTrainedTokenizerBase) -> None:
    encoder = _encoder(gpt2_like, is_encoder_decoder=False, separator="")
    assert encoder.count([""], [""]).tolist() == [[1, 1]]


TEXTS = ["", "a", "déjà </s> vu", "  two\n lines ", "<s>", "long " * 50]


@pytest.mark.parametrize("kind", ["byt5", "gpt2_like", "llama_like"])
def test_bare_ids_are_those_of_the_tokenizer(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    bare = BareTokenizer(tokenizer)
    expected = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert bare.is_fast == (kind != "byt5")
    assert bare(TEXTS) == expected
    assert bare.count(TEXTS) == [*map(len, expected)]
    assert bare([]) == bare.count([]) == []


def test_padding_of_others_does_not_matter(gpt2_like: PreTrainedTokenizerFast) -> None:
    gpt2_like.pad_token = "</s>"
    expected = gpt2_like(TEXTS, add_special_tokens=False)["input_ids"]
    gpt2_like(TEXTS, padding=True, truncation=True, max_length=3)
    bare = BareTokenizer(gpt2_like)
    assert bare(TEXTS) == expected
    gpt2_like(TEXTS, padding=True, truncation=True, max_length=3)
    assert bare(TEXTS) == expected
    assert gpt2_like.backend_tokenizer.padding is not None


def test_tokens_in_the_text_are_split_if_the_tokenizer_does(
    gpt2_like: PreTrainedTokenizerFast,
) -> None:
    whole = BareTokenizer(gpt2_like)(["</s>"])
    gpt2_like.split_special_tokens = True
    split = BareTokenizer(gpt2_like)(["</s>"])
    assert whole == [[1]]
    assert split == [gpt2_like("</s>", add_special_tokens=False)["input_ids"]] != whole


def test_a_tokenizer_with_its_own_way_keeps_it(gpt2_like: PreTrainedTokenizerFast) -> None:
    class Own(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **_: Any) -> Any:
            return {"input_ids": [[7] for _ in text]}

    bare = BareTokenizer(Own(tokenizer_object=gpt2_like.backend_tokenizer))
    assert not bare.is_fast
    assert bare(["ab", "c"]) == [[7], [7]]


def test_without_the_newer_call_of_the_library(
    gpt2_like: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tokenizers before 0.21."""
    bare = BareTokenizer(gpt2_like)
    expected = bare(TEXTS)
    old = SimpleNamespace(encode_batch=bare._backend.encode_batch)
    monkeypatch.setitem(bare.__dict__, "_backend", old)
    assert bare(TEXTS) == expected


def test_what_is_truncated(byt5: PreTrainedTokenizerBase) -> None:
    encoder = _encoder(byt5)
    assert encoder.is_truncated("abcde", "abc") == (False, False)
    assert encoder.is_truncated("abcdef", "abcd") == (True, True)


def test_special_tokens(
    byt5: PreTrainedTokenizerBase,
    gpt2_like: PreTrainedTokenizerBase,
    llama_like: PreTrainedTokenizerBase,
) -> None:
    assert special_tokens(byt5) == ([], [1])
    assert special_tokens(gpt2_like) == ([], [])
    assert special_tokens(llama_like) == ([0], [])


def test_special_tokens_that_change_the_text(
    byt5: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(byt5),
        "__call__",
        lambda _self, _text, add_special_tokens=True: {
            "input_ids": [8] if add_special_tokens else [9]
        },
    )
    with pytest.raises(ValueError, match=r"ByT5Tokenizer encodes 'a' as \[9\] without and \[8\]"):
        special_tokens(byt5)


def test_padding(byt5: PreTrainedTokenizerBase, gpt2_like: PreTrainedTokenizerBase) -> None:
    assert padding_id(byt5) == 0
    assert padding_id(gpt2_like) == 1
    assert gpt2_like.pad_token is None


def test_a_target_must_end(endless: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="has eos_token=None"):
        _encoder(endless)
    with pytest.raises(ValueError, match="has eos_token=None"):
        padding_id(endless)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_input_length": 1}, r"data\.max_input_length=1 · .* 1 tokens .* · use 2 or more"),
        ({"max_target_length": 0}, r"data\.max_target_length=0 · .* 1 tokens .* · use 2 or more"),
        ({"keep_input": "middle"}, r"data\.keep_input='middle' · valid: end, start"),
    ],
)
def test_wrong_budgets(
    byt5: PreTrainedTokenizerBase, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _encoder(byt5, **changes)
