"""What all tests share: one thread, no network, no credentials, tolerances, tiny backbones."""

import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

# before torch is imported
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
_SCRATCH = tempfile.TemporaryDirectory(prefix="polylab-tests-")
for _name in (
    *("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"),
    "HF_DATASETS_CACHE",
):
    os.environ[_name] = str(Path(_SCRATCH.name) / _name.lower())
    Path(os.environ[_name]).mkdir()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NETRC"] = str(Path(_SCRATCH.name) / "netrc")  # nobody's credentials
for _name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "HYDRA_FULL_ERROR"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tolerance() -> dict[str, float]:
    """How close float32 results on the CPU are: `torch.testing.assert_close(a, b, **tolerance)`."""
    return {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def logits_tolerance() -> dict[str, float]:
    """The same for logits of about 1, after a whole model that sums in another order."""
    return {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random byte-level T5 with its tokenizer, as `save_pretrained` writes them."""
    from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=384,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_heads=2,
        num_layers=2,  # with fewer than the decoder's, transformers 5.23 cannot generate
        num_decoder_layers=1,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random byte-level GPT-2 with its tokenizer."""
    from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=384,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random byte-level Llama in bfloat16 with its tokenizer."""
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "first": lambda text: text[0],
    "upper": str.upper,
}


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of 60 rows in JSONL files."""
    folder, rng = tmp_path_factory.mktemp("tasks"), random.Random(0)
    for name, answer in TASKS.items():
        inputs = {"".join(rng.choice("abcdefgh") for _ in range(5)) for _ in range(60)}
        rows = [{"input": text, "target": answer(text)} for text in sorted(inputs)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder
