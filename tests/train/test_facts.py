"""The facts of a run, also of one that is made of others' classes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from polylab.terminal.facts import facts


def test_every_kind_of_run_has_its_facts(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    check = [*small, "debug=validate", "logger=csv", "optim.other_lr=1e-3"]
    variants = {
        "adapter=c_poly": "c-poly · rank 2 · 6 skills · 1 split · 3 tasks",
        "adapter.granularity=block": "poly · rank 2 · 3 skills · 1 split · 3 tasks",
        "adapter.trainable=router": "poly · rank 2 · 3 skills · 1 split · 3 tasks",
    }
    for override, adapter in variants.items():
        done = run_here(*check, override, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
        assert done.code == 0, done.err
        found = _rows(done.out)
        assert found["adapter"].startswith(adapter)
        assert "layers" in found
        assert found["tracker"] == "CSVLogger"
        assert done.err == ""
        assert len(done.out.splitlines()) <= 20
        assert "one router per block" in done.out or "granularity" not in override
        assert "only the router trained" in done.out or "trainable" not in override


class Plain(nn.Module):
    """A module with nothing that polylab knows of."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.frozen = nn.Linear(7, 3, dtype=dtype).requires_grad_(False)
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_of_others_classes_only_what_is_known(dtype: torch.dtype, tmp_path: Path) -> None:
    module = Plain(dtype)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        world_size=2, accumulate_grad_batches=3, max_steps=-1, max_epochs=4, precision="bf16-true",
        strategy=device, fast_dev_run=True,
    )  # fmt: skip
    parts: Any = SimpleNamespace(
        model=module, module=module, data=object(), trainer=trainer, logger=None, task_names=[]
    )
    cfg = OmegaConf.create(
        {"backbone": {"name_or_path": "mine"}, "seed": 5, "ckpt_path": "a/last.ckpt",
         "init_from": "b"}
    )  # fmt: skip
    found = _rows(facts(cfg, parts, folder=tmp_path))
    assert found == {
        "backbone": f"mine · 32 parameters · {str(dtype).removeprefix('torch.')}",
        "adapter": "none",
        "trainable": "8 parameters · 25.00% of all",
        "data": "object",
        "batch": "3 accumulated",
        "length": "4 epochs · fast_dev_run",
        "device": "2 x cpu, SimpleNamespace · precision bf16-true",
        "seed": "5",
        "continues": "a/last.ckpt",
        "init_from": "b",
        "tracker": "none",
        "folder": str(tmp_path),
    }


def _rows(text: str) -> dict[str, str]:
    return {line[:11].strip(): line[11:] for line in text.splitlines() if line[:1].strip()}
