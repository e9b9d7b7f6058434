"""The figures of papers: the numbers that are drawn, and what a folder may lack."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polylab.callbacks.figures.curves import Curve, Point, draw_changes, draw_curves, draw_points
from polylab.config.errors import ConfigError
from polylab.config.files import write_json, write_text
from polylab.figures import NAMES
from polylab.papers import FIGURES, draw, drawing

TASKS = ("a", "b", "c")
LAYERS = ("enc.0.q", "enc.1.q")
Sweep = Callable[..., Path]


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _skills_csv(n_skills: int, weights: list[float]) -> str:
    lines = ["layer,split,task,skill,weight,gate"]
    for layer in LAYERS:
        values = weights if layer == LAYERS[0] else [1 / n_skills] * n_skills
        lines += [f"{layer},0,{t},{k},{w}," for t in TASKS for k, w in enumerate(values)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Writes a sweep of finished jobs: `(poly_type, n_skills, seed, scores of the tasks)`."""

    def write(*jobs: tuple[str, int, int, tuple[float, ...]]) -> Path:
        rows = []
        for i, (kind, n, seed, scores) in enumerate(jobs):
            folder = tmp_path / str(i)
            text = f"adapter:\n  poly_type: {kind}\n  n_skills: {n}\n"
            write_text(folder / "config.yaml", text)
            tasks = {t: {"exact_match": s} for t, s in zip(TASKS, scores, strict=True)}
            write_json(folder / "metrics.json", {"test": {"tasks": tasks}})
            certain = [1.0] + [0.0] * (n - 1)
            write_text(folder / "skills.csv", _skills_csv(n, certain))
            rows.append(
                {
                    "job": i, "folder": i, "status": "completed", "logger": f"l{i}",
                    "adapter": kind, "adapter.n_skills": n, "seed": seed,
                    "test/exact_match": sum(scores) / 3, "routing/density": n / 10 + seed / 100,
                    "routing/discreteness": "", "error": "",
                }
            )  # fmt: skip
        rows.append(rows[-1] | {"job": len(jobs), "folder": len(jobs), "status": "failed"})
        _write_table(tmp_path / "results.csv", rows)
        return tmp_path

    return write


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the drawing functions are given."""
    given: dict[str, Any] = {}
    for name in ("draw_changes", "draw_curves", "draw_points", "map_panel"):
        original = getattr(drawing, name)

        def keep(*args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            given[_name] = (args, more)
            return _original(*args, **more)

        monkeypatch.setattr(drawing, name, keep)
    return given


BASELINE = [("shared", 1, 0, (0.5, 0.5, 0.5)), ("shared", 1, 1, (0.25, 0.5, 0.5))]


def test_a_change_is_against_the_baseline_of_the_same_seed(
    sweep: Sweep, drawn: dict[str, Any]
) -> None:
    poly = [("poly", 4, 0, (0.5, 1.0, 0.25)), ("poly", 4, 1, (0.5, 0.75, 0.5))]
    without_baseline = [("poly", 4, 7, (0.0, 0.0, 0.0))]
    figure = draw("changes", sweep(*BASELINE, *poly, *without_baseline), metric="exact_match")
    (changes,), words = drawn["draw_changes"]
    assert words["tasks"] == ["b", "a", "c"]  # most gained first
    assert list(changes) == ["adapter=poly adapter.n_skills=4"]
    assert changes["adapter=poly adapter.n_skills=4"].tolist() == [[0.5, 0, -0.25], [0.25, 0.25, 0]]
    assert "mean change +0.125" in " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([("poly", 4, 0, (1, 1, 1))], "no shared baseline among the 1 completed jobs"),
        (BASELINE, "no other job among the 2 completed jobs"),
        (
            [*BASELINE, ("shared", 2, 1, (1, 1, 1))],
            "with seed 1 there are two shared baselines, adapter.n_skills=1 and adapter.n_skills=2",
        ),
        ([*BASELINE, ("poly", 4, 2, (1, 1, 1))], "the shared baseline has seed 0, 1 only"),
        ([*BASELINE, *[("poly", n, 0, (1, 1, 1)) for n in range(2, 11)]], "9 settings beside"),
    ],
)
def test_what_changes_need(sweep: Sweep, jobs: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"figure=changes: .*{message}"):
        draw("changes", sweep(*jobs), metric="exact_match")


def test_a_metric_that_no_task_has(sweep: Sweep) -> None:
    folder = sweep(*BASELINE, ("poly", 4, 0, (1, 1, 1)))
    with pytest.raises(ConfigError, match=r"metric=bleu: no task of .*0 has it .* exact_match"):
        draw("changes", folder, metric="bleu")
    (folder / "2" / "metrics.json").write_text('{"test": {')
    with pytest.raises(ConfigError, match=r"2/metrics.json: Expecting"):
        draw("changes", folder, metric="exact_match")


BY_SKILLS = [(n, s, (n / 10, s / 2, 0.0)) for n in (8, 2) for s in (0, 1)]


def test_curves_over_the_number_of_skills(sweep: Sweep, drawn: dict[str, Any]) -> None:
    folder = sweep(BASELINE[0], *[("poly", *job) for job in BY_SKILLS])
    draw("skills", folder, metric="exact_match")
    (curves, settings), _ = drawn["draw_curves"]
    assert settings == [2.0, 8.0]
    density, score = curves  # there is no discreteness
    assert density.mean == pytest.approx([0.205, 0.805])
    assert (density.low, density.high) == (pytest.approx([0.2, 0.8]), pytest.approx([0.21, 0.81]))
    assert score.words == "test exact_match"
    assert score.high == pytest.approx([0.7 / 3, 1.3 / 3])


def test_a_metric_that_no_job_has(sweep: Sweep) -> None:
    folder = sweep(*[("poly", *job) for job in BY_SKILLS])
    with pytest.raises(ConfigError, match=r"metric=bleu: none of .*there are exact_match"):
        draw("skills", folder, metric="bleu")


def test_entropy_of_every_layer(sweep: Sweep, drawn: dict[str, Any]) -> None:
    figure = draw("layers", sweep(*[("poly", *job) for job in BY_SKILLS]), metric="exact_match")
    (values, columns, _), _ = drawn["map_panel"]
    assert columns == ["2 skills", "8 skills"]
    np.testing.assert_allclose(values, [[0, 0], [1, 1]], atol=1e-12)  # one-hot, then uniform
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"0.q", "1.q"} <= words or {"enc.0.q", "enc.1.q"} <= words or {"0", "1"} <= words


def test_a_task_of_any_name_counts(sweep: Sweep, drawn: dict[str, Any]) -> None:
    folder = sweep(*[("poly", *job) for job in BY_SKILLS])
    for i in range(len(BY_SKILLS)):
        table = folder / str(i) / "skills.csv"
        lines = [line for line in table.read_text().splitlines() if ",c," not in line]
        even = 1 / BY_SKILLS[i][0]
        lines += [f"{LAYERS[0]},0,NA,{k},{even}," for k in range(BY_SKILLS[i][0])]
        table.write_text("\n".join(lines) + "\n")
    draw("layers", folder, metric="exact_match")
    (values, _, _), _ = drawn["map_panel"]
    np.testing.assert_allclose(values[0], [1 / 3, 1 / 3])  # one of a, b and NA is uniform


def test_a_sweep_over_more_than_skills_and_seeds(sweep: Sweep) -> None:
    jobs = [("poly", 2, 0, (1, 1, 1)), ("poly", 4, 0, (1, 1, 1)), ("c-poly", 4, 0, (1, 1, 1))]
    with pytest.raises(ConfigError, match=r"n_skills=4 the sweep has adapter=poly .* and ada"):
        draw("skills", sweep(*jobs), metric="exact_match")


@pytest.mark.parametrize("figure", ["skills", "layers"])
def test_one_number_of_skills_is_no_curve(sweep: Sweep, figure: str) -> None:
    folder = sweep(("poly", 4, 0, (1, 1, 1)))
    with pytest.raises(ConfigError, match=f"figure={figure}: .*have adapter.n_skills=4 · sweep"):
        draw(figure, folder, metric="exact_match")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_job_that_was_cleared_away(sweep: Sweep, name: str) -> None:
    folder = sweep(*BASELINE, ("poly", 4, 0, (1, 1, 1)))
    (folder / "2" / name).unlink()
    with pytest.raises(ConfigError, match=f"2/{name}: .*No such file"):
        draw("changes", folder, metric="exact_match")


def test_a_run_without_its_allocation(sweep: Sweep) -> None:
    folder = sweep(*[("poly", *job) for job in BY_SKILLS])
    (folder / "1" / "skills.csv").unlink()
    with pytest.raises(ConfigError, match=r"1/skills.csv: there is no such file · train with"):
        draw("layers", folder, metric="exact_match")


def _adaptation(method: str, parameters: int, scores: dict[str, list[float]]) -> list[dict]:
    return [
        {
            "task": task, "method": method, "shots": 16, "seed": seed, "exact_match": score,
            "parameters": parameters, "seconds": 1,
        }
        for task, ones in scores.items()
        for seed, score in enumerate(ones)
    ]  # fmt: skip


def test_points_of_adaptations(tmp_path: Path, drawn: dict[str, Any]) -> None:
    poly = _adaptation("poly", 900, {"a": [0.5, 1.0], "b": [0.0, 0.5]})
    z = _adaptation("z", 30, {"a": [0.25, 0.25], "b": [0.25, 0.25]})
    jobs = [{"job": i, "folder": i, "status": "completed", "seed": 0} for i in range(2)]
    _write_table(tmp_path / "results.csv", [*jobs, {**jobs[0], "folder": 2, "status": "failed"}])
    for i, rows in enumerate((poly, z)):
        _write_table(tmp_path / str(i) / "results.csv", rows)
        write_json(tmp_path / str(i) / "summary.json", {})
    draw("parameters", tmp_path, metric="exact_match")
    (points,), _ = drawn["draw_points"]
    assert points[0] == Point("z", 30.0, 0.25, 0.25, 0.25)  # all tasks alike
    assert (points[1].name, points[1].x, points[1].y) == ("poly", 900.0, 0.5)
    assert (points[1].low, points[1].high) == (0.25, 0.75)  # of the two tasks' means
    with pytest.raises(ConfigError, match=r"metric=bleu: not in the tables of .*exact_match"):
        draw("parameters", tmp_path, metric="bleu")


def test_methods_are_compared_on_the_tasks_that_all_have(
    tmp_path: Path, drawn: dict[str, Any]
) -> None:
    table = tmp_path / "results.csv"
    poly = _adaptation("poly", 900, {"a": [0.5, 1.0], "b": [0.0, 0.5], "c": [1.0, 1.0]})
    z = _adaptation("z", 30, {"a": [0.25, 0.75], "b": [0.25, 0.25]})
    lost = [{**row, "exact_match": ""} for row in _adaptation("z", 30, {"c": [0.0]})]
    _write_table(table, [*poly, *z, *lost])
    draw("parameters", tmp_path, metric="exact_match")
    (points,), words = drawn["draw_points"]
    assert [(point.name, point.y) for point in points] == [("z", 0.375), ("poly", 0.5)]
    assert words["shown"][0].startswith("mean over 2 tasks and 2 seeds")
    _write_table(table, [*poly, *z[:2], *z[:1]])
    with pytest.raises(ConfigError, match=r"has z on task a with seed 0 more than once · sweep"):
        draw("parameters", tmp_path, metric="exact_match")
    _write_table(table, [*poly[:2], *z[2:]])
    with pytest.raises(ConfigError, match=r"no task of .* has exact_match of every method"):
        draw("parameters", tmp_path, metric="exact_match")


def test_folders_that_are_something_else(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no results.csv in it · give the sweep's"):
        draw("skills", tmp_path, metric="exact_match")
    folder = sweep(("poly", 4, 0, (1, 1, 1)))
    with pytest.raises(ConfigError, match="holds no adaptation · make some with"):
        draw("parameters", folder, metric="exact_match")
    table = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(table.replace("completed", "killed"))
    with pytest.raises(ConfigError, match="no job of 2 is completed"):
        draw("skills", folder, metric="exact_match")
    _write_table(folder / "results.csv", _adaptation("z", 3, {"a": [0.5]}))
    with pytest.raises(ConfigError, match=r"its results.csv has no column status"):
        draw("changes", folder, metric="exact_match")


def test_the_command_knows_all_figures() -> None:
    assert tuple(FIGURES) == NAMES


def test_drawings_refuse_what_they_cannot_show() -> None:
    words = {"title": "t", "shown": ["s"]}
    with pytest.raises(ValueError, match="0 settings to draw; give from 1 to 8"):
        draw_changes({}, tasks=["a"], **words)
    with pytest.raises(ValueError, match=r"shape \[2, 3\]"):
        draw_changes({"x": np.zeros((2, 3))}, tasks=["a"], **words)
    with pytest.raises(ValueError, match="9 methods to draw; give from 1 to 8"):
        draw_points([Point("p", 1, 0, 0, 0)] * 9, axes_names=("x", "y"), **words)
    with pytest.raises(ValueError, match="3 settings and 2 values of 'entropy'"):
        draw_curves([Curve("entropy", [1, 2], [1, 2], [1, 2])], [1, 2, 4], axis="n", **words)


def test_methods_of_equal_size_hide_none() -> None:
    points = [Point(name, x, 0.5, 0.25, 0.75) for name, x in (("a", 10), ("b", 10), ("c", 1000))]
    figure = draw_points(points, axes_names=("x", "y"), title="t", shown=["s"])
    axes = figure.axes[0]
    dots = [line for line in axes.lines if line.get_markersize() == 6.5]
    places = [line.get_transform().transform(line.get_xydata())[0] for line in dots]
    assert len(places) == 3
    box = axes.get_window_extent()
    for (x, y), line in zip(places, dots, strict=True):
        assert box.x0 < x < box.x1, line
        assert box.y0 < y < box.y1, line
    assert places[1][0] - places[0][0] == pytest.approx(11)
    assert places[0] == pytest.approx(axes.transData.transform((10, 0.5)))


def test_many_tasks_and_settings_have_room() -> None:
    rng = np.random.default_rng(0)
    changes = {f"adapter.n_skills={n} optim.router_lr={n / 7}": rng.normal(size=(2, 1600))
               for n in range(8)}  # fmt: skip
    figure = draw_changes(
        changes, tasks=[f"task{i}" for i in range(1600)], title="t", shown=["s"] * 2
    )
    assert figure.get_figheight() * 100 < 2200
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
