"""A head per task in one tensor."""

import torch

from polylab.training.heads import TaskHeads


def make():
    torch.manual_seed(0)
    heads = TaskHeads([2, 5, 3], d=7, std=0.5, dropout=0.0)
    torch.nn.init.normal_(heads.bias)
    return heads


def test_each_row_has_the_logits_of_its_tasks_linear_head():
    heads, hidden = make(), torch.randn(4, 6, 7)
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [1] * 5 + [0], [1] * 3 + [0] * 3])
    tasks = [2, 0, 1, 2]
    logits = heads(hidden, mask, torch.tensor(tasks))
    for row, (task, size) in enumerate(zip(tasks, [3, 2, 5, 3], strict=True)):
        pooled = hidden[row, : int(mask[row].sum())].mean(0)
        expected = heads.weight[task, :size] @ pooled + heads.bias[task, :size]
        torch.testing.assert_close(logits[row, :size], expected, rtol=1e-5, atol=1e-6)
        assert logits[row, size:].eq(float("-inf")).all()


def test_a_task_learns_nothing_from_anothers_rows():
    heads = make()
    tasks = torch.tensor([0, 2])
    loss = torch.nn.functional.cross_entropy(
        heads(torch.randn(2, 6, 7), torch.ones(2, 6), tasks), torch.tensor([1, 2])
    )
    loss.backward()
    grad = heads.weight.grad
    assert grad is not None
    assert grad.isfinite().all()
    assert grad[1].eq(0).all()
    assert grad[0, 2:].eq(0).all()
    assert grad[0, :2].ne(0).all()
