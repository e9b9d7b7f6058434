"""Rank classification against asking for one option at a time, and on several ranks."""

import os

import pytest
import torch
from transformers import ByT5Tokenizer

from polylab.data import Example
from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExamples
from polylab.data.encoding import TextEncoder
from polylab.training.evaluation import SplitEvaluation
from polylab.training.ranking import is_right

OPTIONS = [("yes", "no", "perhaps"), None, ("a", "bcdef"), ("x",), ("one", "two", "three", "four")]
INPUTS = ["is it", "say it", "a question that is longer", "q", "count"]
TASK_IDS = [2, 0, 1, 1, 0]


def _batch(is_encoder_decoder, *, max_target_length=9):
    tokenizer = ByT5Tokenizer()
    encoder = TextEncoder(
        tokenizer,
        is_encoder_decoder=is_encoder_decoder,
        max_input_length=30,
        max_target_length=max_target_length,
        separator="|",
    )
    rows = [
        Example(text, options[0] if options else "it", options=options)
        for text, options in zip(INPUTS, OPTIONS, strict=True)
    ]
    data = EncodedExamples(
        [[row] for row in rows],
        task_names=[*"abcde"],
        task_ids=TASK_IDS,
        encoder=encoder,
        prompt="none",
    )
    collate = Collator(pad_id=0, n_tasks=3, is_encoder_decoder=is_encoder_decoder, evaluation=True)
    return collate(data.__getitems__([(i, i) for i in range(5)])), encoder


def _slow(module, text, option, task_id, encoder, *, is_encoder_decoder):
    """Log-likelihoods of an option's tokens, in a batch of its own without padding."""
    (ids,), (target,) = encoder.encode_inputs([text]), encoder.encode_targets([option])
    ids, target = torch.from_numpy(ids).long()[None], torch.from_numpy(target).long()[None]
    task_ids = torch.tensor([task_id])
    if is_encoder_decoder:
        logits = module.model(input_ids=ids, labels=target, task_ids=task_ids).logits
    else:
        prompt = torch.arange(ids.shape[1] + target.shape[1])[None] < ids.shape[1]
        whole = torch.cat([ids, target], 1)
        logits = module.model(input_ids=whole, task_ids=task_ids, prompt_mask=prompt).logits
        logits = logits[:, ids.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(2, target[..., None])[0, :, 0]


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.parametrize(
    "poly",
    [
        {},
        {"n_splits": 2},
        {"poly_type": "mope"},
        {"poly_type": "mope", "router_input": "embeddings"},
    ],
)
@pytest.mark.parametrize("rank_options", ["mean", "sum"])
@torch.no_grad()
def test_scores_are_those_of_one_option_at_a_time(poly_module, kind, poly, rank_options):
    is_encoder_decoder = kind == "t5"
    module = poly_module(kind, poly=poly, rank_options=rank_options).double().eval()
    for parameter in module.model.parameters():
        if parameter.requires_grad:
            parameter.normal_()
    batch, encoder = _batch(is_encoder_decoder)
    encoded = module.example_losses(batch).encoded
    assert (encoded is not None) == is_encoder_decoder
    found = module.option_scores(batch, encoded=encoded)
    assert [(*options,) or None for options in found] == OPTIONS
    for row, options in enumerate(OPTIONS):
        for option in options or ():
            wanted = _slow(
                module,
                INPUTS[row],
                option,
                TASK_IDS[row],
                encoder,
                is_encoder_decoder=is_encoder_decoder,
            )
            wanted = wanted.mean() if rank_options == "mean" else wanted.sum()
            assert found[row][option] == pytest.approx(wanted.item(), rel=1e-6)  # in float32


def test_without_options_nothing_is_asked(poly_module, make_batch):
    module = poly_module()
    module.model.forward = None  # would fail
    assert module.option_scores(make_batch(3)) == [{}, {}, {}]
    batch, _ = _batch(is_encoder_decoder=True)
    module = poly_module(rank_options=None)
    module.model.forward = None
    assert module.option_scores(batch) == [{}] * 5
    with pytest.raises(ValueError, match="rank_options='median' · valid: mean, sum, null"):
        poly_module(rank_options="median")


def test_options_that_the_budget_makes_equal_share_a_score(poly_module):
    batch, _ = _batch(is_encoder_decoder=True, max_target_length=2)  # a letter and the end
    assert batch["ranked"]["texts"][-3:] == [["one"], ["two", "three"], ["four"]]
    scores = poly_module().eval().option_scores(batch)[4]
    assert scores["two"] == scores["three"]


def test_an_answer_is_right_only_if_nothing_wrong_is_as_likely():
    assert is_right({"a": -1.0, "b": -2.0}, ["a", "c"]) == 1
    assert is_right({"a": -1.0, "b": -2.0}, ["b"]) == 0
    assert is_right({"a": -1.0, "b": -1.0}, ["a"]) == 0
    assert is_right({"a": -1.0, "b": -1.0}, ["b", "a"]) == 1
    assert is_right({"a": -1.0}, ["not an option"]) == 0


def _fill(evaluation, rows):
    """Example i of task `i % 3`, or of task 0 below 4; each fourth one has no options."""
    for i in rows:
        ids = torch.tensor([0 if i < 4 else i % 3])
        options = {} if i % 4 == 3 else {"a": -(i % 5) / 2, "b": -1.0}
        evaluation.add_losses(ids, torch.tensor([i / 7]), torch.tensor([2]))
        answers = (["x"], ["a" if i % 2 else "b"], [["a"]], [i], [options])
        evaluation.add_texts(ids, *answers)


def _evaluated(_folder):
    rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else None
    evaluation = SplitEvaluation(["s", "t", "u"], predictions_per_task=2, intervals=True)
    rows = {None: [*range(11)], 0: [10, 0, 1, 3, 5, 6, 7], 1: [4, 9, 8, 2]}[rank]
    _fill(evaluation, rows)
    result, predictions = evaluation.finish()
    return result, len(predictions)


def _on_a_rank(folder):
    torch.distributed.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    return _evaluated(folder)


def test_numbers_and_intervals_are_those_of_one_rank(on_two_ranks, free_port, tmp_path):
    alone = _evaluated(None)
    assert {*alone[0]["macro"]} == {"exact_match", "rouge_l", "token_f1", "rank_accuracy"}
    assert 0 < alone[0]["macro"]["rank_accuracy"] < 1
    assert {*alone[0]["intervals"]["tasks"]["s"]} == {*alone[0]["macro"]}
    first, second = on_two_ranks(_on_a_rank, free_port, tmp_path)
    assert first == alone
    assert second == alone
