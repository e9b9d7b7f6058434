"""Each figure: what it takes from the tables, and the words that say what is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from polylab.callbacks.figures.by_layer import short_layer_names
from polylab.callbacks.figures.curves import (
    Curve,
    Point,
    draw_changes,
    draw_curves,
    draw_points,
)
from polylab.callbacks.figures.maps import column_width, share_scale
from polylab.callbacks.figures.rows import Rows
from polylab.callbacks.figures.sheet import Sheet, map_panel
from polylab.config.errors import ConfigError
from polylab.papers.jobs import Job, read_adaptations, read_jobs

__all__ = ["FIGURES", "draw"]

SKILLS = "adapter.n_skills"
_MOST_SETTINGS = 8
_CURVES = (
    ("routing/discreteness", "discreteness (1 = open or shut)", (0.0, 1.0)),
    ("routing/density", "density: share of open gates", (0.0, 1.0)),
    ("routing/usage_entropy", "usage entropy (1 = all skills alike)", (0.0, 1.02)),
    ("routing/effective_skills", "effective number of skills", None),
    ("routing/entropy", "routing entropy (1 = uniform)", (0.0, 1.02)),
)


def draw(name: str, folder: Path, *, metric: str) -> Figure:
    """The figure of this name from the tables in `folder`.

    Raises:
        ConfigError: If the folder lacks what it needs.
    """
    return FIGURES[name](folder, metric)


def changes(folder: Path, metric: str) -> Figure:
    """Change of every task against the run with one shared skill and the same seed."""
    jobs = read_jobs(folder)
    shared = _baselines(jobs)
    others = [job for job in jobs if job not in shared.values()]
    if not shared or not others:
        missing = "other job" if shared else "shared baseline"
        raise ConfigError(
            f"figure=changes: no {missing} among the {len(jobs)} completed jobs of {folder} · "
            "sweep over adapter=lora,poly"
        )
    base = {seed: job.task_scores(metric) for seed, job in shared.items()}
    by_setting: dict[str, list[dict[str, float]]] = {}
    for job in others:
        if job.seed in base:
            scores, before = job.task_scores(metric), base[job.seed]
            change = {task: scores[task] - before[task] for task in scores if task in before}
            by_setting.setdefault(job.setting, []).append(change)
    if not by_setting:
        raise ConfigError(
            f"figure=changes: the shared baseline has seed {', '.join(shared)} only, and no other "
            "job has one of these · sweep over the same seeds"
        )
    _few(by_setting, "changes")
    tasks = sorted(set.intersection(*({*one} for ones in by_setting.values() for one in ones)))
    values = {
        setting: np.array([[one[task] for task in tasks] for one in ones])
        for setting, ones in by_setting.items()
    }
    first = next(iter(values.values())).mean(0)
    order = np.argsort(-first, kind="stable")
    means = [f"{setting}: mean change {v.mean():+.3f}" for setting, v in values.items()]
    return draw_changes(
        {setting: v[:, order] for setting, v in values.items()},
        tasks=[tasks[i] for i in order],
        title=f"Change of {metric} against one shared skill",
        shown=[
            f"test, {len(tasks)} tasks · dot: mean over "
            f"{_span([len(v) for v in values.values()])} seeds, each against the shared run of its "
            "seed · line: from the lowest to the highest seed",
            " · ".join(means),
        ],
    )


def _baselines(jobs: list[Job]) -> dict[str, Job]:
    """The run with one shared skill of each seed."""
    found: dict[str, Job] = {}
    for job in jobs:
        if job.config("adapter.poly_type") == "shared":
            other = found.setdefault(job.seed, job)
            if other is not job:
                raise ConfigError(
                    f"figure=changes: with seed {job.seed} there are two shared baselines, "
                    f"{other.setting} and {job.setting} · sweep so that each seed has one"
                )
    return found


def parameters(folder: Path, metric: str) -> Figure:
    """Score of every way to adapt against the parameters that it trains for a task."""
    table = _adaptations(folder, metric)
    points = [_point(str(name), rows, metric) for name, rows in table.groupby("name", sort=False)]
    _few({point.name: point for point in points}, "parameters")
    n_tasks, n_seeds = table["task"].nunique(), table["seed"].nunique()
    return draw_points(
        sorted(points, key=lambda point: point.x),
        axes_names=("trained parameters of one task", f"test {metric}"),
        title=f"{metric} against the parameters of an adaptation",
        shown=[
            f"mean over {n_tasks} tasks and {n_seeds} seeds · line: 95% interval over tasks "
            "(each the mean of its seeds, bootstrapped): of other tasks, not of other seeds",
            "methods with the same number of parameters stand side by side",
        ],
    )


def _adaptations(folder: Path, metric: str) -> pd.DataFrame:
    """A row for each `name`, task and seed, of the tasks that every name has a score of."""
    table = pd.DataFrame(read_adaptations(folder))
    if metric not in table:
        known = [c for c in table.columns if c not in ("task", "method", "shots", "seed")]
        raise ConfigError(f"metric={metric}: not in the tables of {folder} · {', '.join(known)}")
    for column in (metric, "parameters"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    table = table.dropna(subset=[metric])
    table["name"] = table["method"]
    if table["shots"].nunique() > 1:
        table["name"] += ", " + table["shots"] + " shots"
    twice = table[table.duplicated(["name", "task", "seed"])]
    if len(twice):
        name, task, seed = twice.iloc[0][["name", "task", "seed"]]
        raise ConfigError(
            f"figure=parameters: {folder} has {name} on task {task} with seed {seed} more than "
            "once · sweep over methods, shots and seeds alone"
        )
    shared = set.intersection(
        *({*ones} for _, ones in table.groupby("name")["task"]), {*table["task"]}
    )
    if not shared:
        raise ConfigError(
            f"figure=parameters: no task of {folder} has {metric} of every method · adapt all "
            "methods to the same tasks"
        )
    return table.loc[table["task"].isin(shared), :]


def _point(name: str, rows: pd.DataFrame, metric: str) -> Point:
    by_task = np.array([ones[metric].mean() for _, ones in rows.groupby("task")])
    drawn = np.random.default_rng(0).choice(by_task, (2000, len(by_task))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Point(name, float(rows["parameters"].mean()), by_task.mean(), low, high)


def skills(folder: Path, metric: str) -> Figure:
    """Routing statistics and the score against the number of skills."""
    jobs = _by_skills(folder, "skills")
    _check_scores([job for ones in jobs.values() for job in ones], metric)
    curves = []
    for column, words, limits in (*_CURVES, (f"test/{metric}", f"test {metric}", None)):
        if all(job.columns.get(column, "") == "" for ones in jobs.values() for job in ones):
            continue  # adapters without gates have no discreteness
        values = [[job.number(column) for job in ones] for ones in jobs.values()]
        curves.append(
            Curve(
                words,
                [float(np.mean(v)) for v in values],
                [min(v) for v in values],
                [max(v) for v in values],
                limits,
            )
        )
    if not curves:
        raise ConfigError(f"figure=skills: results.csv of {folder} has no routing/... columns")
    return draw_curves(
        curves,
        [float(n) for n in jobs],
        axis="number of skills",
        title="Routing and score against the number of skills",
        shown=[
            f"line: mean over {_seeds(jobs)} seeds · band: from the lowest to the highest",
            "at the end of training; what is here the density is sparsity in papers",
        ],
    )


def layers(folder: Path, metric: str) -> Figure:  # noqa: ARG001
    """Routing entropy of every layer against the number of skills."""
    jobs = _by_skills(folder, "layers")
    found = {n: pd.concat([_layer_entropy(job) for job in ones], axis=1).mean(axis=1)
             for n, ones in jobs.items()}  # fmt: skip
    table = pd.DataFrame(found)
    names = short_layer_names([str(layer) for layer in table.index])
    rows, columns = Rows.of(len(names)), [f"{n} skills" for n in table.columns]
    panel = map_panel(
        table.to_numpy(),
        columns,
        rows,
        scale=share_scale("routing entropy:\n1 = uniform"),
        width=column_width(len(columns)) * len(columns),
    )
    shown = [
        f"mean over tasks, heads and {_seeds(jobs)} seeds · of the final weights (skills.csv)",
        "one number for each layer, so that skills need no matching",
    ]
    title = "Routing entropy by layer against the number of skills"
    return Sheet(title, [*shown, *rows.words("layers")], names, rows).draw([panel])


def _layer_entropy(job: Job) -> pd.Series:
    path = job.folder / "skills.csv"
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file · train with callbacks.table")
    columns = ["layer", "split", "task", "skill", "weight"]
    table = pd.read_csv(path, usecols=columns, keep_default_na=False)  # a task may be called NA
    table["part"] = -table["weight"] * np.log(table["weight"].clip(lower=1e-30))
    by_row = table.groupby(["layer", "split", "task"], sort=False)["part"].sum()
    return (by_row / np.log(table["skill"].nunique())).groupby("layer", sort=False).mean()


def _by_skills(folder: Path, figure: str) -> dict[int, list[Job]]:
    """The jobs by their number of skills, of a sweep over that and seeds alone."""
    jobs = [job for job in read_jobs(folder) if job.config("adapter.poly_type") != "shared"]
    found: dict[int, list[Job]] = {}
    for job in jobs:
        n = job.config(SKILLS)
        if n is not None and n > 1:
            found.setdefault(int(n), []).append(job)
    if len(found) < 2:
        raise ConfigError(
            f"figure={figure}: the completed jobs of {folder} have "
            f"{SKILLS}={', '.join(map(str, found)) or 'none'} · sweep over several, {SKILLS}=2,4,8"
        )
    for n, ones in found.items():
        if len({job.setting for job in ones}) > 1:
            raise ConfigError(
                f"figure={figure}: with {SKILLS}={n} the sweep has {ones[0].setting} and "
                f"{ones[-1].setting} · sweep over {SKILLS} and seed alone"
            )
    return dict(sorted(found.items()))


def _check_scores(jobs: list[Job], metric: str) -> None:
    """Refuse a metric that is none of the test's; jobs without any score are drawn without."""
    scores = {name for job in jobs for name, text in job.columns.items() if text != ""}
    known = [name.removeprefix("test/") for name in sorted(scores) if name.startswith("test/")]
    if known and metric not in known:
        raise ConfigError(
            f"metric={metric}: none of the test's in results.csv · there are {', '.join(known)}"
        )


def _few(settings: Mapping[str, object], figure: str) -> None:
    if len(settings) > _MOST_SETTINGS:
        raise ConfigError(
            f"figure={figure}: {len(settings)} settings beside the baseline, {_MOST_SETTINGS} can "
            "be told apart · sweep over fewer"
        )


def _seeds(jobs: Mapping[int, list[Job]]) -> str:
    return _span([len(ones) for ones in jobs.values()])


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


FIGURES: dict[str, Callable[[Path, str], Figure]] = {
    "changes": changes,
    "parameters": parameters,
    "skills": skills,
    "layers": layers,
}
