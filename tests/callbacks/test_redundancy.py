"""Dead and duplicate skills of a run, and how far routers and skills move."""

import itertools
import logging

import pytest
import torch

from polylab.callbacks import SkillRedundancy, UpdateSizes
from polylab.training.optim import parameter_groups
from tests.callbacks.tiny import N_SKILLS, TinyData


def copy_skill(module, layer, source, *others):
    """Make skills of one layer, all heads, equal to another."""
    own = module.network["inner"].poly_layers()[layer]
    for bank in (own.poly_lora_A["default"], own.poly_lora_B["default"]):
        for skill in others:
            bank.data[:, skill] = bank.data[:, source]


class TestRedundancy:
    def test_counts_and_warns(self, build, fit, memory, caplog):
        module = build(n_splits=2, init_weights=False, learning_rate=1e-6)
        layers = list(module.network["inner"].poly_layers())
        copy_skill(module, layers[1], 0, 1, 3)
        for name, logits in module.named_parameters():
            if "module_logits" in name and layers[0] in name:
                logits.data.view(5, 2, N_SKILLS)[:, :, 2] = -9  # no task's, in both heads
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(module, TinyData(), [SkillRedundancy()], logger=memory)
        n = len(layers)
        for step in (0, 2, 4, 5):
            assert (step, pytest.approx(1 / n)) in memory.series("routing/dead_skills")
            assert (step, pytest.approx(2 / n)) in memory.series("routing/duplicate_skills")
        assert f"a trace of 1.0 skills per head in 1 of {n} layers (most in {layers[0]}: 1.0)" in (
            caplog.text)  # fmt: skip
        assert f"lower adapter.n_skills (now {N_SKILLS})" in caplog.text
        assert f"Duplicate skills: 2.0 skills per head in 1 of {n} layers (most in {layers[1]}" in (
            caplog.text)  # fmt: skip

    def test_a_fresh_adapter_has_neither(self, build, fit, memory, caplog):
        with caplog.at_level(logging.WARNING, "polylab"):
            fit(build(), TinyData(), [SkillRedundancy()], logger=memory, max_steps=2)
        for key in ("dead_skills", "duplicate_skills"):
            assert memory.series(f"routing/{key}") == [(0, 0.0), (2, 0.0)]
        assert caplog.text == ""

    @pytest.mark.parametrize("poly_type", ["private", "c-poly", "shared", "mope"])
    def test_other_routers(self, build, fit, memory, poly_type):
        module = build(poly_type=poly_type, init_weights=False)
        # two tasks' private skills alike; of c-poly those behind the shared ones
        first = N_SKILLS if poly_type == "c-poly" else 0
        for layer in module.network["inner"].poly_layers():
            if poly_type in ("private", "c-poly"):
                copy_skill(module, layer, first, first + 1)
        fit(module, TinyData(), [SkillRedundancy()], logger=memory, max_steps=2)
        assert memory.series("routing/dead_skills")[-1] == (2, 0.0)
        known = memory.series("routing/duplicate_skills")
        assert not known if poly_type == "private" else known[-1] == (2, 0.0)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"dead_below": -0.1}, r"dead_below=-0\.1"),
            ({"duplicate_above": 2}, "duplicate_above=2"),
        ],
    )
    def test_refuses(self, arguments, words):
        with pytest.raises(ValueError, match=words + " must lie in 0 to 1"):
            SkillRedundancy(**arguments)


class Snapshots(UpdateSizes):
    """What a slow reader would have kept: everything, at every look."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def _look(self, trainer, pl_module, moment):
        groups = parameter_groups(pl_module)
        self.kept.append(
            {g: torch.cat([p.detach().flatten().clone() for p in m.values()])
             for g, m in groups.items()}
        )  # fmt: skip
        super()._look(trainer, pl_module, moment)


class TestUpdateSizes:
    def test_are_those_of_the_parameters(self, build, fit, memory):
        callback = Snapshots()
        fit(build(n_splits=2), TinyData(), [callback], logger=memory)
        for group in ("skills", "router"):
            states = [kept[group] for kept in callback.kept]
            norms = [float(state.norm()) for state in states]
            expected = [*zip((0, 2, 4, 5), map(pytest.approx, norms), strict=True)]
            assert memory.series(f"norm/{group}") == expected
            moves = [float((b - a).norm()) for a, b in itertools.pairwise(states)]
            larger = [max(pair) for pair in itertools.pairwise(norms)]
            shares = [m / n for m, n in zip(moves, larger, strict=True)]
            expected = [*zip((2, 4, 5), map(pytest.approx, shares), strict=True)]
            assert memory.series(f"update/{group}") == expected
            assert min(shares) > 0
        assert not callback._before  # memory is given back

    def test_frozen_routers_have_none(self, build, fit, memory):
        fit(build(trainable="skills"), TinyData(), [UpdateSizes()], logger=memory, max_steps=2)
        keys = {key for _, row in memory.rows for key in row if key.startswith(("norm", "update"))}
        assert keys == {"norm/skills", "update/skills"}
