"""Several named adapters on one model."""

import pytest
import torch

from tests.poly.tiny import base, config_of, output_of, poly, task_ids, trained


def two():
    model = poly("llama")
    first = output_of(model, "llama", task_ids=task_ids())
    model.add_adapter("second", config_of("llama", r=2, n_tasks=9, target_modules=["o_proj"]))
    return model, first


def test_a_new_adapter_changes_nothing_until_it_is_set():
    model, first = two()
    assert model.active_adapter == "default"
    assert model.active_adapters == ["default"]
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), first)
    model.set_adapter("second")
    assert model.active_adapters == ["second"]
    with torch.no_grad():
        fresh = output_of(model, "llama", task_ids=torch.tensor([8, 0, 1, 2]))
        assert torch.equal(fresh, output_of(base("llama"), "llama"))
    trained(model)
    assert not torch.equal(output_of(model, "llama", task_ids=task_ids()), fresh)
    model.set_adapter("default")
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), first)


def test_ids_are_checked_against_the_active_adapter():
    model, _ = two()
    ids = torch.tensor([8, 0, 1, 2])
    with pytest.raises(ValueError, match="task_ids contains 8, but n_tasks=6"):
        output_of(model, "llama", task_ids=ids)
    model.set_adapter("second")
    output_of(model, "llama", task_ids=ids)
    assert set(model.task_weights()) == {f"model.layers.{i}.self_attn.o_proj" for i in range(2)}


def test_only_the_active_adapter_is_trainable():
    model, _ = two()
    for active, other in (("default", "second"), ("second", "default")):
        model.set_adapter(active)
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        assert any(f".{active}" in name for name in trainable)
        assert not any(f".{other}" in name for name in trainable)


def test_a_frozen_adapter_stays_frozen():
    model = poly("llama", inference_mode=True)
    model.add_adapter("second", config_of("llama"))
    assert not any(p.requires_grad for p in model.parameters())
    model.set_adapter("second")
    assert all(".second" in name for name, p in model.named_parameters() if p.requires_grad)


def test_two_adapters_on_the_same_layers():
    model = poly("t5")
    first = output_of(model, "t5", task_ids=task_ids())
    model.add_adapter("second", config_of("t5", poly_type="mope", n_skills=2))
    assert torch.equal(output_of(model, "t5", task_ids=task_ids()), first)
    model.set_adapter("second")
    trained(model)
    assert not torch.equal(output_of(model, "t5"), first)
    model.delete_adapter("second")
    assert torch.equal(output_of(model, "t5", task_ids=task_ids()), first)
    assert not any("second" in name for name in model.state_dict())
    layer = next(iter(model.poly_layers().values()))
    assert list(layer.r) == list(layer.n_skills) == list(layer.scaling) == ["default"]


def test_deleting():
    model, first = two()
    model.set_adapter("second")
    model.delete_adapter("second")
    assert model.active_adapter == "default"
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), first)
    with pytest.raises(ValueError, match="adapter 'default' is the last one"):
        model.delete_adapter("default")
    with pytest.raises(ValueError, match=r"no adapter 'second'. There are: \['default'\]"):
        model.delete_adapter("second")


def test_wrong_names():
    model, _ = two()
    for name in ("second", "a.b", ""):
        with pytest.raises(ValueError, match=rf"adapter name '{name}' is empty, has a dot or is"):
            model.add_adapter(name, config_of("llama"))
    for name, shown in (("third", "third"), (["default", "second"], r"default\+second")):
        message = rf"no adapter '{shown}'. There are: \['default', 'second'\]; give one of them"
        with pytest.raises(ValueError, match=message):
            model.set_adapter(name)
    model.set_adapter(["second"])
    assert model.active_adapter == "second"


def test_a_config_that_does_not_fit_adds_nothing():
    model, first = two()
    with pytest.raises(ValueError, match="n_splits=3 does not divide layer"):
        model.add_adapter("third", config_of("llama", n_splits=3))
    assert list(model.peft_config) == ["default", "second"]
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), first)


def test_the_base_is_within_reach(capsys):
    model = poly("llama")
    assert model.get_base_model() is model.model is model.base_model.model
    assert model.config is model.model.config
    assert model.device == torch.device("cpu")
    trainable, total = model.get_nb_trainable_parameters()
    assert 0 < trainable < total == sum(p.numel() for p in model.parameters())
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,} || all params: {total:,}" in capsys.readouterr().out
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = model.nothing_of_this_name
