"""Rows of many tables at once, from where the tables lie."""

import pytest
import torch
from torch import nn

from polylab.poly.routers import CPolyRouter, InputRouter, TaskRouter
from polylab.poly.routers.rows import rows_of, side_by_side

N_TABLES, N_TASKS, N_GATES = 3, 5, 4
IDS = [torch.tensor([4, 0, 4]), torch.tensor([[1, 1], [2, 1]]), torch.tensor([], dtype=torch.int64)]


def make_tables(*, adjacent, dtype=torch.float32):
    torch.manual_seed(0)
    flat = torch.randn(N_TABLES, N_TASKS, N_GATES, dtype=dtype)
    tables = [nn.Parameter(table.clone()) for table in flat]
    if adjacent:
        for table, data in zip(tables, flat, strict=True):
            table.data = data
    return tables


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("ids", IDS, ids=str)
def test_rows_and_their_gradients_are_those_of_indexing(adjacent, ids):
    ours, theirs = make_tables(adjacent=adjacent), make_tables(adjacent=False)
    assert (side_by_side(ours) is not None) == adjacent
    found, wanted = rows_of(ours, ids), torch.stack(theirs)[:, ids]
    assert torch.equal(found, wanted)
    factor = torch.randn_like(wanted)
    (found * factor).sum().backward()
    (wanted * factor).sum().backward()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
    assert side_by_side([table.grad for table in ours]) is not None


def test_gradients_have_gradients():
    tables = make_tables(adjacent=True, dtype=torch.float64)

    def cubes(*given):
        return rows_of(given, IDS[0]) ** 3

    assert torch.autograd.gradcheck(cubes, tables)
    assert torch.autograd.gradgradcheck(cubes, tables)


def test_neighbours_are_one_view():
    flat = torch.randn(4, 2, 3)
    view = side_by_side([flat[1], flat[2], flat[3]])
    assert torch.equal(view, flat[1:])
    assert view.data_ptr() == flat[1].data_ptr()


def test_others_are_not():
    flat = torch.arange(24.0).view(4, 2, 3)
    assert side_by_side([flat[0], flat[2]]) is None
    assert side_by_side([flat[1], flat[0]]) is None
    assert side_by_side([flat[0], flat[1].clone()]) is None
    assert side_by_side([flat[0], flat[1].view(3, 2)]) is None
    assert side_by_side([flat[0], flat[1].view(torch.int32)]) is None
    assert side_by_side([flat[0].mT, flat[1].mT]) is None
    assert side_by_side([flat[0], flat[1].mT]) is None
    assert side_by_side([torch.empty(0, 3), torch.empty(0, 3)]) is None


def test_neighbours_by_chance_are_not():
    buffer = bytearray(4 * 12)
    parts = [torch.frombuffer(buffer, dtype=torch.float32, count=6, offset=24 * i) for i in (0, 1)]
    assert parts[1].data_ptr() == parts[0].data_ptr() + 24
    assert side_by_side(parts) is None


def test_tables_of_tasks_are_those_that_a_row_of_is_read():
    sizes = {"n_splits": 1, "sampler": None}
    assert list(TaskRouter(3, 2, **sizes).task_tables()) == ["module_logits"]
    private = CPolyRouter(3, 2, n_private=1, **sizes)
    assert dict(private.task_tables()) == dict(private.named_parameters())
    by_input = InputRouter(
        4, 2, n_splits=1, temperature=1.0, gating="softmax", top_k=None, per_token=False
    )
    assert not by_input.task_tables()
