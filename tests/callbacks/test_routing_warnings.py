"""When `RoutingStatistics` says that the routing sits at its start; what input routers log."""

import logging
import math

import pytest
import torch

from polylab.callbacks import RoutingStatistics
from polylab.callbacks.allocations import AllocationSource
from polylab.poly import statistics as st
from tests.callbacks.tiny import N_SKILLS, TinyData

STILL = "Routing has hardly moved"
BLIND = "Routing tells no inputs apart"


@pytest.fixture
def warned(fit, caplog):
    def run(module, **trainer):
        callback = trainer.pop("callback", None) or RoutingStatistics()
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(module, trainer.pop("data", TinyData()), [callback], **trainer)
        return caplog.text

    return run


class TestTaskRouters:
    def test_early_and_at_the_end(self, build, warned):
        text = warned(build(learning_rate=1e-6), callback=RoutingStatistics(warn_after=3))
        assert text.count(STILL) == 2
        assert f"{STILL}: after 4 steps" in text  # the first look from step 3 on
        assert f"{STILL}: after 5 steps" in text
        assert "The skills act as one average adapter" in text

    def test_a_routing_that_was_sharp_from_the_start_is_no_average(self, build, warned):
        module = build(learning_rate=1e-6)
        for name, logits in module.named_parameters():
            if "module_logits" in name:
                logits.data[:, 0], logits.data[:, 1:] = 6.0, -6.0
        text = warned(module)
        assert STILL in text
        assert "What tasks share is what the routing started with" in text

    @pytest.mark.parametrize("poly", [{"trainable": "skills"}, {"poly_type": "shared"}])
    def test_what_cannot_move_is_not_warned_of(self, build, warned, poly):
        assert warned(build(learning_rate=1e-6, **poly)) == ""

    def test_one_annealed_to_uniform_neither(self, build, warned):
        module = build(learning_rate=1e-6)
        module.network["inner"].set_uniform_share(0.5)
        assert warned(module) == ""

    def test_a_continued_run_is_compared_with_its_first_start(
        self, build, fit, memory, tmp_path, warned
    ):
        data, path = TinyData(n_batches=1), tmp_path / "last.ckpt"
        first = fit(build(learning_rate=0.5), data, [RoutingStatistics()], max_steps=4)
        first.save_checkpoint(path)
        moved = first.callback_metrics["routing/change"].item()
        assert moved > 0.05
        state = torch.load(path, weights_only=True)
        state["optimizer_states"][0]["param_groups"][0]["lr"] = 0.0  # nothing moves from here
        torch.save(state, path)
        text = warned(build(), data=data, max_steps=6, ckpt_path=path, logger=memory)
        assert STILL not in text
        assert memory.series("routing/change") == [(s, pytest.approx(moved)) for s in (4, 6)]

    def test_a_continued_run_that_does_not_know_its_start_says_nothing(
        self, build, fit, tmp_path, warned
    ):
        data, path = TinyData(n_batches=1), tmp_path / "last.ckpt"
        fit(build(learning_rate=1e-6), data, [], max_steps=2).save_checkpoint(path)
        text = warned(build(learning_rate=1e-6), data=data, max_steps=4, ckpt_path=path)
        assert STILL not in text

    def test_what_every_checkpoint_keeps_is_bounded(self, build, fit, memory, monkeypatch):
        monkeypatch.setattr("polylab.callbacks.routing_statistics._KEPT_CELLS", 41)
        callback = RoutingStatistics()
        module = build()
        fit(module, TinyData(), [callback], logger=memory, max_steps=2)
        layers = list(module.network["inner"].poly_layers())
        assert [*callback.state_dict()["weights"]] == [layers[0], layers[-1]]
        assert memory.series("routing/change")[0] == (0, 0.0)
        assert memory.series("routing/change")[1][1] > 0

    def test_refuses(self):
        with pytest.raises(ValueError, match="warn_after=0 must be at least 1"):
            RoutingStatistics(warn_after=0)


class TestInputRouters:
    def test_that_tell_no_inputs_apart(self, build, warned):
        module = build(poly_type="mope", learning_rate=1e-7)
        text = warned(module)
        assert f"{BLIND}: after 5 steps" in text
        assert STILL not in text

    def test_that_have_settled_early_are_not_warned_of(self, build, warned, memory):
        module = build(poly_type="mope", learning_rate=0)
        for name, p in module.named_parameters():
            if "poly_router" in name and "proj" in name:
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 2)
        assert warned(module, logger=memory) == ""
        assert memory.series("routing/change")[-1] == (5, 0.0)

    def test_load_and_information(self, build, fit, memory):
        module, data = build(poly_type="mope", n_splits=2), TinyData(n_batches=2)
        for name, p in module.named_parameters():
            if "poly_router" in name and "proj" in name:
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        fit(module, data, [RoutingStatistics()], logger=memory, max_steps=2)
        keys, batches = ("input_ids", "attention_mask"), data.batches()
        mixed = module.network["inner"].mixing_weights(
            **{k: torch.cat([b[k] for b in batches]) for k in keys}
        )
        load = [w.double().mean(0).amax(-1).mean() * N_SKILLS for w in mixed.values()]
        assert memory.series("routing/max_load") == [
            (2, pytest.approx(float(sum(load) / len(load)), rel=1e-5))
        ]
        source = AllocationSource(module.network["inner"])
        for i, batch in enumerate(batches):
            source.observe(batch, key=(0, i))
        ((_, tasks),) = memory.series("routing/task_information")
        ((_, examples),) = memory.series("routing/mutual_information")
        assert tasks == pytest.approx(
            st.routing_mutual_information(source.read().weights), rel=1e-6)  # fmt: skip
        assert 1e-4 < tasks < examples <= math.log(N_SKILLS)
