"""A short run with an offline W&B logger, read back from disk."""

import numpy as np
import pandas as pd
import pytest
import wandb
from PIL import Image

from polylab.callbacks import (
    Recovery,
    RoutingStatistics,
    SkillFigures,
    SkillTable,
    Throughput,
)
from tests.callbacks.tiny import N_SKILLS, TASKS, TinyData
from tests.wandb_reader import read_run

IMAGES = ["skills/allocation", "skills/by_layer", "skills/task_hierarchy"]


@pytest.fixture
def callbacks(tmp_path):
    return [
        RoutingStatistics(),
        Recovery(n_permutations=5),
        SkillFigures(tmp_path, max_share=None),
        SkillTable(tmp_path),
        Throughput(),
    ]


def test_everything_of_a_run_is_in_wandb_and_on_disk(
    build, fit, callbacks, offline_wandb, tmp_path
):
    module = build(n_splits=2)
    trainer = fit(module, TinyData(), callbacks, logger=offline_wandb)
    wandb.finish()
    run = read_run(tmp_path)
    layers = list(module.network["inner"].poly_layers())

    # scalars: at the start, after the validations at 2 and 4, at the end
    for name in ("entropy", "usage_entropy", "discreteness", "z_entropy_bits", "density"):
        steps, values = zip(*run.series(f"routing/{name}"), strict=True)
        assert steps == (0, 2, 4, 5)
        assert all(0 <= v <= 1 for v in values)
    assert all(1 <= v <= N_SKILLS for _, v in run.series("routing/effective_skills"))
    assert [step for step, _ in run.series(f"routing/entropy/{layers[0]}")] == [0, 2, 4, 5]
    assert sum(key.startswith("routing/entropy/") for key in run.summary) == len(layers)
    assert run.series("routing/change")[0] == (0, 0.0)
    assert run.last("routing/change") > 0.01
    assert "routing/mutual_information" not in run.summary
    assert [step for step, _ in run.series("routing/recovery")] == [0, 2, 4, 5]
    assert [step for step, _ in run.series("routing/recovery_baseline")] == [0, 5]
    assert [step for step, _ in run.series("throughput/tokens_per_second")] == [2, 4, 5]
    assert run.last("throughput/tokens_per_second") > 0
    assert run.last("memory/peak_mb") > 50

    # images: of one size through the run, equal to the files
    for key in IMAGES:
        rows = run.series(key)
        assert [step for step, _ in rows] == [0, 2, 4, 5]
        assert {row["_type"] for _, row in rows} == {"image-file"}
        sizes = {Image.open(run.file(row)).size for _, row in rows}
        assert len(sizes) == 1
        assert sizes == {(row["width"], row["height"]) for _, row in rows}
        assert min(min(sizes)) >= 200
        name = key.removeprefix("skills/")
        files = sorted((tmp_path / "figures").glob(f"{name}*.png"))
        tags = ["-step000000", "-step000002", "-step000004", "-step000005", ""]
        assert {f.name for f in files} == {f"{name}{tag}.png" for tag in tags}
        last = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png"))
        np.testing.assert_array_equal(last, np.asarray(Image.open(run.file(rows[-1][1])))[..., :3])

    # table: once, the same as the file
    ((step, table),) = run.series("skills/table")
    assert step == trainer.global_step == 5
    columns, cells = run.table(table)
    assert columns == ["layer", "split", "task", "skill", "weight", "gate"]
    assert len(cells) == len(layers) * len(TASKS) * 2 * N_SKILLS
    csv = pd.read_csv(tmp_path / "skills.csv")
    assert list(csv.columns) == columns
    assert csv[columns[:4]].values.tolist() == [row[:4] for row in cells]
    np.testing.assert_allclose(csv["weight"], [row[4] for row in cells], atol=1e-5)
    w = module.network["inner"].task_weights()[layers[1]]
    cell = csv.query(f"layer == '{layers[1]}' and task == 'read' and split == 1 and skill == 2")
    assert cell["weight"].item() == pytest.approx(w[TASKS.index("read"), 1, 2].item(), abs=1e-5)
    gates = module.network["inner"].task_gates()[layers[1]]
    assert cell["gate"].item() == pytest.approx(gates[TASKS.index("read"), 1, 2].item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:The number of training batches")  # that is the point
@pytest.mark.parametrize("max_steps", [1, 3])
def test_a_run_without_a_validation_logs_its_end(
    build, fit, callbacks, offline_wandb, tmp_path, max_steps
):
    fit(build(), TinyData(), callbacks, logger=offline_wandb, max_steps=max_steps,
        val_check_interval=50, log_every_n_steps=50)  # fmt: skip
    wandb.finish()
    run = read_run(tmp_path)
    for key in ("routing/entropy", "routing/recovery", *IMAGES):
        assert [step for step, _ in run.series(key)] == [0, max_steps]
    for key in ("skills/table", "throughput/tokens_per_second", "memory/peak_mb"):
        assert [step for step, _ in run.series(key)] == [max_steps]


def test_the_figures_of_a_last_validation_are_logged_once(build, fit, offline_wandb, tmp_path):
    fit(
        build(),
        TinyData(),
        [SkillFigures(tmp_path, max_share=None)],
        logger=offline_wandb,
        max_steps=4,
    )
    wandb.finish()
    run = read_run(tmp_path)
    assert [step for step, _ in run.series("skills/allocation")] == [0, 2, 4]
    assert [step for step, _ in run.series("skills/layers")] == [4]


def test_input_routed_adapters(build, fit, callbacks, offline_wandb, tmp_path):
    fit(build(poly_type="mope"), TinyData(n_batches=2), callbacks, logger=offline_wandb)
    wandb.finish()
    run = read_run(tmp_path)
    assert [step for step, _ in run.series("routing/mutual_information")] == [2, 4, 5]
    assert run.last("routing/mutual_information") > 0
    for key in ("routing/discreteness", "routing/density", "routing/z_entropy_bits"):
        assert key not in run.summary
    assert 0 < run.last("routing/entropy") <= 1
    assert run.last("skills/allocation")["_type"] == "image-file"
    _, cells = run.table(run.last("skills/table"))
    assert {row[2] for row in cells} == set(TASKS)
    assert {row[5] for row in cells} == {None}
    assert pd.read_csv(tmp_path / "skills.csv")["gate"].isna().all()


def test_a_later_validation_of_other_weights_is_kept_too(
    build, fit, callbacks, offline_wandb, tmp_path
):
    module, data = build(), TinyData()
    trainer = fit(module, data, callbacks, logger=offline_wandb)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    final = (tmp_path / "skills.csv").read_text()
    trainer.validate(module, data, verbose=False)  # the same weights: nothing new
    assert (tmp_path / "skills.csv").read_text() == final
    assert not list((tmp_path / "figures").glob("*-best.png"))

    for name, p in module.named_parameters():
        if "poly_router" in name:
            p.data.mul_(-3)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    trainer.validate(module, data, ckpt_path=str(tmp_path / "best.ckpt"), verbose=False)
    assert (tmp_path / "skills.csv").read_text() != final
    best = tmp_path / "figures" / "allocation-best.png"
    assert best.read_bytes() == (tmp_path / "figures" / "allocation.png").read_bytes()
    assert best.read_bytes() != (tmp_path / "figures" / "allocation-step000005.png").read_bytes()
    assert "routing/recovery_baseline" in trainer.callback_metrics

    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["routing/recovery"].item() == pytest.approx(
        callbacks[1].result["aligned"]
    )
    wandb.finish()
    run = read_run(tmp_path)
    assert len(run.series("skills/table")) == 2
    assert len(run.series("skills/allocation")) == 5


def test_long_tables_keep_their_rows_or_whole_layers(build, fit, offline_wandb, tmp_path, caplog):
    caplog.set_level("INFO", "polylab")
    module = build(n_tasks=400, n_skills=8)
    fit(module, TinyData(truth=None), [SkillTable(tmp_path, max_rows=13_000)], logger=offline_wandb)
    wandb.finish()
    run = read_run(tmp_path)
    _, cells = run.table(run.last("skills/table"))
    layers = list(module.network["inner"].poly_layers())
    assert len(cells) == 4 * 400 * 8
    listed = {row[0] for row in cells}
    assert len(layers) > len(listed) == 4
    assert {layers[0], layers[-1]} < listed
    assert len(pd.read_csv(tmp_path / "skills.csv")) == len(layers) * 400 * 8
    assert wandb.Table.MAX_ROWS == 10_000
    assert (
        f"skills/table in W&B holds 4 of {len(layers)} layers and 400 of 400 tasks, evenly spaced "
        "(callbacks.table.max_rows=13000); skills.csv holds all"
    ) in caplog.messages
    assert cells[0][2] == TASKS[0]
    assert {row[2] for row in cells} >= {"task 5", "task 399"}


def test_reader_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="holds 0 offline runs"):
        read_run(tmp_path)
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    (folder / "run-1.wandb").write_bytes(b"not a log")
    with pytest.raises(ValueError, match=r"not a \.wandb file"):
        read_run(tmp_path)
