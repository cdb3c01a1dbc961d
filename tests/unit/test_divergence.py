import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from masters_ray.method.divergence import jsd, left_out_error, with_rest
from tests.tensors import random, top_k, top_k_jsd


@pytest.mark.parametrize("k", [1, 20, 300], ids="k={}".format)
def test_it_is_the_square_of_scipys_distance(k: int) -> None:
    """Of a teacher and a student, from broad ones to ones that are nearly certain; and ln 2 for disjoint ones."""
    sharpness = torch.linspace(0.1, 12, 64, dtype=torch.float64).unsqueeze(-1)
    teacher, student = (sharpness * random(2, 64, 300).double()).log_softmax(-1)
    scores = top_k(teacher, k)
    outcomes = (with_rest(one.exp().gather(-1, scores[0])).numpy() for one in (teacher, student))
    expected = torch.from_numpy(jensenshannon(*outcomes, axis=-1) ** 2)  # natural logarithm
    assert expected.max() - expected.min() > 0.5
    assert torch.allclose(top_k_jsd(student, *scores), expected, rtol=1e-9, atol=1e-12)
    single = top_k_jsd(student.float(), scores[0], scores[1].float(), scores[2].float())
    assert torch.allclose(single.double(), expected, atol=5e-7)
    assert jsd(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(math.log(2))


LOGITS = st.integers(1, 8).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-30, 30), min_size=size, max_size=size)] * 2)
)


@given(LOGITS)
def test_fewer_outcomes_never_give_more_and_lose_no_more_than_the_bound(logits: tuple[list[float], ...]) -> None:
    """Outside the k the teacher has mass a and the student b; P, Q are what they look like in there, s = a/(a + b).

    By the chain rule of KL, exact − stored = a/2 · KL(P ‖ sP + (1−s)Q) + b/2 · KL(Q ‖ sP + (1−s)Q): (a + b)/2 times the
    Jensen–Shannon divergence of P and Q with weights s and 1−s, which is at most the entropy of the weights.
    """
    teacher, student = (torch.tensor([one], dtype=torch.float64).log_softmax(-1) for one in logits)
    exact = jsd(teacher.exp(), student.exp()).item()
    values = [top_k_jsd(student, *top_k(teacher, k)).item() for k in range(1, len(logits[0]) + 1)]
    assert all(smaller <= larger + 1e-12 for smaller, larger in itertools.pairwise([0.0, *values, exact]))
    assert values[-1] == pytest.approx(exact, abs=1e-12)
    for k, value in enumerate(values[:-1], 1):
        ids, *_ = top_k(teacher, k)
        masses = [(1 - one.exp().gather(-1, ids).sum()).clamp(min=0) for one in (teacher, student)]
        both = float(sum(masses))
        entropy = sum(float(one) * math.log(both / float(one)) for one in masses if one) / 2
        bound = left_out_error(*masses).item()
        assert bound == pytest.approx(entropy, abs=1e-14)
        assert exact - value <= bound + 1e-12 <= both / 2 * math.log(2) + 2e-12
        assert left_out_error(*(one.float() for one in masses)).item() == pytest.approx(bound, abs=5e-7)


def test_the_bound_is_reached_where_teacher_and_student_leave_out_different_tokens() -> None:
    """a = ½ and b = ¾, as in the docstring: the two never agree outside the first token."""
    teacher, student = torch.tensor([[[0.5, 0.5, 0.0]], [[0.25, 0.0, 0.75]]], dtype=torch.float64).log()
    lost = jsd(teacher.exp(), student.exp()) - top_k_jsd(student, *top_k(teacher, 1))
    expected = (0.5 * math.log(2.5) + 0.75 * math.log(5 / 3)) / 2
    assert lost.item() == pytest.approx(expected, rel=1e-12)
    assert left_out_error(torch.tensor(0.5), torch.tensor(0.75)).item() == pytest.approx(expected, rel=1e-6)
    teacher, student = torch.tensor([0.0, 0.3, 1.0]), torch.tensor([0.0, 0.0, 1.0])
    assert left_out_error(teacher, student).tolist() == pytest.approx([0.0, 0.0, math.log(2)])
