"""Gradient alignment: the right cosines, and a training that does not notice."""

import csv
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from polylab.callbacks import GradientAlignment
from polylab.callbacks.gradient_alignment import gradient_cosines, mean_pairwise
from polylab.callbacks.probes import ProbeSet
from tests.callbacks.tiny import TASKS, TinyData

OFTEN = {"every_n_validations": 1, "examples_per_task": 2}


class Looks(GradientAlignment):
    """Checks at every look that nothing of the training is touched."""

    def _look(self, trainer, pl_module, moment):
        def state():
            modes = [m.training for m in pl_module.modules()]
            grads = [p.grad for p in pl_module.parameters()]
            copies = [None if g is None else g.clone() for g in grads]
            return modes, grads, copies, torch.get_rng_state()

        before = state()
        super()._look(trainer, pl_module, moment)
        modes, grads, copies, rng = state()
        assert modes == before[0]
        assert all(a is b for a, b in zip(grads, before[1], strict=True))
        for now, then in zip(copies, before[2], strict=True):
            assert now is then is None or torch.equal(now, then)
        assert torch.equal(rng, before[3])


def slow_matrix(model, batches, per_task):
    """Example by example of the whole set, gradients by `backward` on a copy of the weights."""
    layers = model.poly_layers()
    rows = {name: [] for name in layers}
    for task in range(len(TASKS)):
        parts = []
        for batch in batches:
            mine = (batch["task_ids"] == task).nonzero().flatten()
            room = per_task - sum(len(p["labels"]) for p in parts)
            if len(mine[:room]):
                parts.append({k: v[mine[:room]] for k, v in batch.items()})
        model.zero_grad()
        total = sum((p["labels"] != -100).sum() for p in parts)
        for part in parts:
            inputs = ("input_ids", "attention_mask", "labels", "task_ids")
            loss = model(**{k: part[k] for k in inputs}).loss
            (loss * (part["labels"] != -100).sum() / total).backward()
        for name, layer in layers.items():
            banks = (layer.poly_lora_A["default"], layer.poly_lora_B["default"])
            rows[name].append(torch.cat([p.grad.double().flatten() for p in banks]))
    model.zero_grad(set_to_none=True)
    unit = [torch.nn.functional.normalize(torch.stack(own), dim=1) for own in rows.values()]
    return torch.stack([u @ u.T for u in unit])


class TestNumbers:
    @pytest.mark.parametrize("kind", ["t5", "gpt2"])
    def test_are_those_of_single_backwards(self, build, fit, memory, tmp_path, kind):
        data = TinyData(decoder_only=kind == "gpt2")
        module, callback = build(kind, init_weights=False, n_splits=2), GradientAlignment(**OFTEN)
        fit(module, data, [callback], logger=memory, max_steps=5)
        model = module.network["inner"].eval()
        expected = slow_matrix(model, data.batches(), 2)
        np.testing.assert_allclose(callback.matrix, expected.mean(0), atol=1e-5)
        upper = torch.triu_indices(5, 5, 1)
        mean = expected[:, upper[0], upper[1]].mean().item()
        series = memory.series("routing/grad_alignment")
        assert [step for step, _ in series] == [2, 4, 5]
        assert series[-1][1] == pytest.approx(mean, abs=1e-5)
        assert callback.tasks == [0, 1, 2, 3, 4]
        assert np.abs(callback.matrix).max() <= 1
        names = {f.name for f in (tmp_path / "figures").iterdir()}
        steps = {f"grad_alignment-step{step:06d}.png" for step in (2, 4, 5)}
        assert names == steps | {"grad_alignment.png"}
        pictures = [Image.open(tmp_path / "figures" / n).size for n in names]
        assert len({*pictures}) == 1
        with (tmp_path / "grad_alignment.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["task", *TASKS]
        assert [row[0] for row in rows] == TASKS
        kept = np.array([row[1:] for row in rows], dtype=float)
        np.testing.assert_allclose(kept, callback.matrix, atol=1e-5)

    def test_equal_and_opposite_gradients(self):
        g = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
        found = gradient_cosines(
            {"one": g, "two": g.flip(0) * torch.tensor([[0.0], [1], [1], [1]])}
        )
        assert found[0, :3, :3].tolist() == pytest.approx(
            torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]])
        )
        assert found[0, 3].isnan().all()
        assert mean_pairwise(found[:1]) == pytest.approx(-1 / 3)
        assert mean_pairwise(found) == pytest.approx(
            -1 / 3
        )  # tasks without a gradient do not count


class TestNobodyNotices:
    @pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}])
    def test_the_training_is_bit_equal(self, build, fit, arguments):
        states = []
        for callbacks in ([], [Looks(**OFTEN)]):
            module = build(noise="relaxed_bernoulli", dropout=0.2)
            torch.manual_seed(3)
            trainer = fit(module, TinyData(), callbacks, **arguments)
            adam = trainer.optimizers[0].state_dict()["state"]
            states.append([*module.state_dict().values(), *(s["exp_avg"] for s in adam.values())])
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


class TestProbes:
    @pytest.fixture
    def batches(self):
        return TinyData(n_batches=4).batches()

    def test_are_the_same_at_every_look(self, build, fit):
        kept = []

        class Remembers(GradientAlignment):
            def _look(self, trainer, pl_module, moment):
                kept.append([self._probes.rows(t) for t in self._probes.seen])
                super()._look(trainer, pl_module, moment)

        fit(build(), TinyData(), [Remembers(**OFTEN)])
        assert len(kept) == 3
        first, *others = kept
        for other in others:
            for a, b in zip(first, other, strict=True):
                assert all(torch.equal(x["input_ids"], y["input_ids"])
                           for x, y in zip(a, b, strict=True))  # fmt: skip

    def test_are_the_first_of_each_task(self, batches):
        probes = ProbeSet({0, 3}, 3)
        for i, batch in enumerate(batches):
            probes.add(batch, place=(0, i, 0))
        probes.gather()
        assert probes.seen == [0, 3]
        for task in (0, 3):
            rows = [b["input_ids"][b["task_ids"] == task] for b in batches]
            found = torch.cat([part["input_ids"] for part in probes.rows(task)])
            assert torch.equal(found, torch.cat(rows)[:3])

    def test_ranks_end_with_the_same_set(self, batches, monkeypatch):
        alone, ranks = ProbeSet({0, 3}, 3), [ProbeSet({0, 3}, 3) for _ in range(2)]
        for i, batch in enumerate(batches):
            alone.add(batch, place=(0, i, 0))
            ranks[i % 2].add(batch, place=(0, i // 2, i % 2))
        parts = [(rank._pieces, rank.refused) for rank in ranks]
        alone.gather()
        monkeypatch.setattr("polylab.callbacks.probes.gather_objects", lambda _: parts)
        for rank in ranks:
            rank.gather()
            for task in (0, 3):
                for ours, whole in zip(rank.rows(task), alone.rows(task), strict=True):
                    assert torch.equal(ours["input_ids"], whole["input_ids"])

    def test_one_rank_refuses_for_all(self, batches, monkeypatch):
        ranks = [ProbeSet({0, 3}, 3) for _ in range(2)]
        ranks[0].add({"input_ids": batches[0]["input_ids"]}, place=(0, 0, 0))
        parts = [(rank._pieces, rank.refused) for rank in ranks]
        monkeypatch.setattr("polylab.callbacks.probes.gather_objects", lambda _: parts)
        ranks[1].gather()
        assert ranks[1].refused == "batches have no labels, task_ids"

    def test_of_many_tasks_some_are_compared(self, build, fit, caplog):
        callback = GradientAlignment(**OFTEN, max_tasks=3)
        with caplog.at_level(logging.INFO, "polylab"):
            fit(build(), TinyData(), [callback], max_steps=2)
        assert callback.tasks == [0, 2, 4]
        assert callback.matrix.shape == (3, 3)
        assert "routing/grad_alignment compares 3 of 5 tasks" in caplog.text


class TestRefuses:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda b: b | {"task_ids": b["task_ids"][:, None].expand(-1, 6)}, "several tasks"),
            (lambda b: b | {"task_ids": torch.zeros_like(b["task_ids"])}, "1 task had validation"),
        ],
    )
    def test_batches_in_words_and_goes_on(self, build, fit, memory, caplog, change, words):
        data = TinyData()
        module = build("gpt2")
        batches = [change(b) for b in TinyData(decoder_only=True).batches()]
        data.batches = lambda: batches
        with caplog.at_level(logging.WARNING, "polylab"):
            trainer = fit(module, data, [GradientAlignment(**OFTEN)], logger=memory)
        assert trainer.global_step == 5
        assert caplog.text.count("No gradient alignment:") == 1
        assert words in caplog.text
        assert not memory.series("routing/grad_alignment")

    def test_a_model_without_a_loss(self, build, fit, caplog, monkeypatch):
        module = build()
        model = module.network["inner"]
        monkeypatch.setattr(module, "loss", lambda batch: _lossless(model, batch).logits.mean())
        inner = model.get_base_model()
        forward = inner.forward
        monkeypatch.setattr(
            inner, "forward", lambda *a, labels=None, **k: forward(
                *a, **k, decoder_input_ids=labels.clamp_min(0))
        )  # fmt: skip
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(module, TinyData(), [GradientAlignment(**OFTEN)], max_steps=2)
        assert "No gradient alignment: T5ForConditionalGeneration gives no loss" in caplog.text

    def test_a_sharded_model(self, build, fit, memory, caplog, monkeypatch):
        monkeypatch.setattr("polylab.callbacks.gradient_alignment.is_sharded", lambda _: True)
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(build(), TinyData(), [GradientAlignment(**OFTEN)], logger=memory)
        assert "No gradient alignment: the skills of a sharded model are in parts" in caplog.text
        assert not memory.series("routing/grad_alignment")

    def test_frozen_skills(self, build, fit):
        with pytest.raises(ValueError, match="trainable='router' leaves them frozen"):
            fit(build(trainable="router"), TinyData(), [GradientAlignment()])

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"every_n_validations": 0}, "every_n_validations=0 must be at least 1"),
            ({"examples_per_task": 0}, "examples_per_task=0 must be at least 1"),
            ({"max_tasks": 1}, "max_tasks=1 must be at least 2"),
        ],
    )
    def test_arguments(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            GradientAlignment(**arguments)


def _lossless(model, batch):
    keys = ("input_ids", "attention_mask", "labels", "task_ids")
    return model(**{k: batch[k] for k in keys})
