"""A new run from the adapter of a finished one: `init_from=RUN_DIR`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from polylab.data.tasks import quote

if TYPE_CHECKING:
    from torch import nn

    from polylab.poly import PolyConfig, PolyModel

__all__ = ["warm_started"]

# What a trained adapter computes depends on these beside the shapes of its tensors. Training's own
# settings (noise, priors, dropout, ...) are the new run's.
_SAME = (
    *("poly_type", "r", "n_splits", "n_private", "combine", "alpha", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "granularity", "allocation", "router"),
    *("router_input", "router_level", "gating", "top_k"),
)


def warm_started(base: nn.Module, config: PolyConfig, folder: Path) -> PolyModel:
    """The model with a new adapter that starts as the run's: old ids compute what they did.

    New tasks get fresh routing; new skills are shut for the old tasks.

    Args:
        base: The backbone, of the same name as the run's.
        config: Of the new run; its tasks begin with those of the old one.
        folder: Of the old run.

    Raises:
        FileNotFoundError: If the run has no adapter.
        ValueError: If the adapters differ in more than tasks and skills, or the new one has fewer.
    """
    from polylab.poly import get_peft_model
    from polylab.poly.io import read_adapter
    from polylab.poly.tensors import check_tensors, copy_tensors

    saved, tensors = read_adapter(folder / "adapter", trust_code=True)  # classes are compared below
    _check(saved, config, folder)
    old = replace(
        config, n_tasks=saved.n_tasks, task_names=saved.task_names, n_skills=saved.n_skills
    )
    check_tensors(tensors, old, model=base)
    model = get_peft_model(base, old)
    copy_tensors(tensors, model.model, adapter_name=model.active_adapter)
    new = (config.task_names or [])[saved.n_tasks :]
    if new:
        model.add_tasks(new)
    if config.n_skills > saved.n_skills:
        model.add_skills(config.n_skills - saved.n_skills)
    return model


def _check(saved: PolyConfig, config: PolyConfig, folder: Path) -> None:
    differ = [
        f"adapter.{name} was {getattr(saved, name)} and is {getattr(config, name)}"
        for name in _SAME
        if getattr(saved, name) != getattr(config, name)
    ]
    if differ:
        raise ValueError(
            f"init_from={folder}: {', '.join(differ)} · a warm start may have more tasks and more "
            "skills, and else the same adapter · restore the settings."
        )
    if config.n_skills < saved.n_skills:
        raise ValueError(
            f"init_from={folder}: adapter.n_skills={config.n_skills}, and the run has "
            f"{saved.n_skills} · give as many or more."
        )
    if (config.task_names or [])[: saved.n_tasks] != saved.task_names:
        raise ValueError(
            f"init_from={folder}: the run's tasks {quote(saved.task_names or [], 8)} must be the "
            "first ones · leave data.known_tasks out."
        )
