"""What the W&B workspace of polylab shows: sections of panels, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SECTIONS", "Curves", "Images", "Parallel", "Section", "build_workspace"]

X = "trainer/global_step"
_ALL_TASKS = "^{}/.+/{}$"


@dataclass(frozen=True)
class Curves:
    """Lines over the steps: of `keys`, or of all keys that `regex` matches."""

    title: str
    keys: tuple[str, ...] = ()
    regex: str | None = None


@dataclass(frozen=True)
class Images:
    """Pictures with a slider over the steps."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Parallel:
    """A line for each run of a sweep, through settings (`config.KEY`) and results."""

    title: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Panels below one heading."""

    name: str
    panels: tuple[Curves | Images | Parallel, ...]
    is_open: bool = True


_IMAGES = ("allocation", "layers", "by_layer", "task_hierarchy", "task_similarity", "change")

SECTIONS = (
    Section(
        "Scores",
        (
            Curves("val: macro", ("val/exact_match", "val/rouge_l", "val/accuracy")),
            Curves("test: macro", ("test/exact_match", "test/rouge_l", "test/accuracy")),
            Curves("val: exact match by task", regex=_ALL_TASKS.format("val", "exact_match")),
            Curves("loss", ("train/loss", "val/loss")),
            Curves("does the routing matter?",
                   ("routing/learned_loss", "routing/uniform_loss", "routing/shuffled_loss")),
        ),
    ),
    Section("Skills", tuple(Images(n.replace("_", " "), (f"skills/{n}",)) for n in _IMAGES)),
    Section(
        "Routing",
        (
            Curves("entropy: 1 = uniform", ("routing/entropy", "routing/usage_entropy")),
            Curves("gates", ("routing/discreteness", "routing/density")),
            Curves("effective skills", ("routing/effective_skills",)),
            Curves("dead and duplicate skills",
                   ("routing/dead_skills", "routing/duplicate_skills")),
            Curves("change since the start", ("routing/change",)),
            Curves("mutual information", ("routing/mutual_information",
                                          "routing/task_information")),
            Curves("recovery of known skills", ("routing/recovery", "routing/recovery_baseline")),
        ),
    ),
    Section("Layers", (Curves("entropy by layer", regex=r"^routing/entropy/.+"),), is_open=False),
    Section(
        "Training",
        (
            Curves("learning rates", regex=r"^lr/.+"),
            Curves("gradient norms", regex=r"^grad_norm/.+"),
            Curves("loss by task", regex=_ALL_TASKS.format("train", "loss")),
        ),
        is_open=False,
    ),
    Section(
        "Throughput",
        (
            Curves("tokens per second", ("throughput/tokens_per_second",)),
            Curves("padding", ("throughput/padding",)),
            Curves("memory, MiB", ("memory/peak_mb",)),
        ),
        is_open=False,
    ),
    Section(
        "Sweep",
        (
            Parallel("settings and results", (
                "config.adapter.poly_type", "config.adapter.n_skills", "config.adapter.n_splits",
                "config.optim.router_lr", "routing/entropy", "routing/effective_skills",
                "test/exact_match",
            )),
        ),
        is_open=False,
    ),
)  # fmt: skip


def build_workspace(*, entity: str, project: str, name: str) -> Any:
    """The view as `wandb_workspaces` has it; `save()` sends it.

    Raises:
        ModuleNotFoundError: Without the extra `view`.
    """
    import wandb_workspaces.workspaces as ws  # pyright: ignore[reportMissingImports]

    sections = [
        ws.Section(
            name=section.name, panels=[*map(_panel, section.panels)], is_open=section.is_open
        )
        for section in SECTIONS
    ]
    settings = ws.WorkspaceSettings(x_axis=X)
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=sections, settings=settings
    )


def _panel(panel: Curves | Images | Parallel) -> Any:
    import wandb_workspaces.reports.v2 as wr  # pyright: ignore[reportMissingImports]

    if isinstance(panel, Images):
        return wr.MediaBrowser(
            title=panel.title, media_keys=[*panel.keys], mode="gallery", gallery_axis="step",
            num_columns=1,
        )  # fmt: skip
    if isinstance(panel, Parallel):
        columns = [wr.ParallelCoordinatesPlotColumn(_column(name)) for name in panel.columns]
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    return wr.LinePlot(title=panel.title, x=X, y=[*panel.keys], metric_regex=panel.regex)


def _column(name: str) -> Any:
    import wandb_workspaces.reports.v2 as wr  # pyright: ignore[reportMissingImports]

    is_setting = name.startswith("config.")
    return wr.Config(name.removeprefix("config.")) if is_setting else wr.SummaryMetric(name)
