"""Tokens per second and memory."""

import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import distributed, nn

from polylab.callbacks import Throughput
from tests.callbacks.tiny import TinyData
from tests.training.conftest import _on_two_ranks, find_port


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
        places = 36 + 18 if kind == "t5" else 36
        share = pytest.approx(1 - per_batch / places)
        assert memory.series("throughput/padding") == [(2, share), (4, share), (5, share)]

    @pytest.mark.parametrize(("room", "times"), [(1000, 3), (54, 5)])
    def test_counts_many_batches_at_once(self, build, fit, memory, monkeypatch, room, times):
        monkeypatch.setattr("polylab.callbacks.throughput._KEPT", room)
        clock = iter(range(0, 10_000, 10))
        monkeypatch.setattr(
            "polylab.callbacks.throughput.time.perf_counter", lambda: float(next(clock))
        )
        counted = []

        class Counting(Throughput):
            def _count(self):
                counted.append(sum(t.numel() for kept in self._kept.values() for t in kept))
                super()._count()

        fit(build(), TinyData(), [Counting()], logger=memory, limit_val_batches=0)
        rates = memory.series("throughput/tokens_per_second")
        assert rates == [(2, 2 * 42 / 10), (4, 2 * 42 / 10), (5, 42 / 10)]
        batches = [places // 54 for places in counted if places]
        assert sum(batches) == 5
        assert len(batches) == times

    def test_without_a_mask_every_place_holds_a_token(self, build, fit, memory):
        module, data = build(), TinyData()
        batches = data.batches()
        masks = [batch.pop("attention_mask") for batch in batches]
        data.batches = lambda: batches
        plain = module.loss
        module.loss = lambda batch: plain({**batch, "attention_mask": masks[0]})
        fit(module, data, [Throughput()], logger=memory, limit_val_batches=0)
        # 36 inputs, none of them padding now, and 12 of 18 labels
        share = pytest.approx(1 - (36 + 12) / 54)
        assert memory.series("throughput/padding") == [(2, share), (4, share), (5, share)]

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


def _logged_by_a_rank(_folder):
    """Of a step in which the second rank has more rows, more padding and more memory."""
    distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    rank, rows = distributed.get_rank(), []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: rows.append((step, metrics)))
    trainer = SimpleNamespace(
        global_step=0, max_steps=1, log_every_n_steps=1, world_size=2, loggers=[logger]
    )
    module = nn.Module()
    module.device = torch.device("cpu")
    mask = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 0, 0], [1, 0, 0, 0]]][rank])
    name = "polylab.callbacks.throughput"
    with (
        mock.patch(f"{name}._peak_bytes", return_value=(3 + 2 * rank) * 2**20),
        mock.patch(f"{name}.time.perf_counter", side_effect=[0.0, 2.0, 2.0]),
    ):
        callback = Throughput()
        callback.on_train_start(trainer, module)
        trainer.global_step = 1
        callback.on_train_batch_end(trainer, module, None, {"attention_mask": mask}, 0)
    return rows


def test_all_ranks_count():
    keys = ("throughput/tokens_per_second", "throughput/padding", "memory/peak_mb")
    expected = [(1, dict(zip(keys, (6 / 2, 6 / 12, 5), strict=True)))]
    ranks = _on_two_ranks(_logged_by_a_rank, find_port(), "")
    assert ranks == [expected, expected]
