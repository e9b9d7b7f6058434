"""Datasets and padded batches."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from polylab.data import Example
from polylab.data.collate import Collator, check_task_ids, pad
from polylab.data.dataset import EncodedExamples
from polylab.data.encoding import TextEncoder, padding_id

EXAMPLES = [
    [Example("abc", "x", ("x", "y"))],
    [Example("d", "wz", instruction="Do.\nd"), Example("ef", "", ("q",))],
]


def _dataset(
    tokenizer: PreTrainedTokenizerBase, *, is_encoder_decoder: bool = True, prompt: str = "none"
) -> EncodedExamples:
    encoder = TextEncoder(
        tokenizer,
        is_encoder_decoder=is_encoder_decoder,
        max_input_length=20,
        max_target_length=5,
    )
    return EncodedExamples(
        EXAMPLES, task_names=["first", "second"], task_ids=[4, 2], encoder=encoder, prompt=prompt
    )


def _batch(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> dict[str, Any]:
    is_encoder_decoder = changes.get("is_encoder_decoder", True)
    dataset = _dataset(tokenizer, is_encoder_decoder=is_encoder_decoder)
    collator = Collator(
        **{
            "pad_id": padding_id(tokenizer),
            "n_tasks": 5,
            "is_encoder_decoder": is_encoder_decoder,
            **changes,
        }
    )
    return collator(dataset.__getitems__([(1, 7), (0, 8)]))


def test_items_carry_task_and_row(byt5: PreTrainedTokenizerBase) -> None:
    dataset = _dataset(byt5)
    assert len(dataset) == 3
    item = dataset[2, 9]
    assert (item.text, item.task_id, item.row, item.references) == ("ef", 2, 9, ("q",))


def test_the_prompt_is_in_the_input(byt5: PreTrainedTokenizerBase) -> None:
    assert _dataset(byt5, prompt="name").text(0) == "first: abc"
    assert _dataset(byt5, prompt="instruction")[1, 0].text == "Do.\nd"
    ids = _dataset(byt5, prompt="instruction")[1, 0].input_ids
    assert byt5.decode(ids.tolist(), skip_special_tokens=True) == "Do.\nd"


def test_each_text_is_encoded_once(
    byt5: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    encode = TextEncoder.encode_inputs

    def spy(self: TextEncoder, texts: list[str]) -> Any:
        calls.append(list(texts))
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode_inputs", spy)
    dataset = _dataset(byt5)
    dataset.__getitems__([(1, 0), (0, 1), (1, 2)])
    dataset.__getitems__([(0, 0), (2, 1)])
    dataset.__getitems__([(1, 0)])
    assert calls == [["abc", "d"], ["ef"]]


def test_truncated_shares(byt5: PreTrainedTokenizerBase) -> None:
    encoder = TextEncoder(byt5, is_encoder_decoder=True, max_input_length=3, max_target_length=2)
    dataset = EncodedExamples(
        EXAMPLES, task_names=["a", "b"], task_ids=[0, 1], encoder=encoder, prompt="none"
    )
    assert dataset.truncated(sample=9) == pytest.approx((1 / 3, 1 / 3))
    assert dataset.truncated(sample=1) == (1.0, 0.0)
    nothing = EncodedExamples([], task_names=[], task_ids=[], encoder=encoder, prompt="none")
    assert nothing.truncated(sample=9) == (0.0, 0.0)


def test_a_seq2seq_batch(byt5: PreTrainedTokenizerBase) -> None:
    batch = _batch(byt5)
    assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels", "task_ids", "rows"), torch.int64
    )
    a, b, c, d, w, x, z = (byte + 3 for byte in b"abcdwxz")
    assert batch["input_ids"].tolist() == [[d, 1, 0, 0], [a, b, c, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[w, z, 1], [x, 1, -100]]
    assert batch["task_ids"].tolist() == [2, 4]
    assert batch["rows"].tolist() == [7, 8]


def test_an_evaluation_batch_has_the_texts(byt5: PreTrainedTokenizerBase) -> None:
    batch = _batch(byt5, evaluation=True)
    assert batch["inputs"] == ["d", "abc"]
    assert batch["references"] == [["wz"], ["x", "y"]]
    assert "prompt_ids" not in batch


def test_a_decoder_only_batch(llama_like: PreTrainedTokenizerBase) -> None:
    batch = _batch(llama_like, is_encoder_decoder=False, evaluation=True)
    ids = {c: llama_like(c, add_special_tokens=False)["input_ids"][0] for c in "abcdwxz\n"}
    a, b, c, d, w, x, z, newline = (ids[character] for character in "abcdwxz\n")
    assert batch["input_ids"].tolist() == [
        [0, d, newline, w, z, 1, 1],
        [0, a, b, c, newline, x, 1],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    assert batch["labels"].tolist() == [
        [-100, -100, -100, w, z, 1, -100],
        [-100, -100, -100, -100, -100, x, 1],
    ]
    assert batch["prompt_ids"].tolist() == [[1, 1, 0, d, newline], [0, a, b, c, newline]]
    assert batch["prompt_attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5]


def test_a_decoder_only_training_batch_has_no_prompts(
    gpt2_like: PreTrainedTokenizerBase,
) -> None:
    batch = _batch(gpt2_like, is_encoder_decoder=False)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "task_ids", "rows"}


def test_an_id_out_of_range_is_named(byt5: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"task ids \[4\] · valid are 0 to 3 \(n_tasks=4\)"):
        _batch(byt5, n_tasks=4)
    with pytest.raises(ValueError, match=r"task ids \[-1, 9\] · valid are 0 to 2"):
        check_task_ids([9, 0, -1, 9], 3)


def test_padding_on_either_side() -> None:
    sequences = [np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)]
    assert pad(sequences, 9).tolist() == [[5, 6], [7, 9]]
    assert pad(sequences, 9, left=True).tolist() == [[5, 6], [9, 7]]
