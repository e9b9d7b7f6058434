"""Encoder-only backbones, by their configuration."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from polylab.backbones import load_backbone
from polylab.poly import PolyConfig, get_peft_model
from polylab.training import ClassificationModule
from polylab.training.heads import HEAD, add_heads

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 384,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[Any, list[str]]] = {
    "bert": (BertConfig(**SIZE), ["query", "dense"]),
    "roberta": (RobertaConfig(**SIZE), ["query", "dense"]),
    "electra": (ElectraConfig(**SIZE, embedding_size=16), ["query", "dense"]),
    "deberta": (DebertaV2Config(**SIZE), ["query_proj", "dense"]),
    "modernbert": (ModernBertConfig(**SIZE, cls_token_id=1, sep_token_id=1), ["Wqkv", "Wo"]),
}


def save_tokenizer(folder):
    """Of words, with BERT's special tokens and no end of sequence."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_weight_of_a_mixed_batch_gets_a_gradient(kind, tmp_path):
    config, targets = KINDS[kind]
    config.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    torch.manual_seed(0)
    backbone = load_backbone(tmp_path, from_scratch=True)
    assert backbone.is_encoder
    assert not backbone.is_encoder_decoder
    labels = [["a", "b", "c"], ["no", "yes"]]
    add_heads(backbone.model, [3, 2])
    adapter = PolyConfig(
        r=3, n_skills=4, n_tasks=2, target_modules=targets, modules_to_save=[HEAD], noise="none"
    )
    model = get_peft_model(backbone.model, adapter)
    module = ClassificationModule(
        model, backbone.tokenizer, task_names=["x", "y"], label_sets=labels
    )
    batch = {
        "input_ids": torch.randint(3, 300, (5, 7)),
        "attention_mask": torch.tensor([[1] * 7, [1] * 3 + [0] * 4, *[[1] * 5 + [0] * 2] * 3]),
        "task_ids": torch.tensor([0, 1, 0, 1, 1]),
        "labels": torch.tensor([[2], [0], [1], [1], [-100]]),
    }
    with torch.no_grad():  # B starts at 0, where A has no gradient
        for name, parameter in model.named_parameters():
            if "poly_lora_B" in name:
                parameter.normal_()
    losses = module.example_losses(batch)
    assert losses.tokens.tolist() == [1, 1, 1, 1, 0]
    assert losses.losses[4] == 0
    losses.losses.sum().backward()
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    still = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    assert still == []
    texts = module.generate_texts(batch)
    assert all(t in labels[i] for t, i in zip(texts, [0, 1, 0, 1, 1], strict=True))


def test_a_bert_that_is_a_decoder_generates(tmp_path):
    config = BertConfig(**SIZE, is_decoder=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not load_backbone(tmp_path).is_encoder


def test_pretrained_weights_are_those_of_the_file(tmp_path):
    torch.manual_seed(0)
    saved = BertModel(BertConfig(**SIZE)).eval()
    saved.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path).model
    ids = torch.randint(3, 300, (2, 6))
    assert torch.equal(loaded(ids).last_hidden_state, saved(ids).last_hidden_state)
