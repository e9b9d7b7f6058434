"""What the tests of training share: tiny models with dropout, a data module, a trainer."""

import logging
import os
import socket
from pathlib import Path
from queue import Empty

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import multiprocessing
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import (
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from polylab.poly import PolyConfig, get_peft_model
from polylab.training import AtomicCheckpointIO, PolyModule, RunCheckpoint

TASKS = ["copy", "first", "upper"]
VOCABULARY = 384
CONF = Path(__file__).parents[2] / "conf"


def ddp():
    """The strategy of `trainer=ddp`."""
    given = yaml.safe_load((CONF / "trainer/ddp.yaml").read_text())["strategy"]
    assert given.pop("_target_") == "lightning.pytorch.strategies.DDPStrategy"
    return DDPStrategy(**given)


@pytest.fixture
def free_port():
    return find_port()


def find_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _rank(rank, port, work, folder, results):
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }
    torch.manual_seed(rank)
    results.put((rank, work(folder)))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@pytest.fixture
def on_two_ranks():
    return _on_two_ranks


def _on_two_ranks(work, port, folder):
    """`work(folder)` of an importable function, on each of two ranks."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    running = multiprocessing.spawn(
        _rank, args=(port, work, str(folder), results), nprocs=2, join=False
    )
    found = {}
    while len(found) < 2:
        try:
            rank, result = results.get(timeout=1)
            found[rank] = result
        except Empty:
            running.join(timeout=0)  # raises the error of a rank that failed
    running.join()
    return [found[0], found[1]]


def t5(dropout=0.1):
    size = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_heads": 2}
    config = T5Config(**size, num_layers=1, dropout_rate=dropout, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def gpt2(dropout=0.1):
    drops = {"embd_pdrop": dropout, "attn_pdrop": dropout, "resid_pdrop": dropout}
    size = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **size, **special, **drops))


def build_module(kind="t5", *, dropout=0.1, poly=None, **settings):
    """A fresh `PolyModule`, the same one at every call."""
    torch.manual_seed(5)
    base = {"t5": t5, "gpt2": gpt2}[kind](dropout).eval()  # as from_pretrained gives it
    targets = {"t5": ["q", "v"], "gpt2": ["c_attn"]}[kind]
    adapter = {"r": 2, "n_skills": 4, "target_modules": targets, "noise_source": "keyed"}
    config = PolyConfig(**{"n_tasks": len(TASKS), **adapter, **(poly or {})})
    settings = {"max_new_tokens": 4, "task_names": TASKS, **settings}
    return PolyModule(get_peft_model(base, config), ByT5Tokenizer(), **settings)


@pytest.fixture
def poly_module():
    return build_module


@pytest.fixture
def make_data():
    return Data


def rows(n, *, seed=0):
    """Examples `(task id, input, target)`; tasks of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        length = int(torch.randint(2, 7, (1,), generator=draw))
        text = "".join(chr(97 + int(c)) for c in torch.randint(0, 26, (length,), generator=draw))
        task = 0 if i % 4 else 1 + i % 3 % 2
        found.append((task, text, (text, text[:1], text.upper())[task]))
    return found


def collate(items, *, is_encoder_decoder=True):
    """A batch in the form of the data module's, evaluation keys included."""
    tokenizer = ByT5Tokenizer()

    def pad(sequences, value, *, left=False):
        width = max(map(len, sequences))
        fill = [[value] * (width - len(s)) for s in sequences]
        pairs = zip(sequences, fill, strict=True)
        return torch.tensor([f + s if left else s + f for s, f in pairs])

    inputs = [tokenizer(text)["input_ids"] for _, text, _ in items]
    targets = [tokenizer(target)["input_ids"] for _, _, target in items]
    batch = {
        "task_ids": torch.tensor([task for task, *_ in items]),
        "rows": torch.arange(len(items)),
        "inputs": [text for _, text, _ in items],
        "references": [[target] for *_, target in items],
    }
    if is_encoder_decoder:
        masks = [[1] * len(ids) for ids in inputs]
        labels = pad(targets, -100)
    else:
        batch["prompt_ids"] = pad(inputs, 0, left=True)
        batch["prompt_attention_mask"] = pad([[1] * len(ids) for ids in inputs], 0, left=True)
        labels = pad([[-100] * len(a) + b for a, b in zip(inputs, targets, strict=True)], -100)
        inputs = [a + b for a, b in zip(inputs, targets, strict=True)]
        masks = [[1] * len(ids) for ids in inputs]
    return batch | {"input_ids": pad(inputs, 0), "attention_mask": pad(masks, 0), "labels": labels}


@pytest.fixture
def make_batch():
    """`make_batch(n, only=None, ...)`: n rows, or of these the one row `only`."""

    def make(n, *, only=None, **options):
        found = rows(n)
        return collate(found if only is None else [found[only]], **options)

    return make


class Data(LightningDataModule):
    """Shuffled, resumable training batches and one pass over the evaluation rows per rank."""

    def __init__(self, *, batch_size=4, n_train=22, n_val=7, is_encoder_decoder=True):
        super().__init__()
        self.sizes = (n_train, n_val)
        self.batch_size = batch_size
        self.options = {"is_encoder_decoder": is_encoder_decoder}

    def _collate(self, items):
        return collate(items, **self.options)

    def _mine(self, found):
        return found[self.trainer.global_rank :: self.trainer.world_size]

    def train_dataloader(self):
        return StatefulDataLoader(
            self._mine(rows(self.sizes[0])),
            batch_size=self.batch_size,
            shuffle=True,
            collate_fn=self._collate,
        )

    def val_dataloader(self):
        found = self._mine(rows(self.sizes[1], seed=1))
        return DataLoader(found, batch_size=3, collate_fn=self._collate)

    def test_dataloader(self):
        return self.val_dataloader()


class Memory(Logger):
    """Keeps what it is given, as `(step, metrics)`."""

    name = "memory"
    version = 0

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))

    def log_hyperparams(self, params):
        raise AssertionError(f"the run's configuration is logged elsewhere, not {params}")

    def series(self, key):
        return {step: metrics[key] for step, metrics in self.lines if key in metrics}


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(folder, **Trainer arguments)`: quiet, on one CPU, with `RunCheckpoint`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def make(folder="run", *, callbacks=(), every_n_steps=None, monitor="val/exact_match", **kw):
        keep = RunCheckpoint(tmp_path / folder, every_n_steps=every_n_steps, monitor=monitor)
        settings = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": Memory(),
            "log_every_n_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(tmp_path),
            "plugins": [AtomicCheckpointIO()],
        }
        return Trainer(callbacks=[*callbacks, keep], **{**settings, **kw})

    return make


@pytest.fixture
def seeded():
    """Reset every global generator; call it before each run that is compared with another."""
    return lambda seed=3: seed_everything(seed, verbose=False)
