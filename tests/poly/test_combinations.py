"""Features that meet: each pair was once, or could be, silently wrong."""

import pytest
import torch
from torch import nn

from polylab import PolyConfig
from polylab.poly.routers import Router
from tests.poly.tiny import (
    BATCH,
    N_TASKS,
    base,
    config_of,
    inputs_of,
    output_of,
    poly,
    task_ids,
)

NAMES = [f"task{i}" for i in range(N_TASKS)]


@pytest.mark.parametrize("source", ["global", "keyed"])
@pytest.mark.parametrize("granularity", ["linear", "model"])
def test_mixing_weights_are_without_noise_in_training_too(granularity, source, tolerance):
    model = poly("gpt2", granularity=granularity, noise_source=source).train()
    before = torch.get_rng_state()
    found = model.mixing_weights(task_ids=task_ids())
    assert torch.equal(torch.get_rng_state(), before)
    for name, w in model.task_weights().items():
        torch.testing.assert_close(found[name], w[task_ids()], **tolerance)


def test_a_share_of_uniform_keeps_adapters_from_growing():
    model = poly("gpt2")
    model.add_adapter("other", config_of("gpt2"))
    model.set_uniform_share(0.5)
    with pytest.raises(ValueError, match=r"uniform_share=0\.5: .*new ones too"):
        model.add_skills(1)
    with pytest.raises(ValueError, match=r"have uniform_share=\[0\.5\]"):
        model.combine_adapters(["default", "other"], "both")
    wanted = output_of(model, "gpt2", task_ids=task_ids())
    model.add_tasks(1)
    assert torch.equal(output_of(model, "gpt2", task_ids=task_ids()), wanted)


class Hard(Router):
    """One skill for each task."""

    is_hard = True

    def __init__(self, *, n_tasks, n_skills, n_splits, d_in):
        super().__init__()
        self.n_skills, self.n_splits = n_skills, n_splits
        self.chosen = torch.arange(n_tasks) * d_in % n_skills

    def reset(self):
        pass

    def forward(self, task_ids, input_ids=None, *, uniform=None, sample=None):  # noqa: ARG002
        rows = nn.functional.one_hot(self.chosen[task_ids], self.n_skills).float()
        return rows[..., None, :].expand(*rows.shape[:-1], self.n_splits, -1)


class Noisy(Hard):
    """Draws noise, and is not asked for a task."""

    is_hard, draws_noise, needs_task_ids = False, True, False


def test_a_hard_router_under_a_share_of_uniform_computes_what_it_is_exported_as():
    model = poly("gpt2", router={"_target_": f"{__name__}.Hard"}, uniform_share=0.5).double()
    ids = torch.full((BATCH,), 2)
    wanted = output_of(model, "gpt2", task_ids=ids)
    merged = model.merge_and_unload(2)
    torch.testing.assert_close(output_of(merged, "gpt2"), wanted)


def test_noise_that_cannot_be_keyed_is_refused():
    with pytest.raises(ValueError, match=r"Noisy draws noise and reads no task_ids"):
        poly("gpt2", router={"_target_": f"{__name__}.Noisy"}, noise_source="keyed")


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("batch", [2, 3, 5])
def test_shuffling_by_input_gives_no_row_its_own_weights(batch, beams):
    model = poly("gpt2", poly_type="mope")
    weights = torch.arange(batch).repeat_interleave(beams)[:, None, None].float()
    with model.routing("shuffled"):
        from polylab.poly.routing import override_of

        change = override_of(model).intervention
        assert change is not None
        moved = change.reweigh("", model._router(), None, weights)
    assert not (moved == weights).any()
    with (
        pytest.raises(ValueError, match="this batch has one"),
        model.routing("shuffled"),
    ):
        model(inputs_of("gpt2")["input_ids"][:1])


def test_routers_of_the_embeddings_refuse_an_encoder_output_alone():
    model = poly("t5", poly_type="mope", router_input="embeddings")
    hidden = model.get_encoder()(inputs_of("t5")["input_ids"]).last_hidden_state
    mask = torch.ones(hidden.shape[:2]).bool()
    with pytest.raises(ValueError, match="encoder_outputs without the embeddings"):
        model(encoder_outputs=(hidden,), labels=inputs_of("t5")["labels"], prompt_mask=mask)


def test_a_cache_belongs_to_an_adapter_and_a_routing():
    model, ids = poly("gpt2", poly_type="mope"), inputs_of("gpt2")["input_ids"]
    model.add_adapter("other", config_of("gpt2", poly_type="mope"))
    with torch.no_grad():
        cache = model(ids).past_key_values
        with (
            pytest.raises(ValueError, match="adapter 'default' has routed; now it is 'default'"),
            model.routing("uniform"),
        ):
            model(ids[:, :1], past_key_values=cache)
        model.set_adapter("other")
        with pytest.raises(ValueError, match="adapter 'default' has routed; now it is 'other'"):
            model(ids[:, :1], past_key_values=cache)


def test_an_intervention_belongs_to_its_adapter():
    model = poly("gpt2", task_names=NAMES)
    model.add_adapter("other", config_of("gpt2", task_names=NAMES[::-1]))
    with model.routing("task:task1"):
        model.set_adapter("other")
        with pytest.raises(ValueError, match=r"changed to 'other' inside .*layers of 'default'"):
            model(**inputs_of("gpt2"))


def test_an_intervention_inside_a_disabled_adapter_leaves_it_disabled():
    model = poly("gpt2")
    with model.disable_adapter(), model.routing("learned"):
        found = output_of(model, "gpt2")
    plain = output_of(base("gpt2").requires_grad_(False), "gpt2")
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_aligned_skills_of_c_poly_are_refused():
    model = poly("gpt2", poly_type="c-poly")
    with pytest.raises(ValueError, match="mix shared and private"), model.routing("drop:0"):
        pass
    layer = next(iter(model.poly_layers()))
    with model.routing(f"drop:{layer}/0"):
        w = model.mixing_weights(task_ids=task_ids())[layer]
    assert w[..., 0].abs().max() == 0


def test_priors_need_something_to_learn_and_a_gradient():
    with pytest.raises(ValueError, match="with trainable='skills' the router learns nothing"):
        PolyConfig(priors={"ibp": 1.0}, trainable="skills")
    model = poly("gpt2", poly_type="mope", priors={"load_balance": 1.0}).train()
    with torch.no_grad():
        assert getattr(model(**inputs_of("gpt2")), "prior_loss", None) is None
    with model.routing("uniform"):
        assert getattr(model(**inputs_of("gpt2")), "prior_loss", None) is None
    assert model(**inputs_of("gpt2")).prior_loss > 0


def test_one_string_is_no_list_of_names():
    with pytest.raises(ValueError, match="task_names='abc' is one string"):
        PolyConfig(n_tasks=3, task_names="abc")
    model = poly("gpt2", task_names=NAMES)
    with pytest.raises(ValueError, match=r"tasks='qa' is one string: .*\['qa'\]"):
        model.add_tasks("qa")


def test_a_task_called_mean_is_meant_by_its_name(tolerance):
    model = poly("gpt2", task_names=["mean", *NAMES[1:]])
    model.add_tasks(["new"], like="mean")
    for w in model.task_weights().values():
        torch.testing.assert_close(w[-1], w[0], **tolerance)


def test_named_and_unnamed_adapters_are_not_combined():
    model = poly("gpt2", task_names=NAMES)
    model.add_adapter("other", config_of("gpt2"))
    with pytest.raises(ValueError, match="some have task names and some none"):
        model.combine_adapters(["default", "other"], "both")


def test_an_average_of_a_frozen_adapter_can_be_trained():
    model = poly("gpt2", inference_mode=True)
    model.average_skills("mean")
    model.set_adapter("mean")
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("call", ["save_pretrained", "set_uniform_share", "task_weights"])
def test_an_unloaded_model_says_so(call, tmp_path):
    model = poly("gpt2")
    model.unload()
    arguments = {"save_pretrained": (tmp_path,), "set_uniform_share": (0.5,)}.get(call, ())
    with pytest.raises(ValueError, match="no adapter 'default'"):
        getattr(model, call)(*arguments)
