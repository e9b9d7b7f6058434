"""Folders as a run, a sweep and an adaptation leave them, without training anything."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

METRICS = ("exact_match", "rouge_l")


def names(count: int) -> list[str]:
    """Task names of a few families."""
    families = ("capital", "plural", "backwards", "translate", "question")
    return [f"{families[i % len(families)]}_{i:04d}" for i in range(count)]


def allocations(
    rng: np.random.Generator, *, tasks: int, heads: int, skills: int, layers: int, sharpness: float
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights and gates of tasks in families that use skills alike, permuted in each layer."""
    families = rng.normal(size=(5, skills))
    logits = families[np.arange(tasks) % 5] + 0.4 * rng.normal(size=(tasks, skills))
    weights, gates = {}, {}
    for layer in range(layers):
        name = f"encoder.block.{layer}.layer.0.SelfAttention.q"
        own = np.stack([logits[:, rng.permutation(skills)] for _ in range(heads)], axis=1)  # t q s
        z = 1 / (1 + np.exp(-sharpness * (own + 0.3 * rng.normal(size=own.shape))))
        gates[name], weights[name] = z, z / z.sum(-1, keepdims=True)
    return weights, gates


def write_look(
    folder: Path,
    tag: str,
    *,
    step: int,
    tasks: Sequence[str],
    weights: dict[str, np.ndarray],
    gates: dict[str, np.ndarray],
) -> None:
    """One file of `allocations/`."""
    (folder / "allocations").mkdir(parents=True, exist_ok=True)
    tensors = {
        f"weights/{name}": np.ascontiguousarray(w, np.float16) for name, w in weights.items()
    }
    tensors |= {f"gates/{name}": np.ascontiguousarray(z, np.float16) for name, z in gates.items()}
    about = {
        "step": str(step),
        "words": f"step {step}",
        "tag": tag,
        "tasks": json.dumps([*tasks]),
        "input_routed": "false",
        "layers_total": str(len(weights)),
    }
    save_file(tensors, folder / "allocations" / f"{tag}.safetensors", about)


def write_run(
    folder: Path,
    *,
    tasks: Sequence[str],
    heads: int = 2,
    skills: int = 4,
    layers: int = 3,
    steps: Sequence[int] = (0, 50, 100),
    seed: int = 0,
) -> dict[str, Any]:
    """A finished run's files; returns its last weights and its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, step in enumerate(steps):
        weights, gates = allocations(
            np.random.default_rng(seed),
            tasks=len(tasks),
            heads=heads,
            skills=skills,
            layers=layers,
            sharpness=0.1 + 2.5 * place / max(1, len(steps) - 1),
        )
        write_look(folder, f"step{step:06d}", step=step, tasks=tasks, weights=weights, gates=gates)
    metrics = _metrics(np.random.default_rng(seed + 1), tasks)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    config = {
        "name": "fabricated",
        "seed": seed,
        "backbone": {"name_or_path": "tiny"},
        "adapter": {"poly_type": "poly", "r": 4, "n_skills": skills, "n_splits": heads},
        "trainer": {"max_steps": steps[-1]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"polylab": "0.1.0", "torch": "2.9.0", "device": "cpu", "commit": f"c0ffee{seed}"}
    (folder / "environment.json").write_text(json.dumps(environment))
    _write_history(folder, np.random.default_rng(seed + 2), last=steps[-1])
    _write_routing(folder, steps, [*weights])
    return {"weights": weights, "gates": gates, "metrics": metrics}


def _metrics(rng: np.random.Generator, tasks: Sequence[str]) -> dict[str, Any]:
    scores = {t: {m: float(rng.uniform(0.2, 1)) for m in METRICS} for t in tasks}
    sure = {t: {m: [v - 0.1, v + 0.05] for m, v in own.items()} for t, own in scores.items()}
    macro = {m: float(np.mean([own[m] for own in scores.values()])) for m in METRICS}
    losses = {t: {"loss": float(rng.uniform(0.01, 2)), **own} for t, own in scores.items()}
    intervals = {
        "level": 0.95,
        "tasks": sure,
        "macro": {m: [v - 0.02, v + 0.02] for m, v in macro.items()},
    }
    test = {"loss": 0.4, "macro": macro, "tasks": losses, "intervals": intervals}
    families = {t: [t.split("_")[0]] for t in tasks}
    return {"test": test, "task_categories": families, "checkpoint": "best", "seconds": 83.5,
            "trainable_parameters": 891768}  # fmt: skip


def _write_history(folder: Path, rng: np.random.Generator, *, last: int) -> None:
    lines = []
    for step in range(10, last + 1, 10):
        fall = float(np.exp(-step / 60))
        line = {
            "step": step,
            "seconds": step * 0.1,
            "train/loss": 0.3 + 2 * fall + 0.1 * rng.random(),
        }
        if step % 50 == 0:
            line |= {"val/loss": 0.4 + 2 * fall, "val/exact_match": 0.8 * (1 - fall)}
            line |= {"routing/entropy": 0.6 + 0.4 * fall, "routing/discreteness": 0.7 - fall / 2}
        lines.append(json.dumps(line) + "\n")
    (folder / "history.jsonl").write_text("".join(lines))


def _write_routing(folder: Path, steps: Sequence[int], layers: Sequence[str]) -> None:
    rows = ["step,layer,split,entropy,discreteness,density,usage_entropy,effective_skills\n"]
    for step in steps:
        for place, layer in enumerate(["", *layers]):
            base = 1 - 0.4 * step / max(1, steps[-1]) - 0.03 * place
            rows.append(f"{step},{layer},,{base:.4f},{1 - base:.4f},0.5,{base:.4f},3.2\n")
    (folder / "routing.csv").write_text("".join(rows))


def write_interventions(folder: Path, *, tasks: Sequence[str], skills: int) -> None:
    """What an evaluation of interventions leaves."""
    ends = {"change": -0.1, "change_low": -0.3, "change_high": 0.1}
    cells = [
        {"task": task, "skill": k, "metric": metric, **ends, "allocation": 0.5 + k + place}
        for place, task in enumerate(tasks)
        for k in range(skills)
        for metric in ("exact_match", "loss")
    ]
    write_table(folder / "knockout.csv", cells)
    first = {"routing": "learned", "metric": "exact_match", "value": 0.7, "low": 0.6, "high": 0.8}
    later = {**first, "routing": "shuffled"}
    write_table(
        folder / "interventions.csv",
        [{**first, "change": "", "change_low": "", "change_high": ""}, {**later, **ends}],
    )
    (folder / "findings.txt").write_text("The routing is used.\nSkill 1 is not.\n")


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file with the first row's columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())


def write_sweep(
    folder: Path,
    *,
    jobs: int,
    tasks: Sequence[str],
    failed: Sequence[int] = (),
    same: int | None = None,
) -> None:
    """A sweep over skills and seeds; each job is a small run of its own.

    Args:
        folder: Of the sweep.
        jobs: How many.
        tasks: Names.
        failed: Jobs that failed before they wrote anything.
        same: Write so many runs, and copies of them for the other jobs.
    """
    rng, rows = np.random.default_rng(0), []
    for job in range(jobs):
        skills, lost = (3, 4)[job % 2], job in failed
        place = folder / f"{job:03d}"
        if same is not None and job >= 2 * same:
            shutil.copytree(folder / f"{job % (2 * same):03d}", place)
        elif not lost:
            write_run(place, tasks=tasks, skills=skills, seed=job, layers=2, steps=(0, 100))
        score = "" if lost else round(float(rng.uniform(0.4, 0.9)), 4)
        rows.append({
            "job": job, "folder": place.name, "status": "failed" if lost else "completed",
            "adapter.n_skills": skills, "optim.lr": (0.001, 0.003, 0.01)[job % 3],
            "seed": job // 6, "val/exact_match": score, "test/exact_match": score,
            "routing/entropy": "" if lost else round(float(rng.uniform(0.5, 1)), 4),
            "trainable_parameters": 891768, "seconds": "" if lost else 60 + job,
            "commit": "c0ffee", "started": "2026-01-01", "error": "out of memory" if lost else "",
        })  # fmt: skip
    write_table(folder / "results.csv", rows)
