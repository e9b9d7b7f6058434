"""Load a Hugging Face backbone and its tokenizer, by hub name or local folder.

Every failure a user can cause (a folder that is not there, no network, an architecture without a
text-to-text head) ends in one exception with a one-line message.
"""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from polylab.backbones.activations import fuse_activations
from polylab.backbones.quantization import (
    enable_checkpointing,
    prepare_quantized,
    quantization_options,
)

TINY_NAMES = ("tiny", "polylab/tiny")
TINY_FOLDER = Path(__file__).resolve().parent / "tiny"
TINY_ENCODER = "tiny_encoder"  # an architecture only, for `from_scratch`
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
HUB_TIMEOUT = 5.0  # seconds until a hub that does not answer counts as unreachable


@dataclass(frozen=True)
class Backbone:
    """A pretrained model ready to be adapted, with the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool
    name: str
    is_encoder: bool = False
    """Encoder-only: it reads and does not generate."""


def load_backbone(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    from_scratch: bool = False,
    quantization: str | None = None,
    gradient_checkpointing: bool = False,
) -> Backbone:
    """Load `name_or_path` through transformers' `from_pretrained`, model in eval mode.

    Args:
        name_or_path: A hub name (`google/flan-t5-base`), a folder in the format of
            `save_pretrained`, or `tiny` for the backbone embedded in this package.
        dtype: `auto` takes the checkpoint's own dtype; the embedded backbone is stored in half
            precision to be small and `auto` means float32 there.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run modelling code that comes with the checkpoint.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, ...; by default what
            transformers picks.
        from_scratch: Take only the architecture and give it fresh random weights, to pretrain them.
        quantization: `4bit` or `8bit`: hold the linear layers so, through bitsandbytes, and what is
            left in float32.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.

    Raises:
        ValueError: On an unknown dtype or quantization, or an architecture with neither a
            sequence-to-sequence nor a causal head, or a tokenizer without any token to pad with.
        ModuleNotFoundError: If bitsandbytes is needed and not installed.
        FileNotFoundError: If the local folder is missing or has no config.json.
        ConnectionError: If the hub cannot be reached and the files are not in the local cache.
        OSError: If the hub has no such repository or file, or the local files do not load.
    """
    quantized = _precision_options(dtype, quantization, from_scratch=from_scratch)
    name = str(name_or_path)
    embedded = name in (*TINY_NAMES, TINY_ENCODER)
    source = _embedded_folder(name, from_scratch=from_scratch) if embedded else name
    local = embedded or _is_local(name)
    if local:
        _check_folder(source, name)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    options["local_files_only"] = local or not _hub_is_reachable()
    with _one_line_errors(name, local=local, offline=not local and options["local_files_only"]):
        config = AutoConfig.from_pretrained(source, **options)
    auto_class = _auto_class(config, name)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    options["dtype"] = _torch_dtype("float32" if embedded and dtype == "auto" else dtype)
    with _one_line_errors(name, local=local, offline=not local and options["local_files_only"]):
        if from_scratch:
            model = auto_class.from_config(config)
        else:
            model = auto_class.from_pretrained(source, config=config, **options, **quantized)
        del options["dtype"]
        options.pop("attn_implementation", None)
        tokenizer = (
            ByT5Tokenizer() if embedded else AutoTokenizer.from_pretrained(source, **options)
        )
    if auto_class is AutoModel:
        _prepare_encoder(model, tokenizer)
    _ensure_pad_token(model, tokenizer, name)
    fuse_activations(model)
    if quantized:
        prepare_quantized(model)
    if gradient_checkpointing:
        enable_checkpointing(model)
    is_encoder = auto_class is AutoModel
    return Backbone(model.eval(), tokenizer, bool(config.is_encoder_decoder), name, is_encoder)


def _embedded_folder(name: str, *, from_scratch: bool) -> str:
    if name == TINY_ENCODER and not from_scratch:
        raise ValueError(
            f"backbone.name_or_path={name}: it is an architecture without weights; set "
            "backbone.from_scratch=true."
        )
    return str(TINY_FOLDER.with_name(TINY_ENCODER) if name == TINY_ENCODER else TINY_FOLDER)


def _precision_options(
    dtype: str, quantization: str | None, *, from_scratch: bool
) -> dict[str, Any]:
    if dtype not in DTYPES:
        raise ValueError(f"backbone.dtype={dtype} is not known; choose one of {', '.join(DTYPES)}.")
    quantized = quantization_options(quantization)
    if quantized and from_scratch:
        raise ValueError(
            f"backbone.quantization={quantization} with backbone.from_scratch=true: quantised "
            "weights cannot be pretrained; leave one of the two out."
        )
    return quantized


def _torch_dtype(dtype: str) -> str | torch.dtype:
    return dtype if dtype == "auto" else getattr(torch, dtype)


def _is_local(name: str) -> bool:
    """Whether `name` is spelled like a path, or is one. A hub name is `name` or `owner/name`."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return looks_like_path or Path(name).is_dir()


def _check_folder(source: str, name: str) -> None:
    if not Path(source).is_dir():
        raise FileNotFoundError(
            f"backbone.name_or_path={name}: there is no folder {source}; give a hub name such as "
            "google/flan-t5-base or a folder written by save_pretrained."
        )
    if not (Path(source) / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in Path(source).iterdir())[:5]) or "nothing"
        raise FileNotFoundError(
            f"backbone.name_or_path={name}: the folder {source} has no config.json (it holds "
            f"{found}); give a folder written by save_pretrained."
        )


def _hub_is_reachable() -> bool:
    """One short request, through the proxies that the environment names.

    The hub client itself retries a name that does not resolve for 23 seconds.
    """
    if hub.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "0") not in ("", "0"):
        return False
    try:
        request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _one_line_errors(name: str, *, local: bool, offline: bool) -> Iterator[None]:
    """Turn transformers' many-line errors into one line, and silence what it logs before them."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        where = f"backbone.name_or_path={name}"
        if offline:
            raise ConnectionError(
                f"{where}: {hub.ENDPOINT} cannot be reached and the files are not in the local "
                "cache; connect, or give a local folder, or use backbone=tiny."
            ) from None
        reason = " ".join(str(error).split())[:300]
        kind = "the folder does not load" if local else "the hub does not give it"
        raise OSError(f"{where}: {kind}: {reason}") from None
    finally:
        hf_logging.set_verbosity(level)


def _auto_class(config: PreTrainedConfig, name: str) -> Any:
    """The class by what transformers registers: with a head that generates, or the encoder alone.

    Encoders have a causal head too in transformers, but only `is_decoder` makes it causal.
    """
    masked = AutoModelForMaskedLM._model_mapping.keys()
    reads_only = not config.is_encoder_decoder and not getattr(config, "is_decoder", False)
    if reads_only and type(config) in masked:
        return AutoModel
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    remote = getattr(config, "auto_map", None) or {}
    # transformers keeps no public lookup from a configuration to "has such a head"
    if type(config) not in kind._model_mapping.keys() and kind.__name__ not in remote:  # noqa: SIM118
        raise ValueError(
            f"backbone.name_or_path={name}: model_type={config.model_type} has no {kind.__name__}; "
            "use an encoder-decoder (T5, BART, ...) or a decoder-only (GPT-2, Llama, ...) model."
        )
    return kind


def _prepare_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop BERT's pooler, whose adapters would never be trained; end texts with the separator."""
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token


def _ensure_pad_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """Decoder-only checkpoints often have no pad token: pad with eos, which masks ignore."""
    if tokenizer.pad_token_id is None:
        spare = tokenizer.eos_token or tokenizer.unk_token
        if spare is None:
            raise ValueError(
                f"backbone.name_or_path={name}: its tokenizer has no pad, eos or unk token; set "
                "pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = spare
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
