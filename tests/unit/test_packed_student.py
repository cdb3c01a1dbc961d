import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as families
from torch import Tensor
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from masters_ray.errors import CheckpointError
from masters_ray.kernels import norm
from masters_ray.kernels.packing import PackedBatch, pack
from masters_ray.method.divergence import left_out_error
from masters_ray.models import hf
from tests.builders import group, scored
from tests.tensors import top_k_jsd

IMAGE, VIDEO, START, END = 2, 3, 4, 5
TEXT = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24}
QWEN_VISION = VISION | {"depth": 2, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32}
SPECIAL = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
ROPE = {"rope_type": "default", "rope_theta": 1e4}


def qwen3() -> Any:
    rope = ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = TEXT | {"head_dim": 16, "rope_parameters": rope, "tie_word_embeddings": True}
    vision = QWEN_VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    config = families.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **SPECIAL)
    return families.Qwen3VLForConditionalGeneration(config)


def qwen2_5() -> Any:
    text = TEXT | {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}}
    vision = QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1]}
    config = families.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **SPECIAL)
    return families.Qwen2_5_VLForConditionalGeneration(config)


def internvl() -> Any:
    text = TEXT | {"model_type": "qwen2", "rope_parameters": ROPE}
    vision = VISION | {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": [4, 4], "image_size": [16, 16]}
    pictures: dict[str, Any] = {"image_token_id": IMAGE, "image_seq_length": 4, "downsample_ratio": 0.5}
    config = families.InternVLConfig(text_config=text, vision_config=vision, **pictures)
    return families.InternVLForConditionalGeneration(config)


def qwen_prompt(model: Any, pictures: Sequence[tuple[int, int]], text: list[int]) -> dict[str, Tensor]:
    """pictures: merged patches (height, width) of each."""
    patch = model.config.vision_config
    values = 3 * patch.temporal_patch_size * patch.patch_size**2
    ids = [token for height, width in pictures for token in (START, *[IMAGE] * (height * width), END)]
    input_ids = torch.tensor([[*ids, *text]])
    return {
        "input_ids": input_ids,
        "pixel_values": torch.randn(4 * sum(height * width for height, width in pictures), values),
        "image_grid_thw": torch.tensor([[1, 2 * height, 2 * width] for height, width in pictures]),
        "mm_token_type_ids": (input_ids == IMAGE).int(),
    }


def internvl_prompt(model: Any, pictures: Sequence[tuple[int, int]], text: list[int]) -> dict[str, Tensor]:
    ids = [token for _ in pictures for token in (START, *[IMAGE] * 4, END)]
    return {"input_ids": torch.tensor([[*ids, *text]]), "pixel_values": torch.randn(len(pictures), 3, 16, 16)}


FAMILIES = {qwen3: qwen_prompt, qwen2_5: qwen_prompt, internvl: internvl_prompt}
GROUPS = [
    group([scored([10, 11, 12, 1], seed=1), scored([13, 1], seed=2), scored([14], seed=3)]),
    group([scored([20, 21, 1], seed=4), scored([22, 23, 24, 25, 26, 27, 28, 1], seed=5)], position=1),
]
PICTURES = [[(2, 3), (3, 2)], [(2, 2)]]
TEXTS = [[30, 31, 32], [33]]


def separately(model: Any, inputs: dict[str, Tensor], answer: Any) -> hf.Terms:
    """The loss terms of one answer, from a sequence that holds the prompt and it alone."""
    tokens = torch.tensor([answer.judged.answer.token_ids])
    per_token = {"input_ids": tokens, "mm_token_type_ids": torch.zeros_like(tokens)}
    longer = {name: torch.cat([inputs[name], more], 1) for name, more in per_token.items() if name in inputs}
    start = inputs["input_ids"].shape[1] - 1
    logprobs = model(**(inputs | longer)).logits[0, start : start + tokens.shape[1]].log_softmax(-1)
    ids, top_logprobs, left_out = map(torch.from_numpy, vars(answer.teacher).values())
    ids = ids.long()
    outside = 1 - logprobs.detach().gather(-1, ids).exp().sum(-1)
    divergences = top_k_jsd(logprobs, ids, top_logprobs, left_out)
    return logprobs.gather(-1, tokens.T).squeeze(-1), divergences, left_out_error(left_out, outside)


def loss(logprobs: Tensor, divergences: Tensor, _: Tensor) -> Tensor:
    """Something in which every token counts differently."""
    weights = torch.linspace(-1, 1, len(logprobs))
    return (weights * logprobs).sum() + (weights.flip(0) * divergences).sum()


@pytest.fixture(params=FAMILIES, scope="module", ids=lambda one: one.__name__)
def case(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Tensor]], PackedBatch]:
    """A model, two prompts with pictures as it reads them, and both groups packed."""
    torch.manual_seed(0)
    model = request.param().float().eval()
    inputs = [FAMILIES[request.param](model, *prompt) for prompt in zip(PICTURES, TEXTS, strict=True)]
    chats: list[Any] = [SimpleNamespace(inputs=lambda *_, one=one: one) for one in inputs]
    prompts = [hf.prompt_tensors(model, chat, [], []) for chat in chats]
    return model, inputs, pack(GROUPS, prompts, pad_id=0, multiple_of=8)


@pytest.mark.parametrize(("logits_bytes", "checkpointed"), [(2**20, False), (1, True)])
def test_packed_groups_equal_separate_sequences(logits_bytes: int, checkpointed: bool, case: Any) -> None:
    model, inputs, batch = case
    plain, changed = copy.deepcopy(model), copy.deepcopy(model)
    answers = [(given, one) for given, row in zip(inputs, GROUPS, strict=True) for one in row.answers]
    expected = [torch.cat(one) for one in zip(*(separately(plain, *answer) for answer in answers), strict=True)]
    loss(*expected).backward()
    student = hf.PackedStudent(changed, logits_bytes)
    if checkpointed:
        hf.checkpoint_activations(changed)
    found = student(batch)
    loss(*found).backward()
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=3e-6)
    wanted, got = (
        {name: parameter.grad for name, parameter in one.named_parameters() if parameter.grad is not None}
        for one in (plain, changed)
    )
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(got[name], gradient, atol=2e-5 * max(1.0, float(gradient.abs().max()))), name


def test_all_norms_are_made_faster_and_those_of_another_kind_left_alone(case: Any) -> None:
    model = copy.deepcopy(case[0])
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert norm.speed_up(model) == len(norms) >= 5
    assert norm.speed_up(torch.nn.Sequential(GemmaRMSNorm(8))) == 0  # which multiplies by 1 + weight


def test_a_head_with_a_bias_is_refused() -> None:
    biased = qwen2_5()
    biased.lm_head = torch.nn.Linear(32, 80)
    with pytest.raises(CheckpointError, match="the student's lm_head has a bias"):
        hf.PackedStudent(biased, logits_bytes=2**20)


def test_frozen_parts_are_not_trained_and_half_of_a_matrix_cannot_be_frozen() -> None:
    model = qwen3()
    with pytest.raises(CheckpointError, match="one matrix"):
        hf.freeze(model, ["lm_head"])
    hf.freeze(model, ["vision", "embeddings", "lm_head"])
    trained = {hf.known(model).part_of(name) for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"language", "projector"}
