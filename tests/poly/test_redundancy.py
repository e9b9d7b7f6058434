"""Dead and duplicate skills, against products that are made for the purpose."""

import pytest
import torch

from polylab.poly.redundancy import dead_skills, duplicate_skills, update_cosines

SPLITS, SKILLS, D_IN, RANK, D_OUT, TASKS = 2, 5, 7, 3, 6, 4


@pytest.fixture
def banks():
    draw = torch.Generator().manual_seed(3)
    shapes = (SPLITS, SKILLS, D_IN, RANK), (SPLITS, SKILLS, RANK, D_OUT)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def slow_cosines(a, b):
    updates = torch.einsum("qsdr,qsro->qsdo", a.double(), b.double()).flatten(2)
    return torch.nn.functional.cosine_similarity(updates[:, :, None], updates[:, None], dim=-1)


def test_cosines_are_those_of_the_products(banks):
    torch.testing.assert_close(update_cosines(*banks).double(), slow_cosines(*banks))


def test_a_copy_in_another_basis_is_a_duplicate(banks):
    a, b = banks
    turn = torch.eye(RANK) + 0.3 * torch.rand(
        RANK, RANK, generator=torch.Generator().manual_seed(1)
    )
    a[1, 4], b[1, 4] = a[1, 2] @ turn, 2.5 * turn.inverse() @ b[1, 2]  # longer, but on its line
    found = duplicate_skills(a, b)
    assert found.nonzero().tolist() == [[1, 4]]  # of head 1 the later one


def test_three_of_a_kind_are_two_too_many(banks):
    a, b = banks
    a[0, 1:4], b[0, 1:4] = a[0, 1].clone(), b[0, 1].clone()
    assert duplicate_skills(a, b).sum(-1).tolist() == [2, 0]


def test_opposite_updates_are_no_duplicates(banks):
    a, b = banks
    a[0, 3], b[0, 3] = a[0, 0], -b[0, 0]
    assert update_cosines(a, b)[0, 3, 0] == pytest.approx(-1, abs=1e-5)
    assert not duplicate_skills(a, b).any()


@pytest.mark.parametrize("zero", [slice(None), slice(1, 3)], ids=["all", "two"])
def test_skills_without_an_update_are_no_duplicates(banks, zero):
    a, b = banks
    b[:, zero] = 0
    assert not duplicate_skills(a, b).any()
    assert update_cosines(a, b).isfinite().all()


def test_equal_b_alone_makes_no_duplicates(banks):
    # after the first step from B = 0 every skill has the same B, beside its own A
    a, b = (
        torch.randn(SPLITS, SKILLS, 300, RANK, generator=torch.Generator().manual_seed(0)),
        banks[1],
    )
    b[:] = b[:, :1].clone()
    assert update_cosines(a, b).tril(-1).abs().max() < 0.5
    assert not duplicate_skills(a, b).any()


class TestDead:
    def test_the_bound_is_on_the_largest_weight(self):
        w = torch.tensor([[0.5, 0.48, 0.02], [0.485, 0.5, 0.015]])[:, None]
        other = torch.tensor([[0.5, 0.495, 0.005], [0.45, 0.5, 0.05]])[:, None]
        found = dead_skills({"layer": torch.cat([w, other], 1)})
        assert found["layer"].tolist() == [[False, False, True], [False, False, False]]
        assert dead_skills({"layer": w}, below=0.05)["layer"].sum() == 0  # 0.02 * 3 = 0.06

    def test_one_skill_is_alive(self):
        assert not dead_skills({"layer": torch.ones(TASKS, 1, 1)})["layer"].any()
