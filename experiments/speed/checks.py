"""Before anything is timed: contenders that should compute the same do."""

from __future__ import annotations

import copy

import torch
from contenders import Contender
from torch import Tensor


def same_as_peft(ours: Contender, theirs: Contender, batch: dict[str, Tensor]) -> dict[str, float]:
    """Losses and gradients of polylab's Poly and of PEFT's, with its weights.

    Both get skills that do something: at the start B is zero. The weights are put back.

    Returns:
        The largest relative difference of loss and gradients, and the tolerance of the dtype.

    Raises:
        SystemExit: If it is exceeded.
    """
    before = [copy.deepcopy([p.data for p in c.trained]) for c in (ours, theirs)]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.model.named_parameters():
            if "poly_lora_B" in name:
                parameter.normal_(std=0.02)
        for mine, its in zip(ours.trained, theirs.trained, strict=True):
            mine.copy_(its)
    # without noise: on CUDA a draw for many layers has other numbers than many draws
    loss, found = _without_noise(ours, batch)
    wanted_loss, wanted = _without_noise(theirs, batch)
    worst = compare(
        f"{ours.name} and {theirs.name}",
        (loss, [*found.values()]),
        (wanted_loss, [*wanted.values()]),
        tolerance=tolerance_of(ours),
    )
    with torch.no_grad():
        for contender, kept in zip((ours, theirs), before, strict=True):
            for parameter, data in zip(contender.trained, kept, strict=True):
                parameter.copy_(data)
    return worst


def _without_noise(
    contender: Contender, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    contender.model.eval()
    found = contender.gradients(batch)
    contender.model.train()
    return found


def tolerance_of(contender: Contender) -> float:
    """How far rounding may take all gradients together: of 16 bits, through up to 32 blocks."""
    dtypes = {p.dtype for p in contender.model.parameters() if not p.requires_grad}
    return 0.1 if torch.bfloat16 in dtypes else 1e-4


def compare(
    what: str,
    found: tuple[Tensor, list[Tensor]],
    wanted: tuple[Tensor, list[Tensor]],
    *,
    tolerance: float,
) -> dict[str, float]:
    """Relative differences of a loss and of all gradients together.

    Raises:
        SystemExit: If one is above the tolerance.
    """
    if len(found[1]) != len(wanted[1]):
        raise SystemExit(f"{what} have {len(found[1])} and {len(wanted[1])} gradients.")
    difference = sum(
        (a.double() - b.double()).square().sum() for a, b in zip(found[1], wanted[1], strict=True)
    )
    size = sum(b.double().square().sum() for b in wanted[1])
    worst = {
        "loss": abs(float(found[0] - wanted[0])) / abs(float(wanted[0])),
        "gradients": float((difference / size).sqrt()) if wanted[1] else 0.0,
        "tolerance": tolerance,
    }
    if not (worst["loss"] < tolerance and worst["gradients"] < tolerance):
        raise SystemExit(f"{what} do not compute the same: {worst}")
    return worst
