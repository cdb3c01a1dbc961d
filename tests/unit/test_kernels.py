import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from masters_ray.kernels.attention import Kernel, Layout, Span, attend, kernel_for
from masters_ray.kernels.head import LiveScores, answer_terms, live_terms
from masters_ray.method.divergence import jsd, left_out_error, with_rest
from tests.tensors import random


def layout(*groups: tuple[int, list[int]], padding: int = 0) -> Layout:
    spans: list[Span] = []
    for prompt, answers in groups:
        spans.append(Span(start=spans[-1].end if spans else 0, prompt=prompt, answers=tuple(answers)))
    return Layout(spans=tuple(spans), length=spans[-1].end + padding)


def test_an_answer_sees_its_prompt_and_itself_and_no_group_sees_another() -> None:
    # group 1: prompt 2, answers of 2 and 1 tokens; group 2: prompt 1, answers of 0 and 1; one token of padding
    found = layout((2, [2, 1]), (1, [0, 1]), padding=1)
    rows = "10000000 11000000 11100000 11110000 11001000 00000100 00000110 00000001"
    assert ["".join(map(str, row)) for row in found.mask("dense", torch.device("cpu")).int().tolist()] == rows.split()
    assert found.pairs == 16, "the ones above without padding's"


LAYOUTS = {
    "one group": layout((20, [5, 5, 5])),
    "one answer": layout((7, [9])),
    "answers that read nothing": layout((6, [0, 3, 0]), (4, [0])),
    "several groups, padded": layout((20, [5, 0, 3]), (7, [1, 9, 9, 2]), padding=4),
    "one long answer among short ones": layout((3, [40, 2, 2, 2])),
}


def run(kernel: Kernel, shape: Layout, heads: int, key_heads: int) -> list[Tensor]:
    """The output and the gradients of query, key and value, without padding."""
    real = shape.spans[-1].end
    query, key, value = (
        random(1, shape.length, count, 8, seed=count + place).transpose(1, 2).requires_grad_()
        for place, count in enumerate((heads, key_heads, key_heads))
    )
    out = attend(query, key, value, shape, scale=0.3, kernel=kernel)
    given = random(*out.shape, seed=9)
    given[:, real:] = 0
    return [out[:, :real].detach(), *(one[:, :, :real] for one in torch.autograd.grad(out, [query, key, value], given))]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_block_kernel_equals_the_dense_mask_in_value_and_gradient(name: str, heads: tuple[int, int]) -> None:
    dense, blocks = (run(kernel, LAYOUTS[name], *heads) for kernel in ("dense", "blocks"))
    for one, other in zip(dense, blocks, strict=True):
        assert torch.allclose(one, other, atol=2e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_the_block_mask_of_flex_attention_is_the_same_mask_and_a_cpu_has_a_kernel_by_its_dtype() -> None:
    shape = LAYOUTS["several groups, padded"]
    query, key, value = (random(1, count, shape.length, 16, seed=count) for count in (4, 2, 2))
    dense, flex = (attend(query, key, value, shape, 0.2, kernel) for kernel in ("dense", "flex"))
    real = shape.spans[-1].end
    assert torch.allclose(dense[:, :real], flex[:, :real], atol=1e-6)
    kernels = [kernel_for(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float16)]
    assert kernels == ["blocks", "dense"]


TOKENS, WIDTH, VOCABULARY, PADDED = 12, 8, 5000, 64
Terms = tuple[Tensor, Tensor, Tensor]


def heads(student: int = VOCABULARY, teacher: int = VOCABULARY, k: int = 8) -> tuple[list[Tensor], Tensor]:
    """Inputs of two heads of one language, padded to so many rows each (more rows, whose logits are 0): hidden, weight,
    targets and stored scores of the k likeliest tokens; and the teacher's whole distribution."""
    logits = random(TOKENS, VOCABULARY, seed=8).mul(3).double()
    whole = torch.cat([logits, torch.full((TOKENS, PADDED), 7.0)], -1)[:, :teacher].softmax(-1)
    top, ids = whole.topk(k)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(k))
    targets[0], targets[1] = ids[0, 0], VOCABULARY - 1  # one among the top k, one at the edge
    weight = torch.cat([random(VOCABULARY, WIDTH, seed=1), torch.zeros(PADDED, WIDTH)])[:student]
    scores = [ids, top.log().float(), (1 - top.sum(-1)).clamp(min=0).float()]
    return [random(TOKENS, WIDTH), weight, targets % min(student, teacher), *scores], whole


def plainly(hidden: Tensor, weight: Tensor, targets: Tensor, ids: Tensor, top: Tensor, _: Tensor) -> Terms:
    """All logits in float64, and autograd; the head itself works in float32, too coarse for finite differences."""
    lacking = ids >= len(weight)
    logprobs = linear(hidden.double(), weight.double()).log_softmax(-1)
    chosen = top.double(), logprobs.gather(-1, ids.masked_fill(lacking, 0))
    p, q = (one.exp().masked_fill(lacking, 0) for one in chosen)
    outside = ((1 - one.detach().sum(-1)).clamp(min=0) for one in (p, q))
    own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return own.float(), jsd(with_rest(p), with_rest(q)).float(), left_out_error(*outside).float()


def gradients(terms: Terms, of: list[Tensor]) -> list[Tensor]:
    logprobs, divergences, errors = terms
    assert not errors.requires_grad
    weights = torch.linspace(-1, 2, TOKENS)
    total = (weights * logprobs).sum() + (weights.flip(0) * divergences).sum()
    return list(torch.autograd.grad(total, of, retain_graph=True))


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))


def test_a_frozen_head_passes_the_gradient_on_and_bfloat16_sums_over_tiles_in_float32() -> None:
    (hidden, weight, *rest), _ = heads()
    frozen = answer_terms(hidden.requires_grad_(), weight, *rest, logits_bytes=1)
    assert_close(gradients(frozen, [hidden]), gradients(plainly(hidden, weight, *rest), [hidden]))
    low = [one.detach().bfloat16().requires_grad_() for one in (hidden, weight)]
    exact = [one.detach().float().requires_grad_() for one in low]
    found = gradients(answer_terms(low[0], low[1], *rest, logits_bytes=1), low)
    for one, other in zip(found, gradients(plainly(exact[0], exact[1], *rest), exact), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.float() - other).norm() / other.norm()) < 1e-2


def test_a_certain_student_has_finite_gradients() -> None:
    hidden = torch.ones(1, 1, requires_grad=True)
    head = torch.tensor([[200.0], [0.0], [-200.0]])
    certain = torch.tensor([0]), torch.tensor([[0]]), torch.zeros(1, 1), torch.zeros(1)
    terms = answer_terms(hidden, head, *certain, logits_bytes=2**20)
    assert [one.item() for one in terms] == [0.0, 0.0, 0.0]
    (terms[0] + terms[1]).sum().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("logits_bytes", [2**30, 4 * 5 * 2048, 1], ids=["whole", "tiles", "single-tokens"])
@pytest.mark.parametrize("k", [1, 50, None], ids=["k = 1", "k = 50", "k = vocabulary"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [(VOCABULARY, VOCABULARY), (VOCABULARY, VOCABULARY + PADDED), (VOCABULARY + PADDED, VOCABULARY), (40, VOCABULARY)],
)
def test_head_and_losses_equal_the_plain_computation_and_padded_heads_are_compared_on_what_both_have(
    student: int, teacher: int, k: int | None, logits_bytes: int
) -> None:
    (hidden, weight, targets, *scores), whole = heads(student, teacher, k or teacher)
    assert k == 1 or (scores[0] >= student).any() == (student < teacher), "the case that is meant"
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    expected = plainly(hidden, weight, targets, *scores)
    terms = [answer_terms(hidden, weight, targets, *scores, logits_bytes=logits_bytes)]
    if k is None:
        live = LiveScores(hidden=whole.log().float(), weight=torch.eye(teacher))
        terms.append(live_terms(hidden, weight, targets, live, logits_bytes=logits_bytes))
    for found in terms:
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert_close(gradients(found, leaves), gradients(expected, leaves))


@pytest.mark.parametrize("logits_bytes", [2**30, 1])
def test_a_token_that_the_head_has_no_row_for_has_no_log_probability(logits_bytes: int) -> None:
    (hidden, weight, targets, *scores), _ = heads()
    targets[3] = VOCABULARY
    own, _, _ = answer_terms(hidden, weight, targets, *scores, logits_bytes=logits_bytes)
    assert own.isnan().nonzero().tolist() == [[3]]
