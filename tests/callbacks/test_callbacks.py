"""Callbacks without W&B: what they compute, where they write, when they speak."""

import logging

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger, Logger

from polylab.callbacks import (
    Recovery,
    RoutingStatistics,
    SkillFigures,
    SkillTable,
    Throughput,
)
from polylab.callbacks.allocations import EXAMPLES_PER_TASK, AllocationSource, find_poly_model
from polylab.callbacks.routing_statistics import evenly_spaced
from polylab.poly import statistics as st
from polylab.poly.recovery import recovery
from tests.callbacks.tiny import N_SKILLS, SKILLS, TASKS, TRUTH, TinyData


class Memory(Logger):
    """Keeps what is logged."""

    name = version = "memory"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def series(self, key):
        return [(step, row[key]) for step, row in self.rows if key in row]


@pytest.fixture
def memory():
    return Memory()


def everything(folder):
    return [
        RoutingStatistics(),
        Recovery(n_permutations=2),
        SkillFigures(folder),
        SkillTable(folder),
        Throughput(),
    ]


class TestWhereTheyRun:
    def test_no_logger(self, build, fit, tmp_path):
        fit(build(), TinyData(), everything(None))
        assert (tmp_path / "figures" / "task_hierarchy.png").exists()
        assert (tmp_path / "skills.csv").exists()

    def test_fast_dev_run_draws_but_writes_nothing(self, build, fit, tmp_path):
        fit(build(), TinyData(), everything(None), fast_dev_run=True)
        assert not list(tmp_path.rglob("*.png"))
        assert not (tmp_path / "skills.csv").exists()

    def test_csv_logger(self, build, fit, tmp_path):
        fit(build(), TinyData(), everything(tmp_path), logger=CSVLogger(tmp_path))
        (file,) = tmp_path.rglob("metrics.csv")
        logged = pd.read_csv(file)
        assert logged["routing/entropy"].dropna().between(0, 1).all()
        assert logged["throughput/tokens_per_second"].max() > 0

    @pytest.mark.parametrize("poly_type", ["shared", "private"])
    def test_fixed_routings(self, build, fit, memory, tmp_path, poly_type):
        fit(build(poly_type=poly_type), TinyData(), everything(tmp_path), logger=memory)
        expected = {"shared": 1.0, "private": 0.0}[poly_type]
        assert memory.series("routing/entropy")[-1] == (5, pytest.approx(expected, abs=1e-6))
        assert not memory.series("routing/density")
        assert (tmp_path / "figures" / "allocation.png").exists()

    def test_data_without_names_or_skills(self, build, fit, memory, tmp_path):
        data = TinyData(task_names=None, truth=None)
        fit(build(), data, everything(tmp_path), logger=memory)
        assert set(pd.read_csv(tmp_path / "skills.csv")["task"]) == {f"task {i}" for i in range(5)}
        assert not memory.series("routing/recovery")

    def test_a_single_task_has_no_hierarchy(self, build, fit, tmp_path):
        data = TinyData(task_names=["only"], truth=None)
        for batch in (batches := data.batches()):
            batch["task_ids"].zero_()
        data.batches = lambda: batches
        fit(build(n_tasks=1), data, everything(tmp_path))
        assert (tmp_path / "figures" / "allocation.png").exists()
        assert not (tmp_path / "figures" / "task_hierarchy.png").exists()

    def test_decoder_only_input_routing_reads_prompts(self, build, fit, memory, tmp_path):
        data = TinyData(decoder_only=True)
        module = build("gpt2", poly_type="mope")
        fit(module, data, everything(tmp_path), logger=memory)
        model = module.network["inner"]
        prompts = torch.cat([b["prompt_ids"] for b in data.batches()])
        masks = torch.cat([b["prompt_attention_mask"] for b in data.batches()])
        mixed = model.mixing_weights(input_ids=prompts, attention_mask=masks)
        # the last validation was one step before the end: read it anew
        source = AllocationSource(model)
        for i, batch in enumerate(data.batches()):
            source.observe(batch, key=(0, i))
        expected = st.layer_entropy({name: w.double() for name, w in mixed.items()})
        assert source.read().layer_entropy() == pytest.approx(expected, abs=1e-6)
        assert memory.series("routing/mutual_information")[-1][1] > 0

    def test_a_module_without_poly_layers_has_nothing_to_show(self, fit, memory, tmp_path, caplog):
        class Plain(LightningModule):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Linear(6, 1)

            def training_step(self, batch):
                return self.head(batch["input_ids"].float()).mean()

            def validation_step(self, batch):
                pass

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        with caplog.at_level(logging.INFO):
            fit(Plain(), TinyData(), everything(tmp_path), logger=memory)
        assert "SkillFigures has nothing to show: Plain holds no PolyModel" in caplog.text
        assert {key for _, row in memory.rows for key in row if "/" in key} == {
            "throughput/tokens_per_second",
            "memory/peak_mb",
        }
        assert list(tmp_path.iterdir()) == []


class TestRoutingStatistics:
    def test_values_are_those_of_the_final_routers(self, build, fit, memory):
        module = build(n_splits=2)
        fit(module, TinyData(), [RoutingStatistics()], logger=memory)
        model = module.network["inner"]
        weights, gates = model.task_weights(), model.task_gates()
        final = dict(memory.rows[-1][1])
        assert memory.rows[-1][0] == 5
        assert final["routing/entropy"] == pytest.approx(st.entropy(weights))
        assert final["routing/usage_entropy"] == pytest.approx(st.usage_entropy(gates))
        assert final["routing/effective_skills"] == pytest.approx(st.effective_skills(gates))
        assert final["routing/density"] == pytest.approx(st.density(gates))
        assert final["routing/discreteness"] == pytest.approx(1 - st.z_entropy_bits(gates))
        for name, value in st.layer_entropy(weights).items():
            assert final[f"routing/entropy/{name}"] == pytest.approx(value)

    def test_can_be_monitored(self, build, fit):
        trainer = fit(build(), TinyData(), [RoutingStatistics()], max_steps=4)
        assert 0 < trainer.callback_metrics["routing/entropy"].item() <= 1

    def test_layer_keys_are_capped(self, build, fit, memory):
        module = build()
        fit(module, TinyData(), [RoutingStatistics(max_layers=2)], logger=memory)
        layers = list(module.network["inner"].poly_layers())
        keys = {k for _, row in memory.rows for k in row if k.startswith("routing/entropy/")}
        assert keys == {f"routing/entropy/{layers[0]}", f"routing/entropy/{layers[-1]}"}

    def test_the_end_is_logged_once(self, build, fit, memory):
        fit(build(), TinyData(), [RoutingStatistics()], logger=memory, max_steps=4)
        assert [step for step, _ in memory.series("routing/entropy")] == [0, 2, 4]

    def test_warns_where_the_routing_sits_at_its_start(self, build, fit, caplog):
        module = build(learning_rate=1e-6)
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(module, TinyData(), [RoutingStatistics()])
        assert "Routing has hardly moved: after 5 steps" in caplog.text
        assert "those at the start by" in caplog.text

    @pytest.mark.parametrize(
        "settings",
        [{"learning_rate": 0.5}, {"learning_rate": 1e-6, "poly_type": "private"}],
        ids=["moved", "cannot move"],
    )
    def test_does_not_warn_otherwise(self, build, fit, caplog, settings):
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(build(**settings), TinyData(), [RoutingStatistics()])
        assert "hardly moved" not in caplog.text

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [({"max_layers": -1}, "max_layers=-1"), ({"still": 1.5}, r"still=1\.5 must lie in 0 to 1")],
    )
    def test_refuses(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            RoutingStatistics(**arguments)


class TestRecovery:
    def test_result_is_that_of_the_final_routers(self, build, fit, memory):
        module, callback = build(), Recovery(n_permutations=7, seed=3)
        fit(module, TinyData(), [callback], logger=memory)
        weights = module.network["inner"].task_weights()
        expected = recovery(weights, TRUTH, names=SKILLS, n_permutations=7, seed=3)
        assert callback.result == expected
        assert memory.series("routing/recovery")[-1] == (5, expected["aligned"])
        assert memory.series("routing/recovery_baseline")[-1] == (5, expected["aligned_baseline"])
        for name in ("best", "mean", "similarity"):
            assert memory.series(f"routing/recovery_{name}")[-1] == (5, expected[name])

    def test_says_which_skills_cannot_be_told_apart(self, build, fit, caplog):
        truth = TRUTH.clone()
        truth[:, 2] = truth[:, 0]
        with caplog.at_level(logging.INFO, "polylab"):
            fit(build(), TinyData(truth=truth), [Recovery(n_permutations=0)])
        assert "No routing of these tasks can tell apart" in caplog.text
        assert "['arithmetic', 'judgement']" in caplog.text

    def test_refuses(self):
        with pytest.raises(ValueError, match="n_permutations=-2"):
            Recovery(n_permutations=-2)


class TestSkillFigures:
    @pytest.mark.parametrize(
        ("arguments", "steps"),
        [
            ({"every_n_validations": 2}, [0, 4, 5]),
            ({"every_n_validations": 0}, [0, 5]),
            ({"every_n_validations": 0, "at_start": False}, [5]),
        ],
    )
    def test_are_drawn_when_asked_for(self, build, fit, tmp_path, arguments, steps):
        fit(build(), TinyData(), [SkillFigures(tmp_path, **arguments)])
        found = sorted(f.name for f in (tmp_path / "figures").glob("allocation-step*.png"))
        assert found == [f"allocation-step{step:06d}.png" for step in steps]

    def test_refuses(self):
        with pytest.raises(ValueError, match="every_n_validations=-1"):
            SkillFigures(every_n_validations=-1)


@pytest.mark.parametrize("rows", [0, 200_001])
def test_table_refuses(rows):
    with pytest.raises(ValueError, match=f"max_rows={rows} must lie in 1 to 200000"):
        SkillTable(max_rows=rows)


class TestThroughput:
    @pytest.mark.parametrize(
        ("kind", "per_batch"),
        # 6 rows of 6 tokens, every other one with 2 of padding; 2 of 3 labels count
        [("t5", 30 + 12), ("gpt2", 30)],
    )
    def test_counts_attended_tokens(self, build, fit, memory, monkeypatch, kind, per_batch):
        clock = iter(range(0, 10_000, 10))
        monkeypatch.setattr(
            "polylab.callbacks.throughput.time.perf_counter", lambda: float(next(clock))
        )
        data = TinyData(decoder_only=kind == "gpt2")
        fit(build(kind), data, [Throughput()], logger=memory, limit_val_batches=0)
        # one reading of the clock at the start, two (end, new start) at each line
        rates = memory.series("throughput/tokens_per_second")
        assert rates == [(2, 2 * per_batch / 10), (4, 2 * per_batch / 10), (5, per_batch / 10)]

    def test_leaves_validations_out(self, build, fit, memory, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("polylab.callbacks.throughput.time.perf_counter", lambda: now[0])

        class Slow(Throughput):
            def on_train_batch_start(self, *_):
                now[0] += 1

            def on_validation_batch_start(self, *_):
                now[0] += 100

        fit(build(), TinyData(), [Slow()], logger=memory)
        assert memory.series("throughput/tokens_per_second") == [(2, 42.0), (4, 42.0), (5, 42.0)]

    def test_batches_of_another_kind_give_memory_only(self, build, fit, memory):
        module = build()
        data = TinyData()
        tuples = [tuple(batch.values()) for batch in data.batches()]
        names = list(data.batches()[0])
        data.batches = lambda: tuples
        plain = module.loss
        module.loss = lambda batch: plain(dict(zip(names, batch, strict=True)))
        fit(module, data, [Throughput()], logger=memory, limit_val_batches=0)
        assert not memory.series("throughput/tokens_per_second")
        assert memory.series("memory/peak_mb")[-1][1] > 0


class TestAllocationSource:
    @pytest.fixture
    def routed(self, build):
        module = build(poly_type="mope", n_splits=2)
        model = module.network["inner"]
        draw = torch.Generator().manual_seed(2)
        for name, p in model.named_parameters():
            if "poly_router" in name:
                p.data.add_(torch.randn(p.shape, generator=draw))
        return model.eval()

    def test_is_shared_by_all_callbacks_of_a_model(self, routed):
        assert AllocationSource.of(routed) is AllocationSource.of(routed)

    def test_means_per_task_and_statistics_over_examples(self, routed):
        source, batches = AllocationSource(routed), TinyData(n_batches=3).batches()
        for i, batch in enumerate(batches):
            source.observe(batch, key=(0, i))
            source.observe(batch, key=(0, i))  # seen by a second callback
        assert sum(source._counts.values()) == 18
        seen = source.read()
        keys = ("input_ids", "attention_mask")
        mixed = routed.mixing_weights(**{k: torch.cat([b[k] for b in batches]) for k in keys})
        ids = torch.cat([b["task_ids"] for b in batches])
        assert seen.task_ids == [0, 1, 2, 3, 4]
        for name, w in mixed.items():
            for task in range(len(TASKS)):
                torch.testing.assert_close(seen.weights[name][task], w[ids == task].mean(0))
        assert seen.entropy() == pytest.approx(st.entropy(mixed), rel=1e-5)
        expected = st.routing_mutual_information(mixed)
        assert expected > 1e-3
        assert seen.mutual_information() == pytest.approx(expected, rel=1e-3)
        assert seen.n_skills == N_SKILLS
        assert seen.gates == {}

    def test_takes_a_bounded_number_of_examples_of_each_task(self, routed):
        source = AllocationSource(routed)
        for i, batch in enumerate(TinyData(n_batches=4, batch=20).batches()):
            source.observe(batch, key=(0, i))
        assert source._counts == dict.fromkeys(range(len(TASKS)), EXAMPLES_PER_TASK)

    def test_tasks_without_an_example_are_left_out(self, routed):
        source, (batch, *_) = AllocationSource(routed), TinyData().batches()
        source.observe({**batch, "task_ids": torch.tensor([3, 1, 1, 3, 1, 3])}, key=(0, 0))
        assert source.read().task_ids == [1, 3]
        source.reset()
        assert source.read() is None

    def test_inputs_without_task_ids_are_one_task(self, routed):
        source, (batch, *_) = AllocationSource(routed), TinyData().batches()
        source.observe({k: v for k, v in batch.items() if k != "task_ids"}, key=(0, 0))
        assert source.read().task_ids == [0]

    def test_ranks_are_put_together(self, routed, monkeypatch):
        batches = TinyData(n_batches=2).batches()
        whole = AllocationSource(routed)
        ranks = [AllocationSource(routed), AllocationSource(routed)]
        for i, batch in enumerate(batches):
            whole.observe(batch, key=(0, i))
            ranks[i].observe(batch, key=(0, 0))
        expected = whole.read()
        monkeypatch.setattr(
            "polylab.callbacks.allocations.gather_objects",
            lambda _: [(rank._counts, rank._sums) for rank in ranks],
        )
        gathered = ranks[0].read()
        assert gathered.task_ids == expected.task_ids
        for name, w in expected.weights.items():
            torch.testing.assert_close(gathered.weights[name], w)
        assert gathered.entropy() == pytest.approx(expected.entropy())

    def test_finds_the_model_anywhere(self, build):
        module = build()
        assert find_poly_model(module) is module.network["inner"]


def test_evenly_spaced_keeps_both_ends():
    assert evenly_spaced(list("abcdefg"), 3) == ["a", "d", "g"]
    assert evenly_spaced(list("ab"), 3) == ["a", "b"]
    assert evenly_spaced(list("ab"), 0) == []
