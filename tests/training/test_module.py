"""Steps and logging names of `PolyModule`."""

import math

import pytest
import torch

from polylab.training import OptimConfig
from polylab.training.optim import parameter_groups

KINDS = ["t5", "gpt2"]


def _trained(make_trainer, module, data, **kw):
    trainer = make_trainer(**{"max_steps": 5, "limit_val_batches": 0, **kw})
    trainer.fit(module, data)
    return trainer.loggers[0]


def test_training_uses_no_cache_and_generation_does(poly_module, make_batch, monkeypatch):
    module = poly_module().eval()
    seen = []
    forward = module.model.forward
    generate = module.model.generate
    monkeypatch.setattr(
        module.model, "forward", lambda *a, **k: (seen.append(k["use_cache"]), forward(*a, **k))[1]
    )
    monkeypatch.setattr(
        module.model,
        "generate",
        lambda *a, **k: (seen.append(k["use_cache"]), generate(*a, **k))[1],
    )
    module.example_losses(make_batch(2))
    module.generate_texts(make_batch(2))
    assert seen[:2] == [False, True]


def test_the_noise_key_follows_step_and_rows(poly_module, make_data, make_trainer, monkeypatch):
    module = poly_module(seed=7)
    keys, set_key = [], module.model.set_noise_key

    def spy(*key, rows):
        keys.append((key, rows.tolist()))
        set_key(*key, rows=rows)

    monkeypatch.setattr(module.model, "set_noise_key", spy)
    _trained(make_trainer, module, make_data(), max_steps=2, accumulate_grad_batches=2)
    assert keys == [((7, step), [0, 1, 2, 3]) for step in (0, 0, 1, 1)]


def test_only_the_adapter_trains_and_every_group_moves(poly_module, make_data, make_trainer):
    module = poly_module(optim={"lr": 0.01})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    _trained(make_trainer, module, make_data())
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    groups = parameter_groups(module)
    assert moved == {name for members in groups.values() for name in members}
    assert set(groups) == {"skills", "router"}
    assert all("poly_" in name for name in moved)


def test_the_loss_falls_by_half(poly_module, make_data, make_trainer):
    every = {"target_modules": ["q", "k", "v", "o", "wi", "wo", "lm_head"], "r": 8}
    module = poly_module(dropout=0.0, optim={"lr": 0.03}, poly=every)
    data = make_data(batch_size=22)
    logger = _trained(make_trainer, module, data, max_steps=60, log_every_n_steps=1)
    losses = logger.series("train/loss")
    assert losses[60] < losses[1] / 2


def test_dropout_is_on_in_training_and_off_after(poly_module, make_batch):
    module = poly_module(dropout=0.5, poly={"noise": "none"})
    assert module.model.training
    batch = make_batch(4)
    assert not torch.equal(module.example_losses(batch)[0], module.example_losses(batch)[0])
    module.eval()
    assert torch.equal(module.example_losses(batch)[0], module.example_losses(batch)[0])


def test_training_is_logged_at_intervals_and_at_the_last_step(poly_module, make_data, make_trainer):
    logger = _trained(make_trainer, poly_module(), make_data())
    assert list(logger.series("train/loss")) == [2, 4, 5]
    for key in ("lr/skills", "lr/router", "grad_norm/skills", "grad_norm/router"):
        assert list(logger.series(key)) == [2, 4, 5]
    examples = [
        sum(
            logger.series(f"train/{task}/examples").get(5, 0) for task in ("copy", "first", "upper")
        )
    ]
    assert examples == [5 * 4]
    assert logger.series("lr/router")[5] == 0.1


def test_a_run_that_ends_between_two_intervals_logs_its_end(poly_module, make_data, make_trainer):
    logger = _trained(
        make_trainer, poly_module(), make_data(), max_steps=-1, max_epochs=1, log_every_n_steps=4
    )
    assert list(logger.series("train/loss")) == [4, 6]


def test_accumulated_batches_are_one_step(poly_module, make_data, make_trainer):
    logger = _trained(
        make_trainer, poly_module(), make_data(), max_steps=4, accumulate_grad_batches=2
    )
    steps = [step for step, metrics in logger.lines if "train/loss" in metrics]
    assert steps == [2, 4]


def test_the_rate_logged_is_the_one_of_the_step(poly_module, make_data, make_trainer):
    optim = {"lr": 1.0, "schedule": "linear", "warmup": 2}
    logger = _trained(
        make_trainer, poly_module(optim=optim), make_data(), max_steps=4, log_every_n_steps=1
    )
    assert list(logger.series("lr/skills").values()) == [0.5, 1.0, 1.0, 0.5]


def test_only_the_first_tasks_have_keys(poly_module, make_data, make_trainer):
    module = poly_module(max_logged_tasks=1)
    trainer = make_trainer(max_steps=6)
    trainer.fit(module, make_data())
    keys = {key for _, metrics in trainer.loggers[0].lines for key in metrics}
    assert {"train/copy/loss", "val/copy/exact_match"} <= keys
    assert not any("/first/" in key or "/upper/" in key for key in keys)
    assert set(module.results["val"]["tasks"]) == {"copy", "first", "upper"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_is_scored_per_task_and_over_tasks(
    poly_module, make_data, make_trainer, monkeypatch, kind
):
    module = poly_module(kind)
    answers = {0: "wrong", 1: None, 2: "WRONG"}  # task 1 copies its reference

    def answer(batch, **_):
        pairs = zip(batch["task_ids"].tolist(), batch["references"], strict=True)
        return [answers[task] or references[0] for task, references in pairs]

    monkeypatch.setattr(module, "generate_texts", answer)
    trainer = make_trainer()
    trainer.test(module, make_data(is_encoder_decoder=kind == "t5"), verbose=False)
    result = module.results["test"]
    assert result["tasks"]["first"]["exact_match"] == 1.0
    assert result["tasks"]["copy"]["exact_match"] == 0.0
    assert result["macro"]["exact_match"] == pytest.approx(1 / 3)
    assert set(result["tasks"]["copy"]) == {"loss", "exact_match", "rouge_l", "token_f1"}
    ((_, metrics),) = trainer.loggers[0].lines
    assert metrics["test/exact_match"] == pytest.approx(1 / 3)
    assert metrics["test/first/exact_match"] == 1.0
    assert metrics["test/loss"] == result["loss"]
    assert trainer.callback_metrics["test/exact_match"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_generated_is_greedy_and_without_the_prompt(poly_module, make_batch, kind):
    module = poly_module(kind).eval()
    batch = make_batch(3, is_encoder_decoder=kind == "t5")
    texts = module.generate_texts(batch)
    for i in range(3):
        alone = make_batch(3, only=i, is_encoder_decoder=kind == "t5")
        assert module.generate_texts(alone) == [texts[i]]
        assert texts[i] == _greedy(module, alone, kind)


def _greedy(module, batch, kind):
    """Argmax by argmax, without cache or padding."""
    decoded = torch.zeros(1, 1, dtype=torch.int64)  # T5 starts with its pad token
    with torch.no_grad():
        for _ in range(4):
            if kind == "t5":
                kw = {name: batch[name] for name in ("input_ids", "attention_mask")}
                logits = module.model(
                    **kw, decoder_input_ids=decoded, task_ids=batch["task_ids"]
                ).logits
            else:
                ids = torch.cat([batch["prompt_ids"], decoded[:, 1:]], dim=1)
                logits = module.model(input_ids=ids, task_ids=batch["task_ids"]).logits
            decoded = torch.cat([decoded, logits[:, -1:].argmax(-1)], dim=1)
            if decoded[0, -1] == module.tokenizer.eos_token_id:
                break
    return module.tokenizer.decode(decoded[0, 1:], skip_special_tokens=True)


def test_predictions_are_bounded_per_task(poly_module, make_data, make_trainer):
    data = make_data(n_val=13)
    every = poly_module(predictions_per_task=None)
    make_trainer().validate(every, data, verbose=False)
    assert len(every.predictions["val"]) == 13
    few = poly_module(predictions_per_task=2)
    make_trainer().validate(few, data, verbose=False)
    tasks = [p["task"] for p in few.predictions["val"]]
    assert tasks == ["copy", "copy", "first", "first", "upper"]
    assert set(few.predictions["val"][0]) == {"task", "input", "prediction", "references"}
    first = few.predictions["val"][0]
    assert first["references"] == [first["input"]]


def test_a_second_pass_starts_anew(poly_module, make_data, make_trainer):
    module, fresh = poly_module(), poly_module()
    make_trainer().validate(module, make_data(n_val=13), verbose=False)
    first = module.results["val"]
    for each in (module, fresh):
        make_trainer().validate(each, make_data(n_val=2), verbose=False)
        assert len(each.predictions["val"]) == 2
    assert module.results["val"] == fresh.results["val"] != first


def test_a_sanity_check_leaves_no_result(poly_module, make_data, make_trainer):
    module = poly_module()
    trainer = make_trainer(num_sanity_val_steps=1, limit_train_batches=0, max_epochs=1)
    trainer.fit(module, make_data())
    assert module.results == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1 must be from 0 to below 1"),
        ({"task_names": ["a", "b", "a"]}, "task_names holds a twice"),
        ({"optim": {"router": "idle"}}, "optim.router=idle is not available"),
    ],
)
def test_wrong_arguments_are_named(poly_module, settings, message):
    with pytest.raises(ValueError, match=message):
        poly_module(**settings)


def test_two_ways_of_clipping_are_refused(poly_module, make_data, make_trainer):
    trainer = make_trainer(max_steps=1, gradient_clip_val=2.0)
    with pytest.raises(ValueError, match=r"optim.clip=1.0 and trainer.gradient_clip_val=2.0 both"):
        trainer.fit(poly_module(optim=OptimConfig(clip=1.0)), make_data())


def test_the_norm_logged_is_before_clipping(poly_module, make_data, make_trainer):
    free = _trained(make_trainer, poly_module(), make_data(), max_steps=2, log_every_n_steps=1)
    module = poly_module(optim={"clip": 1e-3})
    tight = _trained(make_trainer, module, make_data(), max_steps=2, log_every_n_steps=1)
    assert free.series("grad_norm/skills")[1] == tight.series("grad_norm/skills")[1] > 1e-3
    for members in parameter_groups(module).values():  # the last step's gradients
        norm = torch.nn.utils.get_total_norm([p.grad for p in members.values()])
        assert norm <= 1e-3 * (1 + 1e-5)
    assert math.isfinite(tight.series("grad_norm/router")[2])
