"""What the tests of callbacks share: modules, short runs, an offline W&B logger."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from polylab.poly.config import PolyConfig
from polylab.poly.model import PolyModel
from tests.callbacks.tiny import N_SKILLS, TASKS, ForeignModule, Memory, gpt2_model, t5_model


@pytest.fixture
def build():
    """`build(kind, **poly)`: a foreign module around a fresh Poly model, equal at every call."""

    def make(kind="t5", *, learning_rate=0.05, **poly):
        torch.manual_seed(5)
        base, targets = {"t5": t5_model, "gpt2": gpt2_model}[kind]()
        defaults = {"r": 2, "n_tasks": len(TASKS), "n_skills": N_SKILLS}
        config = PolyConfig(target_modules=targets, **{**defaults, **poly})
        return ForeignModule(PolyModel(base, config), learning_rate=learning_rate)

    return make


@pytest.fixture
def offline_wandb(tmp_path, monkeypatch):
    """An offline logger whose files all stay in `tmp_path`; the run is ended by the test."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    wandb.teardown()  # it reads the environment once a process: another test's may be kept
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    yield WandbLogger(project="polylab", save_dir=tmp_path, settings=settings, offline=True)
    wandb.finish()


@pytest.fixture
def fit(tmp_path):
    """`fit(module, data, callbacks, **trainer)`: a short CPU run in `tmp_path`; the trainer."""

    def run(module, data, callbacks, *, ckpt_path=None, **arguments):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        defaults = {"max_steps": 5, "val_check_interval": 2, "log_every_n_steps": 2}
        trainer = Trainer(
            **{
                **quiet,
                **defaults,
                "accelerator": "cpu",
                "devices": 1,
                "check_val_every_n_epoch": None,
                "default_root_dir": tmp_path,
                "enable_checkpointing": False,
                "logger": False,
                "callbacks": callbacks,
                **arguments,
            }
        )
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


@pytest.fixture
def memory():
    return Memory()
