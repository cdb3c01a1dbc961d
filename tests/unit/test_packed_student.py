"""A packed batch gives what each answer alone gives, in value and in gradient, for every model family."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import transformers as families
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from masters_ray import store
from masters_ray.config import Aggregation, Learner
from masters_ray.errors import CheckpointError
from masters_ray.kernels import norm
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack
from masters_ray.learner.batches import steps
from masters_ray.learner.collate import worker_steps
from masters_ray.learner.job import StagePlan
from masters_ray.method.divergence import left_out_error, top_k_jsd
from masters_ray.method.grpo import LossConfig, group_losses
from masters_ray.models import hf
from masters_ray.parts import part_of_parameter
from tests.builders import group, iterations, problem, scored
from tests.tensors import FakeCollator

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


def prompts_of(model: Any, inputs: list[dict[str, Tensor]]) -> list[PromptTensors]:
    chats: list[Any] = [SimpleNamespace(inputs=lambda *_, one=one: one) for one in inputs]
    return [hf.prompt_tensors(model, chat, [], []) for chat in chats]


def loss(logprobs: Tensor, divergences: Tensor, _: Tensor) -> Tensor:
    """Something in which every token counts differently."""
    weights = torch.linspace(-1, 1, len(logprobs))
    return (weights * logprobs).sum() + (weights.flip(0) * divergences).sum()


def made(make: Any) -> tuple[Any, list[dict[str, Tensor]]]:
    """A model of a family, and two prompts with pictures as it reads them."""
    torch.manual_seed(0)
    model = make().float().eval()
    return model, [FAMILIES[make](model, *prompt) for prompt in zip(PICTURES, TEXTS, strict=True)]


@pytest.fixture(params=FAMILIES, scope="module", ids=lambda one: one.__name__)
def case(request: pytest.FixtureRequest) -> tuple[Any, list[dict[str, Tensor]], PackedBatch]:
    """A model, the prompts as it reads them, and both groups packed."""
    model, inputs = made(request.param)
    return model, inputs, pack(GROUPS, prompts_of(model, inputs), pad_id=0, multiple_of=8)


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


Student = tuple[hf.PackedStudent, list[PromptTensors]]


@pytest.fixture(scope="module")
def student() -> Student:
    model, inputs = made(qwen3)
    return hf.PackedStudent(model, logits_bytes=2**20), prompts_of(model, inputs)


SIZES = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=4), min_size=1, max_size=5)
"""Lengths of the answers of each group of a step; the groups' prompts take turns."""
WAYS = st.sampled_from(get_args(Aggregation))


@settings(max_examples=25)
@given(SIZES, st.integers(1, 3), st.integers(1, 120), st.sampled_from([1, 7, 128]), WAYS)
def test_a_steps_loss_does_not_depend_on_workers_micro_batches_and_padding(
    student: Student, sizes: list[list[int]], workers: int, budget: int, multiple_of: int, aggregation: Aggregation
) -> None:
    model, prompts = student
    config = LossConfig(learner=Learner(aggregation=aggregation))
    rows = []
    for position, lengths in enumerate(sizes):
        answers = [
            scored([10 + 9 * place + token for token in range(length)], accuracy=place % 2, seed=length + place)
            for place, length in enumerate(lengths)
        ]
        row = group(answers, position=position, of=problem())
        rows.append(replace(row, prompt_tokens=len(prompts[position % 2].input_ids)))
    table = store.table_of(rows)

    @torch.no_grad()
    def losses(batch: PackedBatch, tokens_per_group: float) -> list[list[float]]:
        """Of each group its loss, and the advantages, which cancel in its value where answers weigh the same."""
        found = group_losses(config, batch, model(batch), tokens_per_group)
        advantages = found.old.advantages.split(torch.bincount(batch.group_of).tolist())
        return [[loss, *one.tolist()] for loss, one in zip(found.loss.tolist(), advantages, strict=True)]

    tokens = sum(map(sum, sizes)) / len(rows)
    alone = {
        index: losses(pack([row], [prompts[index % 2]], pad_id=0), tokens)[0]
        for index, row in enumerate(store.groups(table))
    }
    plan = StagePlan(stage=0, ratio=0.2, rows=len(rows))
    [step] = steps(iter([table]), [(plan, iterations((len(rows),), len(rows))[0])], workers, budget, skip=0)
    assert step.answer_tokens == sum(map(sum, sizes))
    found: list[int] = []
    for rank in range(workers):
        [part] = worker_steps([step], rank, FakeCollator(prompts=prompts, multiple_of=multiple_of))
        for micro in part.micro_batches:
            assert micro.batch.layout.length % multiple_of == 0
            found += micro.indices
            for index, terms in zip(micro.indices, losses(micro.batch, tokens), strict=False):
                assert terms == pytest.approx(alone[index], rel=1e-3, abs=1e-4)
    assert sorted(found) == sorted(alone), "each row once"


def test_all_norms_are_made_faster_and_those_of_another_kind_left_alone(case: Any) -> None:
    model = copy.deepcopy(case[0])
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert norm.speed_up(model) == len(norms) >= 5
    assert norm.speed_up(torch.nn.Sequential(GemmaRMSNorm(8))) == 0  # which multiplies by 1 + weight


def test_frozen_parts_are_not_trained_and_half_of_a_matrix_cannot_be_frozen() -> None:
    model = qwen3()
    with pytest.raises(CheckpointError, match="one matrix"):
        hf.freeze(model, ["lm_head"])
    hf.freeze(model, ["vision", "embeddings", "lm_head"])
    trained = {part_of_parameter(name) for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"language", "projector", None}
