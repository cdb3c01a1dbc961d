import pytest
import torch
from torch import Tensor

from masters_ray.attention import Kernel, Layout, Span, attend, kernel_for
from tests.tensors import random

CPU = torch.device("cpu")


def layout(*groups: tuple[int, list[int]], padding: int = 0) -> Layout:
    spans: list[Span] = []
    start = 0
    for prompt, answers in groups:
        spans.append(Span(start=start, prompt=prompt, answers=tuple(answers)))
        start = spans[-1].end
    return Layout(spans=tuple(spans), length=start + padding)


def test_an_answer_sees_its_prompt_and_itself_and_no_group_sees_another() -> None:
    # group 1: prompt 2, answers of 2 and 1 tokens; group 2: prompt 1, answers of 0 and 1; one token of padding
    found = layout((2, [2, 1]), (1, [0, 1]), padding=1)
    assert found.dense_mask(CPU).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
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
def test_the_block_mask_of_flex_attention_is_the_same_mask() -> None:
    shape = LAYOUTS["several groups, padded"]
    query, key, value = (random(1, count, shape.length, 16, seed=count) for count in (4, 2, 2))
    dense, flex = (attend(query, key, value, shape, 0.2, kernel) for kernel in ("dense", "flex"))
    assert torch.allclose(dense[:, : -shape.padding], flex[:, : -shape.padding], atol=1e-6)


def test_the_kernel_is_chosen_by_what_the_device_can_do() -> None:
    assert kernel_for(CPU, torch.float32) == "blocks"
    assert kernel_for(CPU, torch.float16) == "dense"
