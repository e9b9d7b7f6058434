"""Parameter groups, schedules and clipping."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from polylab.training.optim import (
    OptimConfig,
    build_optimizer,
    build_schedule,
    clip_by_group,
    grad_norms,
    parameter_groups,
    schedule_factor,
)


class Adapter(nn.Module):
    """The names of a Poly layer around a frozen linear, and a module that is trained in full."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(2, 3).requires_grad_(False)
        self.poly_lora_A = nn.ParameterDict({"default": nn.Parameter(torch.ones(5))})
        self.poly_lora_B = nn.ParameterDict({"default": nn.Parameter(torch.ones(7))})
        router = nn.ParameterDict({"module_logits": nn.Parameter(torch.ones(11))})
        self.poly_router = nn.ModuleDict({"default": router})
        self.head = nn.Linear(2, 1, bias=False)


def _names(groups):
    return {group: sorted(members) for group, members in groups.items()}


def test_groups_partition_the_trainable_parameters():
    assert _names(parameter_groups(Adapter())) == {
        "skills": ["poly_lora_A.default", "poly_lora_B.default"],
        "router": ["poly_router.default.module_logits"],
        "other": ["head.weight"],
    }


def test_empty_groups_are_left_out():
    model = Adapter()
    model.head.requires_grad_(False)
    model.poly_router.requires_grad_(False)
    assert list(parameter_groups(model)) == ["skills"]


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter; wrap the backbone"):
        parameter_groups(Adapter().requires_grad_(False))


@pytest.mark.parametrize("name", ["adamw", "adam", "adafactor"])
def test_each_group_has_its_own_rate_and_the_router_no_decay(name):
    config = OptimConfig(name=name, lr=0.01, router_lr=0.2, other_lr=0.003, weight_decay=0.5)
    groups = {g["name"]: g for g in build_optimizer(Adapter(), config).param_groups}
    assert {n: g["lr"] for n, g in groups.items()} == {
        "skills": 0.01,
        "router": 0.2,
        "other": 0.003,
    }
    assert {n: g["weight_decay"] for n, g in groups.items()} == {
        "skills": 0.5,
        "router": 0.0,
        "other": 0.5,
    }


def test_the_defaults_are_two_speed():
    config = OptimConfig()
    assert (config.group_lr("skills"), config.group_lr("router")) == (1e-3, 0.1)
    assert config.group_lr("other") == config.lr


def test_without_gradient_decay_moves_skills_and_not_the_router():
    model = Adapter()
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    build_optimizer(model, OptimConfig(weight_decay=0.5)).step()
    assert torch.equal(model.poly_router["default"]["module_logits"], torch.ones(11))
    assert (model.poly_lora_A["default"] < 1).all()


def test_adafactor_moves_a_parameter_at_zero_by_its_rate():
    model = Adapter()
    with torch.no_grad():
        model.poly_lora_B["default"].zero_()
    model.poly_lora_B["default"].grad = torch.full((7,), 3.0)
    build_optimizer(model, OptimConfig(name="adafactor", lr=0.01, weight_decay=0)).step()
    moved = model.poly_lora_B["default"].abs()
    torch.testing.assert_close(moved, torch.full((7,), 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sgd"}, "optim.name=sgd is not available; choose one of: adamw, adam, adafactor"),
        ({"router": "idle"}, "optim.router=idle is not available; choose one of: dense, lazy"),
        (
            {"router": "lazy", "name": "adafactor"},
            "optim.router=lazy does not go with optim.name=adafactor; give optim.name=adamw or",
        ),
        ({"schedule": "step"}, "optim.schedule=step is not .*: constant, linear, cosine"),
        ({"lr": -1.0}, "optim.lr=-1.0 must be a finite number of at least 0"),
        ({"router_lr": math.nan}, "optim.router_lr=nan must be a finite"),
        ({"clip": 0.0}, "optim.clip=0.0 must be above 0, or null"),
        ({"total_steps": 0}, "optim.total_steps=0 must be above 0"),
        ({"betas": [0.9, 1.0]}, r"optim.betas=\[0.9, 1.0\] must be two numbers"),
        ({"lr": -2, "warmup": -3}, "optim.lr=-2 .*; optim.warmup=-3 "),
    ],
)
def test_wrong_settings_are_named_together(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**settings)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_schedule_rises_from_above_zero_and_never_stops_learning(schedule):
    factor = schedule_factor(schedule, warmup=4, total=20)
    values = [factor(step) for step in range(20)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert min(values) > 0
    assert values[4] == 1.0
    assert values[4:] == sorted(values[4:], reverse=True)
    assert factor(20) == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-12)
    half = {"constant": 1.0, "linear": 0.5, "cosine": 0.5}[schedule]
    assert factor(12) == pytest.approx(half)


def test_a_warm_up_is_a_fraction_or_a_number_of_steps():
    def rate(warmup, step, **kw):
        config = OptimConfig(lr=1.0, warmup=warmup, **kw)
        optimizer = build_optimizer(Adapter(), config)
        return build_schedule(optimizer, config, max_steps=50).lr_lambdas[0](step)

    assert rate(0.1, 0) == 1 / 5
    assert rate(8, 0) == 1 / 8
    assert rate(0.1, 0, total_steps=100) == 1 / 10
    assert rate(0.0, 0) == 1.0


@pytest.mark.parametrize(
    ("settings", "max_steps", "message"),
    [
        ({"schedule": "linear"}, -1, "optim.schedule=linear .* trainer.max_steps=-1; set"),
        ({"warmup": 0.5}, -1, "optim.warmup=0.5 needs the number of steps"),
        ({"warmup": 30}, 20, "optim.warmup=30 steps exceed the 20 steps"),
    ],
)
def test_a_schedule_without_length_is_refused(settings, max_steps, message):
    config = OptimConfig(**settings)
    with pytest.raises(ValueError, match=message):
        build_schedule(build_optimizer(Adapter(), config), config, max_steps=max_steps)


def test_each_group_is_clipped_by_itself():
    model = Adapter()
    optimizer = build_optimizer(model, OptimConfig())
    model.poly_lora_A["default"].grad = torch.full((5,), 10.0)
    model.poly_router["default"]["module_logits"].grad = torch.full((11,), 0.01)
    before = grad_norms(optimizer)
    assert set(before) == {"skills", "router"}
    assert before["skills"].item() == pytest.approx(10 * 5**0.5)
    clip_by_group(optimizer, 1.0)
    after = grad_norms(optimizer)
    assert after["skills"].item() == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(after["router"], before["router"])
    clip_by_group(optimizer, None)
    assert torch.equal(grad_norms(optimizer)["skills"], after["skills"])


def _step(model, optimizer, numbers):
    for number in numbers:
        trained = [p for p in model.parameters() if p.requires_grad]
        for place, parameter in enumerate(trained):
            parameter.grad = torch.full_like(parameter, 0.1 * place - 0.05 * number)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adam"])
@pytest.mark.parametrize("fused", [[True, False], [False, True], [True, True]])
def test_one_kernel_steps_as_many_do_and_continues_their_checkpoints(name, fused, monkeypatch):
    """As a run that moves from a GPU to a CPU, back, or stays."""
    config = OptimConfig(name=name, lr=0.01)
    model, state = Adapter(), None
    expected = deepcopy(model)
    _step(expected, build_optimizer(expected, config), range(5))
    for is_fused, numbers in zip(fused, (range(3), range(3, 5)), strict=True):
        monkeypatch.setattr("polylab.training.optim._FUSED_ON", ("cpu",) if is_fused else ())
        optimizer = build_optimizer(model, config)
        if state is not None:
            optimizer.load_state_dict(state)
        assert {group["fused"] for group in optimizer.param_groups} == {is_fused or None}
        _step(model, optimizer, numbers)
        state = optimizer.state_dict()
    for parameter, goal in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, goal)


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    """Lightning leaves it to an optimiser that says it can."""
    monkeypatch.setattr("polylab.training.optim._FUSED_ON", ("cpu",))
    optimizer = build_optimizer(Adapter(), OptimConfig())
    assert all(group["fused"] for group in optimizer.param_groups)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
