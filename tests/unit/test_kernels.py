"""Attention within packed groups, and the head with its losses, equal the plain computation."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from masters_ray.kernels.attention import Kernel, Layout, Span, attend, kernel_for
from masters_ray.kernels.head import answer_terms
from masters_ray.kernels.live import LiveScores, live_terms
from masters_ray.method.divergence import jsd, left_out_error, with_rest
from tests.tensors import random, top_k, top_k_jsd

CPU = torch.device("cpu")


def layout(*groups: tuple[int, list[int]], padding: int = 0) -> Layout:
    spans: list[Span] = []
    for prompt, answers in groups:
        spans.append(Span(start=spans[-1].end if spans else 0, prompt=prompt, answers=tuple(answers)))
    return Layout(spans=tuple(spans), length=spans[-1].end + padding)


def test_an_answer_sees_its_prompt_and_itself_and_no_group_sees_another() -> None:
    # group 1: prompt 2, answers of 2 and 1 tokens; group 2: prompt 1, answers of 0 and 1; one token of padding
    found = layout((2, [2, 1]), (1, [0, 1]), padding=1)
    rows = "10000000 11000000 11100000 11110000 11001000 00000100 00000110 00000001"
    assert ["".join(map(str, row)) for row in found.mask("dense", CPU).int().tolist()] == rows.split()
    assert found.pairs == 16, "the ones above without padding's"


LAYOUTS = {
    "one group": layout((20, [5, 5, 5])),
    "one answer": layout((7, [9])),
    "answers that read nothing": layout((6, [0, 3, 0]), (4, [0])),
    "several groups, padded": layout((20, [5, 0, 3]), (7, [1, 9, 9, 2]), padding=4),
    "one long answer among short ones": layout((3, [40, 2, 2, 2])),
}


def run(kernel: Kernel, shape: Layout, heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output and the gradients of query, key and value, without padding."""
    real = shape.length - shape.padding
    query, key, value = (
        random(1, shape.length, count, 8, seed=count + place).to(dtype).transpose(1, 2).requires_grad_()
        for place, count in enumerate((heads, key_heads, key_heads))
    )
    out = attend(query, key, value, shape, scale=0.3, kernel=kernel)
    given = random(*out.shape, seed=9).to(dtype)
    given[:, real:] = 0
    return [out[:, :real].detach(), *(one[:, :, :real] for one in torch.autograd.grad(out, [query, key, value], given))]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_block_kernel_equals_the_dense_mask_in_value_and_gradient(name: str, heads: tuple[int, int]) -> None:
    dense, blocks = (run(kernel, LAYOUTS[name], *heads) for kernel in ("dense", "blocks"))
    for one, other in zip(dense, blocks, strict=True):
        assert torch.allclose(one, other, atol=2e-6)


def test_in_bfloat16_it_is_as_close_to_float32_as_the_dense_mask_is() -> None:
    shape = LAYOUTS["several groups, padded"]
    exact = run("dense", shape, 4, 2)
    dense, blocks = (run(kernel, shape, 4, 2, torch.bfloat16) for kernel in ("dense", "blocks"))
    for right, one, other in zip(exact, dense, blocks, strict=True):
        assert other.dtype == torch.bfloat16
        assert (other.float() - right).norm() < 1.5 * (one.float() - right).norm() + 1e-3 * right.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_the_block_mask_of_flex_attention_is_the_same_mask_and_a_cpu_has_a_kernel_by_its_dtype() -> None:
    shape = LAYOUTS["several groups, padded"]
    query, key, value = (random(1, count, shape.length, 16, seed=count) for count in (4, 2, 2))
    dense, flex = (attend(query, key, value, shape, 0.2, kernel) for kernel in ("dense", "flex"))
    assert torch.allclose(dense[:, : -shape.padding], flex[:, : -shape.padding], atol=1e-6)
    assert kernel_for(CPU, torch.float32) == "blocks"
    assert kernel_for(CPU, torch.float16) == "dense"


TOKENS, WIDTH, VOCABULARY = 12, 8, 5000


def inputs(k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    top_ids, top_logprobs, left_out = top_k(random(TOKENS, VOCABULARY, seed=k).mul(3).log_softmax(-1), k)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(k))
    targets[0], targets[1] = top_ids[0, 0], VOCABULARY - 1  # one among the top k, one at the edge
    hidden, weight, bias = random(TOKENS, WIDTH), random(VOCABULARY, WIDTH, seed=1), random(VOCABULARY, seed=2)
    return hidden, weight, bias, targets, top_ids, top_logprobs, left_out


Terms = tuple[Tensor, Tensor, Tensor]


def plainly(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Tensor) -> Terms:
    """All logits in float64, and autograd; the head itself works in float32, too coarse for finite differences."""
    targets, top_ids, *scores = (one.double() if one.is_floating_point() else one for one in rest)
    logprobs = linear(hidden.double(), weight.double(), None if bias is None else bias.double()).log_softmax(-1)
    outside = 1 - logprobs.detach().gather(-1, top_ids).exp().sum(-1)
    errors = left_out_error(scores[1], outside.clamp(min=0))
    own = logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return own.float(), top_k_jsd(logprobs, top_ids, *scores).float(), errors.float()


def gradients(terms: Terms, of: list[Tensor]) -> list[Tensor]:
    logprobs, divergences, errors = terms
    assert not errors.requires_grad
    weights = torch.linspace(-1, 2, TOKENS)
    return list(torch.autograd.grad((weights * logprobs).sum() + (weights.flip(0) * divergences).sum(), of))


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))


SIZES = pytest.mark.parametrize("logits_bytes", [2**30, 4 * 5 * 2048, 1], ids=["whole", "tiles", "single-tokens"])


@pytest.mark.parametrize(("k", "with_bias"), [(1, True), (50, False), (VOCABULARY, True)])
@SIZES
def test_it_equals_the_plain_computation_in_value_and_gradient(k: int, logits_bytes: int, with_bias: bool) -> None:
    hidden, weight, bias, *rest = inputs(k)
    leaves = [one.requires_grad_() for one in ((hidden, weight, bias) if with_bias else (hidden, weight))]
    head = hidden, weight, bias if with_bias else None
    expected, found = plainly(*head, *rest), answer_terms(*head, *rest, logits_bytes=logits_bytes)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=2e-6)
    assert_close(gradients(found, leaves), gradients(expected, leaves))


def test_a_frozen_head_passes_the_gradient_on_and_bfloat16_sums_over_tiles_in_float32() -> None:
    hidden, weight, _, *rest = inputs(4)
    frozen = answer_terms(hidden.requires_grad_(), weight, None, *rest, logits_bytes=1)
    assert_close(gradients(frozen, [hidden]), gradients(plainly(hidden, weight, None, *rest), [hidden]))
    hidden, weight, _, *rest = inputs(8)
    low = [hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()]
    exact = [one.detach().float().requires_grad_() for one in low]
    found = gradients(answer_terms(low[0], low[1], None, *rest, logits_bytes=1), low)
    expected = gradients(plainly(exact[0], exact[1], None, *rest), exact)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.float() - other).norm() / other.norm()) < 1e-2


def test_a_certain_student_has_finite_gradients() -> None:
    hidden = torch.ones(1, 1, requires_grad=True)
    head = torch.tensor([[200.0], [0.0], [-200.0]]), None
    certain = torch.tensor([0]), torch.tensor([[0]]), torch.zeros(1, 1), torch.zeros(1)
    terms = answer_terms(hidden, *head, *certain, logits_bytes=2**20)
    assert [one.item() for one in terms] == [0.0, 0.0, 0.0]
    (terms[0] + terms[1]).sum().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


PADDED = 64


def padded(student: int, teacher: int, k: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Inputs of two heads of one language, padded to so many rows each (more rows, whose logits are 0): hidden, weight,
    targets and stored scores of the k likeliest tokens; and the teacher's whole distribution in float64, and those
    among its k that the student has no row for."""
    hidden, weight, _, targets, *_ = inputs(7)
    logits = random(TOKENS, VOCABULARY, seed=8).mul(3).double()
    weight = torch.cat([weight, torch.zeros(PADDED, WIDTH)])[:student]
    whole = torch.cat([logits, torch.full((TOKENS, PADDED), 7.0)], -1)[:, :teacher].softmax(-1)
    top, ids = whole.topk(k)
    rest = (1 - top.sum(-1)).clamp(min=0)
    return [hidden, weight, targets, ids, top.log().float(), rest.float()], whole, ids >= student


@SIZES
@pytest.mark.parametrize("every", [False, True], ids=["top 50", "k = vocabulary"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (VOCABULARY, VOCABULARY),
        (VOCABULARY, VOCABULARY + PADDED),
        (VOCABULARY + PADDED, VOCABULARY),
        (40, VOCABULARY),
    ],
)
def test_heads_that_are_padded_to_other_widths_are_compared_on_what_both_have(
    student: int, teacher: int, every: bool, logits_bytes: int
) -> None:
    (hidden, weight, targets, *scores), whole, lacking = padded(student, teacher, teacher if every else 50)
    assert lacking.any() == (student < teacher), "the case that is meant"
    targets = targets % min(student, teacher)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    own, found, errors = answer_terms(hidden, weight, None, targets, *scores, logits_bytes=logits_bytes)

    logprobs = (hidden.double() @ weight.double().T).log_softmax(-1)
    ids = scores[0].masked_fill(lacking, 0)
    p, q = (one.gather(-1, ids).masked_fill(lacking, 0) for one in (whole, logprobs.exp()))
    expected = jsd(with_rest(p), with_rest(q))
    assert torch.allclose(found.double(), expected, atol=2e-6)
    outside = ((1 - one.detach().sum(-1)).clamp(min=0) for one in (p, q))
    assert torch.allclose(errors.double(), left_out_error(*outside), atol=1e-5)
    plain = (logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1).float(), expected.float(), errors)
    terms = [(own, found, errors)]
    if every:
        teacher_logits = whole.log().float()
        live = LiveScores(hidden=teacher_logits, weight=torch.eye(teacher), bias=None)
        terms.append(live_terms(hidden, weight, None, targets, live, logits_bytes=logits_bytes))
        for one, other in zip(*terms, strict=True):
            assert torch.allclose(one, other, atol=1e-5), "a live teacher and its stored scores agree"
    expected_gradients = gradients(plain, leaves)
    for own_terms in terms:
        assert_close(gradients(own_terms, leaves), expected_gradients)


def test_a_token_that_the_head_has_no_row_for_has_no_log_probability() -> None:
    (hidden, weight, targets, *scores), _, _ = padded(VOCABULARY, VOCABULARY, 50)
    targets[3] = VOCABULARY
    for logits_bytes in (2**30, 1):
        own, _, _ = answer_terms(hidden, weight, None, targets, *scores, logits_bytes=logits_bytes)
        assert own.isnan().nonzero().tolist() == [[3]]
