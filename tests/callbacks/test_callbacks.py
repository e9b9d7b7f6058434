"""Callbacks without W&B: what they compute, where they write, when they speak."""

import logging

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger

from polylab.callbacks import (
    Recovery,
    RoutingStatistics,
    SkillFigures,
    SkillTable,
    Throughput,
    budget,
)
from polylab.callbacks.allocations import AllocationSource
from polylab.callbacks.figures import draw_allocation
from polylab.callbacks.spacing import evenly_spaced
from polylab.poly import statistics as st
from polylab.poly.recovery import recovery
from tests.callbacks.tiny import SKILLS, TRUTH, Clock, TinyData


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

    @pytest.mark.parametrize("poly_type", ["poly", "mope"])
    def test_a_routing_of_no_numbers_ends_the_training(self, build, fit, tmp_path, poly_type):
        module = build(poly_type=poly_type)

        class Diverges(Callback):
            def on_train_batch_end(self, *_args):
                for name, parameter in module.named_parameters():
                    if "poly_router" in name:
                        parameter.data.fill_(float("nan"))

        words = r"routing weights of layer \S*SelfAttention.q are no numbers any more"
        with pytest.raises(FloatingPointError, match=words):
            fit(module, TinyData(), [Diverges(), *everything(tmp_path)])
        assert not (tmp_path / "skills.csv").exists()

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

        with caplog.at_level(logging.INFO, "lightning.pytorch"):
            fit(Plain(), TinyData(), everything(tmp_path), logger=memory)
        assert "SkillFigures has nothing to show: Plain holds no PolyModel" in caplog.text
        assert {key for _, row in memory.rows for key in row if "/" in key} == {
            "throughput/tokens_per_second",
            "throughput/padding",
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

    def test_the_last_weights_are_looked_at_once_where_they_are_the_best_too(
        self, build, fit, memory, monkeypatch
    ):
        from polylab.callbacks import recovery as callbacks

        asked = []
        monkeypatch.setattr(
            callbacks,
            "recovery",
            lambda *a, **k: (asked.append(k["n_permutations"]), recovery(*a, **k))[1],
        )
        module, callback, data = build(), Recovery(n_permutations=7), TinyData()
        trainer = fit(module, data, [callback], logger=memory)
        assert asked == [7, 0, 0, 7]  # start, two validations, end
        before = callback.result
        trainer.validate(module, data, verbose=False)
        assert asked == [7, 0, 0, 7]
        assert callback.result == before
        assert trainer.callback_metrics["routing/recovery"] == pytest.approx(before["aligned"])
        for name, parameter in module.named_parameters():
            if "poly_router" in name:
                parameter.data.neg_()
        trainer.validate(module, data, verbose=False)
        assert asked == [7, 0, 0, 7, 7]
        assert callback.result != before

    def test_with_many_tasks_and_layers_fewer_permutations_are_drawn(
        self, build, fit, monkeypatch, caplog
    ):
        module, callback = build(n_splits=2), Recovery(n_permutations=40)
        heads = 2 * len(module.network["inner"].poly_layers())
        monkeypatch.setattr("polylab.callbacks.recovery._MOST_CELLS", 5 * heads * 12)
        with caplog.at_level(logging.INFO, "polylab"):
            fit(module, TinyData(), [callback], max_steps=1, val_check_interval=3)
        assert callback.result["n_permutations"] == 12
        assert caplog.text.count("is of 12 permutations, not 40: there are 5 tasks") == 1

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


class Waiting(Callback):
    """Every training step takes so many seconds."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def on_train_batch_end(self, *_):
        self.clock.wait(self.seconds)


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
        fit(build(), TinyData(), [SkillFigures(tmp_path, max_share=None, **arguments)])
        found = sorted(f.name for f in (tmp_path / "figures").glob("allocation-step*.png"))
        assert found == [f"allocation-step{step:06d}.png" for step in steps]

    def test_the_last_ones_have_a_vector_version(self, build, fit, tmp_path):
        fit(build(), TinyData(), [SkillFigures(tmp_path, max_share=None)])
        files = {f.name for f in (tmp_path / "figures").iterdir()}
        every = ["allocation", "by_layer", "task_hierarchy"]
        last = ["task_similarity", "change", "layers"]
        assert {f"{name}.pdf" for name in [*every, *last]} == {
            f for f in files if f.endswith("pdf")
        }
        steps = {
            name: sorted(int(f[-10:-4]) for f in files if f.startswith(f"{name}-step"))
            for name in [*every, *last]
        }
        assert steps == {name: [0, 2, 4, 5] for name in every} | {name: [5] for name in last}

    @pytest.mark.parametrize(("max_share", "drawn"), [(0.0, [0, 5]), (0.5, [0, 4, 5])])
    def test_looks_within_the_training_keep_to_their_share_of_its_time(
        self, build, fit, tmp_path, monkeypatch, caplog, max_share, drawn
    ):
        # 10 s to the first look, 10 s more to the second; a drawing takes 6 s
        clock = Clock()
        monkeypatch.setattr(budget, "time", clock)
        figures = SkillFigures(tmp_path, max_share=max_share)
        look = figures._look
        monkeypatch.setattr(figures, "_look", lambda *a, **k: (clock.wait(6.0), look(*a, **k)))
        with caplog.at_level(logging.INFO, "polylab"):
            fit(build(), TinyData(), [Waiting(clock, 5.0), figures])
        found = sorted(f.name for f in (tmp_path / "figures").glob("allocation-step*.png"))
        assert found == [f"allocation-step{step:06d}.png" for step in drawn]
        said = (
            f"leaves out looks within the training: one takes 6.0 s, and all may take {max_share:g}"
        )
        assert caplog.text.count(said) == 1

    def test_a_validation_in_the_last_step_is_drawn_once(self, build, fit, tmp_path):
        fit(build(), TinyData(), [SkillFigures(tmp_path)], max_steps=4)
        assert (tmp_path / "figures" / "layers-step000004.png").exists()
        one, last = (tmp_path / "figures" / f"allocation{tag}.png" for tag in ("-step000004", ""))
        assert one.read_bytes() == last.read_bytes()

    def test_what_could_only_repeat_itself_is_left_out_in_words(self, build, fit, tmp_path, caplog):
        with caplog.at_level(logging.INFO, "polylab"):
            fit(build(poly_type="uniform"), TinyData(), [SkillFigures(tmp_path)])
        assert not list((tmp_path / "figures").glob("layers*"))
        assert caplog.text.count("SkillFigures leaves out what could only repeat itself") == 1
        assert "change, layers, task_similarity (uniform by construction" in caplog.text

    def test_categories_of_the_data_are_drawn(self, build, fit, tmp_path, monkeypatch):
        from polylab.callbacks import scene

        drawn = []
        monkeypatch.setattr(
            scene,
            "draw_allocation",
            lambda *a, **k: (drawn.append(k), draw_allocation(*a, **k))[1],
        )
        data = TinyData()
        data.categories = {"add": ("sums", "all"), "read": ("words",)}
        fit(build(), data, [SkillFigures(tmp_path, at_start=False)])
        for given in drawn:
            kinds = dict(zip(given["tasks"], given["categories"], strict=True))
            assert kinds == {"add": "sums", "read": "words", "compare": None, "copy": None,
                             "upper": None}  # fmt: skip

    def test_an_input_router_changes_since_its_first_look(self, build, fit, tmp_path):
        fit(build(poly_type="mope"), TinyData(), [SkillFigures(tmp_path)])
        steps = sorted(f.name for f in (tmp_path / "figures").glob("change-*"))
        assert steps == ["change-step000005.png"]

    def test_refuses(self):
        with pytest.raises(ValueError, match="every_n_validations=-1"):
            SkillFigures(every_n_validations=-1)
        with pytest.raises(ValueError, match=r"max_share=1\.5 must lie in 0 to 1"):
            SkillFigures(max_share=1.5)


@pytest.mark.parametrize("rows", [0, 200_001])
def test_table_refuses(rows):
    with pytest.raises(ValueError, match=f"max_rows={rows} must lie in 1 to 200000"):
        SkillTable(max_rows=rows)


def test_evenly_spaced_keeps_both_ends():
    assert evenly_spaced(list("abcdefg"), 3) == ["a", "d", "g"]
    assert evenly_spaced(list("ab"), 3) == ["a", "b"]
    assert evenly_spaced(list("ab"), 0) == []
