import itertools
import math

import pytest
import torch

from masters_ray.divergence import jsd, top_k_jsd


def logprobs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_equal_distributions_diverge_by_nothing() -> None:
    p = torch.tensor([[0.2, 0.3, 0.5]])
    assert jsd(p, p).item() == pytest.approx(0.0, abs=1e-7)


def test_disjoint_distributions_diverge_by_ln_2() -> None:
    assert jsd(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(math.log(2), rel=1e-6)


def test_the_worked_example_of_the_docstring() -> None:
    result = top_k_jsd(
        torch.tensor([[0.0, -math.inf]]), torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), torch.tensor([0.5])
    )
    # M = (3/4, 1/4); 1/2 KL(P|M) + 1/2 KL(Q|M)
    expected = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) + 0.5 * math.log(1 / 0.75)
    assert result.item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.2158, abs=1e-4)


def stored(teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top = teacher.topk(k, -1)
    return top.indices, top.values, (1 - top.values.exp().sum(-1)).clamp(min=0)


def test_k_equal_to_the_vocabulary_gives_the_exact_value() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(7, 30, generator=generator).log_softmax(-1) for _ in range(2))
    exact = jsd(teacher.exp(), student.exp())
    assert torch.allclose(top_k_jsd(student, *stored(teacher, 30)), exact, atol=1e-6)


def test_the_stored_value_is_a_lower_bound_that_grows_with_k() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher, student = (3 * torch.randn(50, 30, generator=generator) for _ in range(2))
    teacher, student = teacher.log_softmax(-1), student.log_softmax(-1)
    values = [top_k_jsd(student, *stored(teacher, k)) for k in (1, 2, 5, 10, 20, 30)]
    for smaller, larger in itertools.pairwise(values):
        assert (smaller <= larger + 1e-6).all()


def test_the_gradient_is_right_and_finite_where_the_student_is_certain() -> None:
    teacher = torch.tensor([[0.7, 0.2, 0.1, 0.0]], dtype=torch.float64).clamp(min=1e-12).log()
    logits = torch.tensor([[0.3, -0.2, 0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    scores = stored(teacher, 2)
    assert torch.autograd.gradcheck(lambda x: top_k_jsd(x.log_softmax(-1), *scores), (logits,))
    certain = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    top_k_jsd(
        certain.log_softmax(-1), *[part.float() if part.is_floating_point() else part for part in scores]
    ).sum().backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()
