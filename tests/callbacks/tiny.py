"""Tiny models, a LightningModule that is not ours, and data whose skills are known."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

TASKS = ["add", "compare", "copy", "read", "upper"]
SKILLS = ["arithmetic", "text", "judgement"]
TRUTH = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]]).bool()
N_SKILLS = 4
VOCABULARY = 40


def t5_model():
    size = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_heads": 2}
    config = T5Config(**size, num_layers=1, dropout_rate=0.0, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config), ["q", "wi"]


def gpt2_model():
    size = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = GPT2Config(vocab_size=VOCABULARY, **size, **special)
    return GPT2LMHeadModel(config), ["c_attn"]


class ForeignModule(LightningModule):
    """A LightningModule that is not ours: a Poly model deep inside, plain losses."""

    def __init__(self, model, *, learning_rate=0.05):
        super().__init__()
        self.network = torch.nn.ModuleDict({"inner": model})
        self.learning_rate = learning_rate

    def loss(self, batch):
        keys = ("input_ids", "attention_mask", "labels", "task_ids")
        return self.network["inner"](**{k: batch[k] for k in keys}).loss

    def training_step(self, batch):
        return self.loss(batch)

    def validation_step(self, batch):
        self.log("val/loss", self.loss(batch), batch_size=len(batch["input_ids"]))

    def test_step(self, batch):
        self.log("test/loss", self.loss(batch), batch_size=len(batch["input_ids"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class TinyData(LightningDataModule):
    """Random tokens; task ids in turn; 2 of 6 tokens of every other row are padding."""

    def __init__(self, *, task_names=TASKS, truth=TRUTH, n_batches=3, batch=6, decoder_only=False):
        super().__init__()
        self.task_names = task_names
        self.skill_matrix = None if truth is None else (truth, SKILLS)
        self.n_batches, self.batch, self.decoder_only = n_batches, batch, decoder_only

    def batches(self):
        draw = torch.Generator().manual_seed(1)
        found = []
        for b in range(self.n_batches):
            ids = torch.randint(2, VOCABULARY, (self.batch, 6), generator=draw)
            mask = torch.ones_like(ids)
            mask[::2, 4:] = 0
            labels = ids.clone() if self.decoder_only else ids[:, :3].clone()
            labels[:, -1] = -100
            if self.decoder_only:
                labels[:, :4] = -100  # the prompt
            task_ids = (torch.arange(self.batch) + b) % len(TASKS)
            batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            if self.decoder_only:
                batch |= {"prompt_ids": ids[:, :4], "prompt_attention_mask": mask[:, :4]}
            found.append({**batch, "task_ids": task_ids})
        return found

    def train_dataloader(self):
        return DataLoader(self.batches(), batch_size=None)

    val_dataloader = test_dataloader = train_dataloader


class Clock:
    """Stands still, but for what is waited."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


class Memory(Logger):
    """Keeps what is logged."""

    name = version = "memory"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def series(self, key):
        return [(step, row[key]) for step, row in self.rows if key in row]
