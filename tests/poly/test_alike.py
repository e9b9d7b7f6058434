"""Tensors of one shape are taken together, those that are shared once."""

import torch

from polylab.poly import alike as module
from polylab.poly.alike import alike, by_shape


def test_each_gets_what_is_its_own(monkeypatch):
    monkeypatch.setattr(module.alike, "__defaults__", (13,))
    draw = torch.Generator().manual_seed(1)
    small = {f"small.{i}": torch.rand(2, 3, generator=draw) for i in range(5)}
    large = {f"large.{i}": torch.rand(5, 3, generator=draw) for i in range(2)}
    mixed = {"a": large["large.0"], **small, **large, "b": small["small.3"]}
    asked = []

    def of(stack):
        asked.append(tuple(stack.shape))
        return stack.sum(1)

    found = by_shape(of, mixed)
    assert [*found] == [*mixed]
    for name, tensor in mixed.items():
        torch.testing.assert_close(found[name], tensor.sum(0))
    assert found["a"] is found["large.0"]
    assert found["b"] is found["small.3"]
    assert sorted(asked) == [(1, 2, 3), (1, 5, 3), (1, 5, 3), (2, 2, 3), (2, 2, 3)]


def test_what_differs_in_any_of_two_is_apart():
    one, long, double = torch.zeros(2), torch.zeros(3), torch.zeros(2).double()
    pairs = {"a": (one, long), "b": (one, double), "c": (one, long), "d": (long, long)}
    assert [*alike(pairs)] == [["a", "c"], ["b"], ["d"]]
