"""No callback of the default makes the host wait for the device within a training step."""

import pytest
import torch
from hydra.utils import get_class
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from polylab.callbacks import (
    AllocationHistory,
    GradientAlignment,
    Recovery,
    RoutingStatistics,
    SkillFigures,
    SkillRedundancy,
    SkillTable,
    Throughput,
    UpdateSizes,
)
from polylab.config.paths import config_folder
from tests.callbacks.tiny import TinyData

WITHIN_A_STEP = [
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
]  # fmt: skip
# they count on the device, or on the host alone, and save
MAY = {"Throughput", "RunCheckpoint", "Progress"}


def test_no_sync_where_there_is_no_hook():
    for option in ("default", "gradients"):
        nodes = OmegaConf.load(config_folder("conf") / "callbacks" / f"{option}.yaml")
        for name, node in nodes.items():
            if name == "defaults":
                continue
            kind = get_class(node._target_)
            used = [h for h in WITHIN_A_STEP if getattr(kind, h) is not getattr(Callback, h)]
            assert not used or kind.__name__ in MAY, (name, used)


class Guard(Callback):
    """Opens before, or closes behind, what the callbacks between two of them do within a step.

    In between every wait for the device is an error. The model's own waits are no callback's; the
    last step logs, and may wait.
    """

    def __init__(self, *, opens):
        self.opens, self.hooks = opens, 0

    def turn(self, trainer):
        if not self.opens:
            self.hooks += torch.cuda.get_sync_debug_mode() == 2
            torch.cuda.set_sync_debug_mode("default")
        elif trainer.global_step + 1 < trainer.max_steps:
            torch.cuda.set_sync_debug_mode("error")


def _turn(guard, trainer, *_):
    guard.turn(trainer)


for _hook in WITHIN_A_STEP:
    setattr(Guard, _hook, _turn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_sync_in_a_training_step(build, fit, tmp_path):
    kept = [
        Throughput(), RoutingStatistics(), SkillRedundancy(), UpdateSizes(), AllocationHistory(),
        Recovery(n_permutations=3), SkillFigures(tmp_path, max_share=None), SkillTable(tmp_path),
        GradientAlignment(every_n_validations=1),
    ]  # fmt: skip
    first, last = Guard(opens=True), Guard(opens=False)
    try:
        fit(
            build(), TinyData(n_batches=6), [first, *kept, last], accelerator="gpu",
            max_steps=6, val_check_interval=3, log_every_n_steps=50,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert last.hooks >= 4 * len(WITHIN_A_STEP)
