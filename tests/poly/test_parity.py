"""Same numbers as PEFT's Poly, to the last draw of the generator."""

import copy

import peft
import pytest
import torch

import polylab
from tests.poly.tiny import base, config_of, inputs_of, task_ids

TYPES = {"t5": "SEQ_2_SEQ_LM", "llama": "CAUSAL_LM"}


def both(kind: str, **changes):
    ours_base = base(kind)
    theirs_base = copy.deepcopy(ours_base)
    config = config_of(kind, task_type=TYPES[kind], **changes)
    values = {
        k: v for k, v in config.to_dict().items() if k in peft.PolyConfig.__dataclass_fields__
    }
    values.pop("peft_type")
    torch.manual_seed(3)
    ours = polylab.get_peft_model(ours_base, config)
    torch.manual_seed(3)
    theirs = peft.get_peft_model(theirs_base, peft.PolyConfig(**values))
    pairs = dict(ours.model.named_parameters()), dict(theirs.base_model.model.named_parameters())
    return ours, theirs, *pairs


@pytest.mark.parametrize("n_splits", [1, 2])
@pytest.mark.parametrize("init_weights", [True, False])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_same_seed_gives_the_same_parameters(kind, init_weights, n_splits):
    *_, ours, theirs = both(kind, init_weights=init_weights, n_splits=n_splits)
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.requires_grad == theirs[name].requires_grad, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("r", [3, 4])
@pytest.mark.parametrize("n_splits", [1, 2])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_outputs_gradients_and_draws(kind, n_splits, r, training, logits_tolerance):
    ours, theirs, our_parameters, their_parameters = both(
        kind, n_splits=n_splits, r=r, init_weights=False
    )
    spread_logits(our_parameters, their_parameters)
    runs = []
    for model in (ours, theirs):
        model.train(training)
        torch.manual_seed(4)
        output = model(**inputs_of(kind), task_ids=task_ids())
        runs.append((output, torch.get_rng_state()))
        output.loss.backward()
    (our_output, our_state), (their_output, their_state) = runs
    torch.testing.assert_close(our_output.logits, their_output.logits, **logits_tolerance)
    assert torch.equal(our_state, their_state)
    for name, parameter in our_parameters.items():
        if parameter.requires_grad:
            theirs_grad = their_parameters[name].grad
            assert theirs_grad.abs().max() > 0
            scale = theirs_grad.abs().max().item()
            torch.testing.assert_close(parameter.grad, theirs_grad, rtol=1e-4, atol=1e-5 * scale)


def spread_logits(ours, theirs):
    """Logits from -2 to 2, and a few where PEFT's distribution clamps."""
    with torch.no_grad():
        for name, parameter in ours.items():
            if "module_logits" in name:
                parameter.mul_(2000)
                parameter[0, 0], parameter[2, 1] = -25.0, 25.0
                theirs[name].copy_(parameter)


def test_task_ids_change_the_output():
    ours, *_ = both("t5", init_weights=False)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "module_logits" in name:
                parameter.mul_(2000)
    one = ours(**inputs_of("t5"), task_ids=task_ids()).logits
    other = ours(**inputs_of("t5"), task_ids=task_ids().flip(0)).logits
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_router_called_as_pefts(kind):
    ours, theirs, *_ = both(kind)
    our_layer = next(iter(ours.poly_layers().values()))
    their_layer = next(m for m in theirs.modules() if isinstance(m, peft.tuners.poly.PolyLayer))
    x = torch.randn(4, 7, our_layer.in_features)
    for training in (True, False):
        weights = []
        for layer in (our_layer, their_layer):
            router = layer.poly_router["default"].train(training)
            torch.manual_seed(5)
            weights.append(router(task_ids=task_ids(), input_ids=x))
        assert weights[0].shape == (4, 2, 5)
        assert torch.equal(*weights)


def test_layers_keep_pefts_surface():
    ours, theirs, *_ = both("t5")
    our_layer = next(iter(ours.poly_layers().values()))
    their_layer = next(m for m in theirs.modules() if isinstance(m, peft.tuners.poly.PolyLayer))
    assert our_layer.adapter_layer_names == their_layer.adapter_layer_names
    assert set(our_layer.other_param_names) >= set(their_layer.other_param_names)
    for name in ("r", "n_tasks", "n_skills", "n_splits", "poly_type"):
        assert getattr(our_layer, name) == getattr(their_layer, name)
    for name in ("in_features", "out_features"):
        assert getattr(our_layer, name) == getattr(their_layer, name)
    assert our_layer.get_base_layer() is our_layer.base_layer
    our_layer.update_layer("second", config_of("t5", r=7))
    our_layer.reset_poly_parameters("second", False)
    assert our_layer.poly_lora_A["second"].shape == (2, 5, 8, 7)
    assert our_layer.poly_lora_B["second"].abs().max() > 0


def test_configs_agree():
    theirs = {
        k: v for k, v in vars(peft.PolyConfig()).items() if k not in ("peft_type", "peft_version")
    }
    ours = polylab.PolyConfig().to_dict()
    assert {name: ours[name] for name in theirs} == theirs
