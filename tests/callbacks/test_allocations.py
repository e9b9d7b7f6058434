"""Where allocations come from: above all, what inputs were routed to."""

import gc
import threading
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

    @pytest.mark.parametrize(("is_sharded", "n_calls"), [(False, [2, 1]), (True, [2, 2])])
    def test_ranks_ask_together_what_one_asks(self, routed, monkeypatch, is_sharded, n_calls):
        batches = TinyData(n_batches=3, batch=14).batches()
        whole, ranks = AllocationSource(routed), [AllocationSource(routed) for _ in range(2)]
        for i, batch in enumerate(batches):
            whole.observe(batch, key=(0, i, 0))
            ranks[i % 2].observe(batch, key=(0, i // 2, i % 2))
        ranks[1].observe(batches[0] | {"filler": True}, key=(0, 1, 1))
        assert sum(ranks[0]._counts.values()) + sum(ranks[1]._counts.values()) == 42
        expected, run = whole.read(), routed.mixing_weights
        assert sum(whole._counts.values()) < 42
        calls, items, lock, meeting = [], {}, threading.Lock(), threading.Barrier(2, timeout=60)

        def name():
            return threading.current_thread().name

        def gather(item):
            items[name()] = item
            meeting.wait()
            found = [items["rank 0"], items["rank 1"]]
            meeting.wait()
            return found

        def mixing_weights(**inputs):
            calls.append(name())
            with lock:
                return run(**inputs)

        monkeypatch.setattr(routed, "mixing_weights", mixing_weights)
        monkeypatch.setattr("polylab.callbacks.allocations.gather_objects", gather)
        monkeypatch.setattr("polylab.callbacks.allocations.is_sharded", lambda _: is_sharded)
        found = []
        threads = [
            threading.Thread(target=lambda r=r: found.append(r.read()), name=f"rank {i}")
            for i, r in enumerate(ranks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [calls.count("rank 0"), calls.count("rank 1")] == n_calls
        assert len(found) == 2
        for seen in found:
            assert seen.task_ids == expected.task_ids == [0, 1, 2, 3, 4]
            for layer, w in expected.weights.items():
                torch.testing.assert_close(seen.weights[layer], w)
            assert seen.entropy() == pytest.approx(expected.entropy())
            assert seen.mutual_information() == pytest.approx(expected.mutual_information())

    def test_finds_the_model_anywhere(self, build):
        module = build()
        assert find_poly_model(module) is module.network["inner"]
