"""The Trainer of transformers, with its default arguments."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from polylab import PolyModel
from polylab.poly.trainer import AdapterCheckpoints
from tests.poly.tiny import (
    BATCH,
    base,
    config_of,
    gradients,
    inputs_of,
    output_of,
    poly,
    task_ids,
    trained,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # the default, without a GPU
    pytest.mark.filterwarnings("ignore:.*use_reentrant.*"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
KINDS = ["t5", "llama", "gpt2"]
OURS = ["task_ids", "prompt_mask", "segment_ids", "packed_lengths", "decoder_packed_lengths"]


def dataset(kind, **changes):
    """Four batches alike, with a column that no model reads."""
    inputs = inputs_of(kind)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    columns = {name: tensor.tolist() for name, tensor in inputs.items()}
    columns |= {"task_ids": task_ids().tolist(), "text": ["a", "b", "c", "d"], **changes}
    return Dataset.from_dict({name: column * 4 for name, column in columns.items() if column})


def trainer_of(model, folder, kind, **arguments):
    callbacks = arguments.pop("callbacks", None)
    values = {"learning_rate": 1e-2, "max_steps": 12, "disable_tqdm": True, **arguments}
    data = dataset(kind)
    args = TrainingArguments(str(folder), **values)
    return Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=callbacks)


def state_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("poly_type", ["poly", "mope", "private"])
@pytest.mark.parametrize("kind", KINDS)
def test_defaults_train_and_evaluate(kind, poly_type, tmp_path):
    model, seen = poly(kind, poly_type=poly_type, noise="none"), []
    model.get_base_model().register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append({*kwargs}), with_kwargs=True
    )
    trainer = trainer_of(model, tmp_path, kind)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    assert {"input_ids", "attention_mask", "labels"} <= seen[0]
    assert not seen[0] & {"task_ids", "text"}
    assert (tmp_path / "checkpoint-12" / "model.safetensors").exists()


def test_task_ids_reach_the_layers(tmp_path):
    model = poly("llama")
    trainer = trainer_of(model, tmp_path, "llama", per_device_eval_batch_size=BATCH)
    loss = trainer.evaluate()["eval_loss"]
    wanted = model(**inputs_of("llama"), task_ids=task_ids()).loss.item()
    assert loss == pytest.approx(wanted, rel=1e-4)
    other = dataset("llama", task_ids=((task_ids() + 1) % 6).tolist())
    assert trainer.evaluate(other)["eval_loss"] != pytest.approx(wanted, rel=1e-4)


def test_a_dataset_without_task_ids_says_so(tmp_path):
    trainer = trainer_of(poly("llama"), tmp_path, "llama")
    with pytest.raises(ValueError, match=r"task_ids=None.*int64 tensor \[8\] of ids 0 to 5"):
        trainer.evaluate(dataset("llama", task_ids=None))


@pytest.mark.parametrize("callbacks", [None, [AdapterCheckpoints()]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(kind, callbacks, tmp_path):
    def run(folder, resume=None, **arguments):
        model = poly(kind, noise="none")
        how = {"lr_scheduler_type": "constant", "callbacks": callbacks, **arguments}
        trainer = trainer_of(model, folder, kind, **how)
        trainer.train(resume_from_checkpoint=resume)
        return model

    wanted = state_of(run(tmp_path / "one", max_steps=6))
    run(tmp_path / "two", max_steps=3)
    checkpoint = tmp_path / "two" / "checkpoint-3"
    found = state_of(run(tmp_path / "two", str(checkpoint), max_steps=6))
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    names = {*load_file(checkpoint / "model.safetensors")}
    if callbacks is None:
        assert names == {name for name, _ in poly(kind).named_parameters()}
    else:
        assert names == {*wanted}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_checkpoint_of_the_adapter_alone(kind, tmp_path):
    model = poly(kind)
    how = {"max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    how["load_best_model_at_end"] = True
    trainer = trainer_of(model, tmp_path, kind, callbacks=[AdapterCheckpoints()], **how)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert model.load_state_dict(saved, strict=False).missing_keys == []
    del saved[next(iter(saved))]
    assert len(model.load_state_dict(saved, strict=False).missing_keys) == 1
    again = PolyModel.from_pretrained(base(kind), tmp_path / "checkpoint-4")
    wanted = output_of(model.eval(), kind, task_ids=task_ids())
    assert torch.equal(output_of(again, kind, task_ids=task_ids()), wanted)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert not {*model.state_dict()} & {*frozen}


def test_adapter_checkpoints_need_a_poly_model(tmp_path):
    with pytest.raises(TypeError, match=r"PolyModel, not LlamaForCausalLM"):
        trainer_of(base("llama"), tmp_path, "llama", callbacks=[AdapterCheckpoints()])


def test_a_whole_checkpoint_is_no_adapter(tmp_path):
    trainer_of(poly("llama"), tmp_path, "llama", max_steps=1).train()
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json.*'model.safetensors'"):
        PolyModel.from_pretrained(base("llama"), tmp_path / "checkpoint-1")


def test_seq2seq_trainer_generates_under_the_ids(tmp_path):
    model, data = poly("t5"), dataset("t5")
    args = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=3, predict_with_generate=True, disable_tqdm=True
    )
    trainer = Seq2SeqTrainer(model, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    predicted = trainer.predict(data, max_new_tokens=6, num_beams=2)
    assert predicted.metrics is not None
    assert predicted.metrics["test_loss"] > 0
    prompts = inputs_of("t5")["input_ids"]
    how = {"max_new_tokens": 6, "num_beams": 2, "attention_mask": torch.ones_like(prompts)}
    wanted = model.generate(prompts, task_ids=task_ids(), **how)
    found = torch.tensor(predicted.predictions)[:BATCH, : wanted.shape[1]]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_label_smoothing_shifts_the_labels_of_a_causal_model(kind, tmp_path):
    losses = []
    for model in (poly(kind), base(kind)):
        trainer = trainer_of(model, tmp_path, kind, label_smoothing_factor=0.1)
        with torch.no_grad():
            inputs = inputs_of(kind)
            if kind == "t5":  # as its collator does
                inputs["decoder_input_ids"] = base(kind)._shift_right(inputs["labels"])
            ids = {"task_ids": task_ids()} if isinstance(model, PolyModel) else {}
            outputs = model(**inputs, **ids)
            losses.append((trainer.compute_loss(model, {**inputs, **ids}), outputs, trainer))
    (loss, outputs, _), (_, _, plain) = losses
    shift = kind != "t5"
    wanted = plain.label_smoother(outputs, inputs_of(kind)["labels"], shift_labels=shift)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_reads_from_us_what_it_reads_from_the_base(kind, tmp_path):
    ours, theirs = (trainer_of(m, tmp_path, kind) for m in (poly(kind), base(kind)))
    assert ours.label_names == theirs.label_names == ["labels"]
    assert ours.model_accepts_loss_kwargs == theirs.model_accepts_loss_kwargs
    assert ours.can_return_loss == theirs.can_return_loss


def test_gradient_checkpointing_as_an_argument(tmp_path):
    runs = []
    for switch in (False, True):
        model = poly("t5", noise="none")
        trainer_of(model, tmp_path, "t5", max_steps=3, gradient_checkpointing=switch).train()
        runs.append(state_of(model))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-4, atol=1e-5)  # 3 Adam steps


def test_a_quantised_base_may_be_trained(tmp_path):
    model = poly("llama")

    class Quantiser:
        is_trainable = True

    model.model.is_quantized, model.model.hf_quantizer = True, Quantiser()
    trainer_of(model, tmp_path, "llama", max_steps=1).train()


def test_a_prompt_mask_is_a_column_like_any(tmp_path):
    """With label smoothing the Trainer keeps the labels, by which a prompt is known, to itself."""
    model, inputs = poly("llama", poly_type="mope"), inputs_of("llama")
    wanted = model.mixing_weights(**inputs)
    layer, seen = next(iter(model.poly_layers().values())), []
    layer.poly_router["default"].register_forward_hook(lambda *args: seen.append(args[2]))
    mask = (inputs["labels"] == -100).tolist()
    how = {"label_smoothing_factor": 0.1, "per_device_eval_batch_size": BATCH}
    trainer_of(model, tmp_path, "llama", **how).evaluate(dataset("llama", prompt_mask=mask))
    torch.testing.assert_close(seen[0], wanted[layer.name])


# The class


@pytest.mark.parametrize("kind", [*KINDS, "encoder"])
def test_the_signature_is_the_bases_and_ours(kind):
    model = poly(kind)
    names = [*inspect.signature(model.forward).parameters]
    wanted = inspect.signature(base(kind).forward).parameters
    named = [name for name, p in wanted.items() if p.kind is not p.VAR_KEYWORD]
    assert names[: len(named) + len(OURS)] == [*named, *OURS]
    assert names[len(named) + len(OURS) :] == [n for n in wanted if n not in named]
    assert [*inspect.signature(type(model).forward).parameters] == ["self", *names]


def through_torch(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("poly_type", ["poly", "mope"])
@pytest.mark.parametrize("kind", [*KINDS, "encoder"])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch]
)
def test_copies(kind, poly_type, copied):
    model = poly(kind, poly_type=poly_type)
    twin = copied(model)
    assert type(twin) is type(model)
    assert isinstance(twin, PolyModel)
    outputs = [output_of(m, kind, task_ids=task_ids()) for m in (model, twin)]
    assert torch.equal(*outputs)
    outputs[1].square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert gradients(twin)


def test_a_users_subclass():
    class Loud(PolyModel):
        def forward(self, *args, volume=2, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * volume
            return output

    model = trained(Loud(base("llama"), config_of("llama")))
    assert isinstance(model, Loud)
    assert {"volume", "input_ids"} <= {*inspect.signature(model.forward).parameters}
    wanted = output_of(poly("llama"), "llama", task_ids=task_ids())
    torch.testing.assert_close(output_of(model, "llama", task_ids=task_ids()), 2 * wanted)
    torch.testing.assert_close(
        output_of(copy.deepcopy(model), "llama", task_ids=task_ids(), volume=3), 3 * wanted
    )
    again = type(model)(base("t5"), config_of("t5"))
    assert isinstance(again, Loud)
    assert "decoder_input_ids" in inspect.signature(again.forward).parameters


def test_one_class_for_one_base():
    one, other, t5 = poly("llama"), poly("llama", poly_type="mope"), poly("t5")
    assert type(one) is type(other)
    assert type(one) is not type(t5)
    assert type(one).__name__ == "PolyModel[LlamaForCausalLM]"


# Tied weights


def test_a_state_dict_names_a_tied_weight_once():
    model = poly("t5")
    state = model.state_dict()
    assert {*state} == {name for name, _ in model.named_parameters()}
    twin = poly("t5", seed=5)
    assert twin.load_state_dict(state).missing_keys == []
    outer = nn.Sequential(poly("t5", seed=5))
    outer.load_state_dict(nn.Sequential(model).state_dict())
    wanted = output_of(model, "t5", task_ids=task_ids())
    for each in (twin, outer[0]):
        assert torch.equal(output_of(each, "t5", task_ids=task_ids()), wanted)


def test_a_state_dict_with_every_name_loads_too():
    model = poly("t5")
    state = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}
    assert len(state) > len(model.state_dict())
    model.load_state_dict(state)


def test_the_collator_keeps_task_ids():
    rows = [{"input_ids": [3, 4], "task_ids": 5}, {"input_ids": [6, 7], "task_ids": 0}]
    assert default_data_collator(rows)["task_ids"].dtype == torch.int64
