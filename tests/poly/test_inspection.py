"""Allocations of all routers, read together, are those of each router by itself."""

import pytest
import torch

from polylab.poly.routers import TaskRouter
from tests.poly.tiny import poly

# a sigmoid's last bit depends on where in a vector register a number lies
LAST_BIT = {"rtol": 3e-7, "atol": 0.0}
KINDS = {
    "poly": {},
    "heads": {"n_splits": 2},
    "c-poly": {"poly_type": "c-poly", "n_private": 2},
    "shared": {"granularity": "model"},
    "own": {"router": {"_target_": "tests.testing.own.Task", "noise": "straight"}},
    "private": {"poly_type": "private"},
    "uniform": {"poly_type": "uniform"},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_read_together_is_each_by_itself(changes):
    model = poly("t5", **changes)
    draw = torch.Generator().manual_seed(4)
    for name, p in model.named_parameters():
        if "poly_router" in name:
            p.data.add_(torch.randn(p.shape, generator=draw))
    weights, gates = model.task_weights(), model.task_gates()
    adapter = model.active_adapter
    ids = torch.arange(model.config_of(adapter).n_tasks)
    assert [*weights] == [*model.active_layers()]
    for name, layer in model.active_layers().items():
        router = layer.router(adapter)
        with torch.no_grad():
            torch.testing.assert_close(weights[name], router(ids, sample=False), **LAST_BIT)
            z = router.gates(ids)
        assert (name in gates) == (z is not None)
        if z is not None:
            assert torch.equal(gates[name], z)


def test_gates_of_a_subclass_are_its_own():
    model = poly("t5")
    router = next(iter(model.active_layers().values())).router(model.active_adapter)

    class Halved(TaskRouter):
        def gates(self, task_ids):
            return super().gates(task_ids) / 2

    plain = model.task_gates()
    for layer in model.active_layers().values():
        layer.router(model.active_adapter).__class__ = Halved
    assert type(router) is Halved
    for name, z in model.task_gates().items():
        assert torch.equal(z, plain[name] / 2)
