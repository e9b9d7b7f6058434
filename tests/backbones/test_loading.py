"""Backbones load from local folders in the hub's format; every failure is one line."""

import json
import time

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from polylab.backbones import load_backbone, loading

TOKENS = ["<unk>", "</s>", "a", "b", "c", "d", "e"]


def _tokenizer(**special):
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


def _t5():
    size = {"vocab_size": 19, "d_model": 8, "d_kv": 4, "d_ff": 6, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**size, decoder_start_token_id=0))


def _gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=19, n_positions=11, n_embd=8, n_layer=1, n_head=2))


def _llama():
    size = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2))


@pytest.mark.parametrize(
    ("make", "is_encoder_decoder"), [(_t5, True), (_gpt2, False), (_llama, False)]
)
def test_a_saved_folder_loads_back(tmp_path, make, is_encoder_decoder):
    model = make().eval()
    model.save_pretrained(tmp_path)
    _tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.is_encoder_decoder is is_encoder_decoder
    assert backbone.name == str(tmp_path)
    assert type(backbone.model) is type(model)
    assert not backbone.model.training
    assert backbone.tokenizer("b e")["input_ids"] == [3, 6]
    expected = model.state_dict()
    found = backbone.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_tokenizer_without_pad_token_pads_with_eos(tmp_path):
    _gpt2().save_pretrained(tmp_path)
    _tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.tokenizer.pad_token == "</s>"
    assert backbone.model.config.pad_token_id == 1
    assert backbone.model.generation_config.pad_token_id == 1


def test_a_pad_token_is_kept(tmp_path):
    _gpt2().save_pretrained(tmp_path)
    _tokenizer(eos_token="</s>", pad_token="e").save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.tokenizer.pad_token_id == backbone.model.config.pad_token_id == 6


def test_a_tokenizer_without_any_special_token_is_refused(tmp_path):
    _gpt2().save_pretrained(tmp_path)
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: its tokenizer has no pad, eos or unk"):
        load_backbone(tmp_path)


def test_a_dtype_is_honoured(tmp_path):
    _t5().save_pretrained(tmp_path)
    _tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    assert load_backbone(tmp_path, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_backbone(tmp_path).model.dtype == torch.float32
    with pytest.raises(ValueError, match=r"backbone.dtype=int8 is not known; choose one of auto"):
        load_backbone(tmp_path, dtype="int8")


def test_an_attention_implementation_is_passed_on(tmp_path):
    _llama().save_pretrained(tmp_path)
    _tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, attn_implementation="eager")
    assert backbone.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["tiny", "polylab/tiny"])
def test_the_embedded_name_is_a_folder_of_the_package_in_half_precision(
    tmp_path, monkeypatch, name
):
    _t5().bfloat16().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "TINY_FOLDER", tmp_path)
    backbone = load_backbone(name)
    assert backbone.model.dtype == torch.float32
    assert isinstance(backbone.tokenizer, ByT5Tokenizer)
    assert backbone.is_encoder_decoder
    assert backbone.name == name
    assert load_backbone(name, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_missing_folder_is_named(tmp_path):
    for path in (tmp_path / "nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"{path}: there is no folder"):
            load_backbone(path)


def test_a_folder_without_a_model_is_named_with_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no config.json \(it holds notes.txt\)"):
        load_backbone(tmp_path)


def test_a_folder_that_does_not_load_is_one_line(tmp_path):
    _gpt2().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"the folder does not load: .*model.safetensors") as caught:
        load_backbone(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "martian"}')
    with pytest.raises(OSError, match=r"the folder does not load: .*martian"):
        load_backbone(tmp_path)


def test_an_architecture_without_the_head_is_named(tmp_path):
    config = BertConfig(
        vocab_size=19,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"model_type": "vit"}))
    with pytest.raises(ValueError, match="model_type=vit has no AutoModelForCausalLM"):
        load_backbone(tmp_path)


def test_without_a_network_a_hub_name_fails_fast_in_one_line(monkeypatch):
    monkeypatch.setattr(loading.hub, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        ConnectionError, match=r"no-one/nothing: http://127.0.0.1:9 cannot"
    ) as caught:
        load_backbone("no-one/nothing")
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)


def test_offline_mode_asks_no_network(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setattr(loading.urllib.request, "urlopen", None)
    with pytest.raises(ConnectionError, match=r"no-one/nothing: .* not in the local cache"):
        load_backbone("no-one/nothing")
