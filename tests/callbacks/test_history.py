"""The allocations through a run on disk: `routing.csv` and `allocations/*.safetensors`."""

import csv
import itertools
import json

import pytest
import torch
from safetensors import safe_open

from polylab.callbacks import AllocationHistory
from polylab.callbacks.base import Moment, Sight
from polylab.callbacks.history import ROUTING_COLUMNS, _append, _forget, _thin
from polylab.callbacks.seen import Allocations
from polylab.poly import statistics as st
from tests.callbacks.tiny import N_SKILLS, TASKS, TinyData


def rows_of(folder):
    with (folder / "routing.csv").open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def read(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


class TestARun:
    def test_rows_and_files_are_the_routers(self, build, fit, tmp_path):
        module = build(n_splits=2)
        fit(module, TinyData(), [AllocationHistory()])
        model = module.network["inner"]
        weights, gates = model.task_weights(), model.task_gates()
        rows = rows_of(tmp_path)
        assert [*rows[0]] == ROUTING_COLUMNS
        assert [r["step"] for r in rows if not r["layer"]] == ["0", "2", "4", "5"]
        assert len(rows) == 4 * (1 + 3 * len(weights))  # overall; each layer and its two heads
        last = {(r["layer"], r["split"]): r for r in rows if r["step"] == "5"}
        overall = last["", ""]
        assert float(overall["entropy"]) == pytest.approx(st.entropy(weights), rel=1e-5)
        assert float(overall["density"]) == pytest.approx(st.density(gates), rel=1e-5)
        for layer, w in weights.items():
            z = gates[layer]
            for split in ("", "0", "1"):
                heads = slice(None) if split == "" else slice(int(split), int(split) + 1)
                one, own = {layer: w[:, heads]}, {layer: z[:, heads]}
                expected = {
                    "entropy": st.entropy(one),
                    "discreteness": st.discreteness(own),
                    "density": st.density(own),
                    "usage_entropy": st.usage_entropy(own),
                    "effective_skills": st.effective_skills(own),
                }
                found = {name: float(last[layer, split][name]) for name in expected}
                assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        names = sorted(f.name for f in (tmp_path / "allocations").iterdir())
        assert names == [f"step{step:06d}.safetensors" for step in (0, 2, 4, 5)]
        tensors, about = read(tmp_path / "allocations" / "step000005.safetensors")
        assert tensors.keys() == {f"{k}/{n}" for k in ("weights", "gates") for n in weights}
        for name, w in weights.items():
            assert torch.equal(tensors[f"weights/{name}"], w.half())
            assert torch.equal(tensors[f"gates/{name}"], gates[name].half())
        assert json.loads(about["tasks"]) == TASKS
        assert about.items() >= {
            ("step", "5"), ("tag", "step000005"), ("words", "after 5 steps"),
            ("input_routed", "false"), ("layers_total", str(len(weights))),
        }  # fmt: skip

    def test_input_routed(self, build, fit, tmp_path):
        fit(build(poly_type="mope"), TinyData(), [AllocationHistory()], max_steps=4)
        rows = rows_of(tmp_path)
        assert {(r["step"], r["discreteness"], r["density"]) for r in rows} == {
            ("2", "", ""), ("4", "", "")}  # fmt: skip
        assert all(0 < float(r["entropy"]) <= 1 for r in rows)
        assert all(r["split"] == "" for r in rows)  # one head: its row would say the same
        tensors, about = read(tmp_path / "allocations" / "step000004.safetensors")
        assert about["input_routed"] == "true"
        assert all(key.startswith("weights/") for key in tensors)

    def test_layers_that_share_a_router(self, build, fit, tmp_path):
        fit(build(granularity="model"), TinyData(), [AllocationHistory()], max_steps=1)
        tensors, _ = read(tmp_path / "allocations" / "step000001.safetensors")
        first, *others = (w for key, w in tensors.items() if key.startswith("weights/"))
        assert others
        assert all(torch.equal(first, w) for w in others)

    def test_a_checkpoint_gets_a_file_and_no_rows(self, build, fit, tmp_path):
        module, data = build(), TinyData()
        trainer = fit(module, data, [AllocationHistory()], max_steps=2)
        path = tmp_path / "best.ckpt"
        trainer.save_checkpoint(path)
        before = (tmp_path / "routing.csv").read_bytes()
        trainer.validate(module, data, ckpt_path=path, verbose=False, weights_only=True)
        _, about = read(tmp_path / "allocations" / "best.safetensors")
        assert about["words"] == "of best.ckpt"
        assert (tmp_path / "routing.csv").read_bytes() == before

    def test_a_resumed_run_is_that_of_an_uninterrupted_one(self, build, fit, tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        fit(build(noise="none"), TinyData(n_batches=1), [AllocationHistory(whole)], max_steps=6)
        kept = fit(
            build(noise="none"), TinyData(n_batches=1), [AllocationHistory(parts)], max_steps=4
        )
        kept.save_checkpoint(tmp_path / "last.ckpt")
        # killed later than the checkpoint: half a line, and a file of a step to be done again
        with (parts / "routing.csv").open("ab") as file:
            file.write(b"6,,,0.5,0.5,0.5,0.5,2\n6,la")
        (parts / "allocations" / "step000006.safetensors").write_bytes(b"later")
        (parts / "allocations" / "step000005.safetensors").write_bytes(b"later")
        fit(build(noise="none"), TinyData(n_batches=1), [AllocationHistory(parts)], max_steps=6,
            ckpt_path=tmp_path / "last.ckpt")  # fmt: skip
        assert (parts / "routing.csv").read_text() == (whole / "routing.csv").read_text()
        files = [sorted(f.name for f in (p / "allocations").iterdir()) for p in (whole, parts)]
        assert files[0] == files[1] == [f"step{step:06d}.safetensors" for step in (0, 2, 4, 6)]
        tensors = [read(p / "allocations" / "step000006.safetensors")[0] for p in (whole, parts)]
        assert all(torch.equal(w, tensors[1][name]) for name, w in tensors[0].items())

    def test_a_run_begun_anew_starts_from_nothing(self, build, fit, tmp_path):
        for steps in (5, 2):
            fit(build(), TinyData(), [AllocationHistory()], max_steps=steps)
        assert {r["step"] for r in rows_of(tmp_path)} == {"0", "2"}
        assert not (tmp_path / "allocations" / "step000005.safetensors").exists()

    def test_private_skills_of_c_poly_count_as_each_tasks_own(self, build, fit, tmp_path):
        module = build(poly_type="c-poly", n_skills=3)
        fit(module, TinyData(), [AllocationHistory()], max_steps=1, val_check_interval=3)
        first = rows_of(tmp_path)[0]
        # at the start a task uses all of the four skills that it may use, alike
        assert float(first["entropy"]) == pytest.approx(1, abs=1e-5)
        assert float(first["usage_entropy"]) == pytest.approx(1, abs=1e-5)
        assert float(first["effective_skills"]) == pytest.approx(4, abs=1e-4)
        assert float(first["discreteness"]) == pytest.approx(0, abs=1e-5)
        tensors, _ = read(tmp_path / "allocations" / "step000000.safetensors")
        assert {w.shape for w in tensors.values()} == {(len(TASKS), 1, 3 + len(TASKS))}


def sight(n_layers, *, tasks=5, splits=2, skills=N_SKILLS, step=0):
    draw = torch.Generator().manual_seed(step)
    shape = (tasks, splits, skills)
    gates = {f"layer.{i}": torch.rand(shape, generator=draw) for i in range(n_layers)}
    weights = {name: z / z.sum(-1, keepdim=True) for name, z in gates.items()}
    seen = Allocations(weights, gates, [*range(tasks)])
    return Sight(seen, Moment.VALIDATION, f"after {step} steps", f"step{step:06d}")


class Idle:
    """As much of a trainer as a look needs."""

    fast_dev_run, is_global_zero, datamodule, loggers = False, True, None, ()

    def __init__(self, folder, step):
        self.default_root_dir, self.global_step = folder, step


class TestBounds:
    @pytest.mark.parametrize(
        ("max_cells", "layers", "shape"),
        [
            (7 * 80, 7, (5, 2, 4)),
            (3 * 80 + 79, 3, (5, 2, 4)),
            (40, 1, (5, 1, 4)),  # a layer is too much: one of its heads
            (25, 1, (3, 1, 4)),  # a head too: some of the tasks
        ],
    )
    def test_cells_of_a_file(self, tmp_path, max_cells, layers, shape, caplog):
        callback = AllocationHistory(max_cells=max_cells)
        with caplog.at_level("INFO", "polylab"):
            for step in (0, 3):
                callback.see(Idle(tmp_path, step), None, sight(7, step=step))
        tensors, about = read(tmp_path / "allocations" / "step000000.safetensors")
        kept = [name.removeprefix("weights/") for name in tensors if name.startswith("weights/")]
        assert len(kept) == layers
        assert sum(t.numel() for t in tensors.values()) <= max_cells
        assert {t.shape for t in tensors.values()} == {shape}
        assert len(json.loads(about["tasks"])) == shape[0]
        assert about["layers_total"] == "7"
        said = f"allocations/ holds {layers} of 7 layers (at most {max_cells} cells a file)"
        assert caplog.text.count(said) == (layers < 7)

    @pytest.mark.parametrize(("max_heads", "n_rows"), [(6, 10), (5, 4)])
    def test_rows_of_heads(self, tmp_path, max_heads, n_rows):
        callback = AllocationHistory(max_heads=max_heads, max_files=0)
        callback.see(Idle(tmp_path, 0), None, sight(3))
        assert len(rows_of(tmp_path)) == n_rows
        assert not (tmp_path / "allocations").exists()

    def test_files_thin_out_evenly(self, tmp_path):
        for step in range(0, 330, 10):
            (tmp_path / f"step{step:06d}.safetensors").touch()
            _thin(tmp_path, 8)
        (tmp_path / "best.safetensors").touch()
        steps = sorted(int(f.stem[4:]) for f in tmp_path.glob("step*"))
        assert len(steps) == 8
        assert (steps[0], steps[-1]) == (0, 320)
        gaps = [b - a for a, b in itertools.pairwise(steps)]
        assert max(gaps) <= 80  # 320 / 7, and not more than about twice of it
        assert (tmp_path / "best.safetensors").exists()

    def test_forgets_no_more_than_it_must(self, tmp_path):
        _append(tmp_path / "routing.csv", [[step, "", "", 1, "", "", 1, 1] for step in (3, 6, 9)])
        _forget(tmp_path, 6, keep_rows=True)
        assert [r["step"] for r in rows_of(tmp_path)] == ["3", "6"]
        _forget(tmp_path, 6, keep_rows=False)
        assert [r["step"] for r in rows_of(tmp_path)] == ["3"]
        _forget(tmp_path, 3, keep_rows=False)
        assert not (tmp_path / "routing.csv").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"max_cells": 0}, "max_cells=0 must be 1 or more"),
            ({"max_files": 1}, r"max_files=1 must be 2 \(first and last\)"),
            ({"max_files": -3}, "max_files=-3"),
            ({"max_heads": -1}, "max_heads=-1 must be 0"),
        ],
    )
    def test_refuses(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            AllocationHistory(**arguments)
