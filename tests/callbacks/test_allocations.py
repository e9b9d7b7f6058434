"""Where allocations come from: above all, what inputs were routed to."""

import gc
import weakref

import pytest
import torch

from polylab.callbacks.allocations import EXAMPLES_PER_TASK, AllocationSource, find_poly_model
from polylab.poly import statistics as st
from tests.callbacks.tiny import N_SKILLS, TASKS, TinyData


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

    def test_a_model_is_not_kept_alive(self, build):
        module = build()
        AllocationSource.of(find_poly_model(module))
        kept = weakref.ref(find_poly_model(module))
        del module
        gc.collect()
        assert kept() is None

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
