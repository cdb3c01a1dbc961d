import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from masters_ray.errors import CheckpointError
from masters_ray.method.masks import MaskReport, mask_smallest, masked, zeroed_count
from masters_ray.models import hf, weights
from masters_ray.parts import part_of
from tests.conftest import PAIR

UP = "model.layers.0.mlp.up_proj.weight"


def run(tensors: dict[str, Tensor], ratio: float) -> tuple[dict[str, Tensor], MaskReport]:
    """The masked stream as a whole, and its report."""
    result: list[MaskReport] = []
    return dict(masked(tensors.items(), ratio, frozenset({"language"}), result)), result[0]


def test_the_smallest_entries_are_zeroed_by_position_where_they_tie_and_the_others_kept() -> None:
    assert mask_smallest(torch.tensor([[3.0, -1.0], [1.5, -2.0]]), 0.5).tolist() == [[3, 0], [0, -2]]
    assert mask_smallest(torch.tensor([1.0, -1.0, 1.0, 1.0, 2.0]), 0.4).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_floor_of_ratio_times_entries_is_zeroed_and_less_keeps_a_superset(dtype: torch.dtype) -> None:
    weight = torch.randn(37, 53, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[weight == 0] = 1
    before = torch.ones_like(weight, dtype=torch.bool)
    for ratio in (0.0, 0.05, 0.2, 0.3, 0.999):
        result = mask_smallest(weight, ratio)
        kept = result != 0
        assert int((~kept).sum()) == zeroed_count(weight.numel(), ratio)
        assert torch.equal(result[kept], weight[kept]) and (kept <= before).all()
        before = kept
    assert zeroed_count(100, 0.29) == 29, "the decimal that was written: int(0.29 * 100) is 28"


@pytest.mark.parametrize("percent", [5, 40])
def test_a_masked_checkpoint_is_the_model_whose_linear_layers_torch_has_pruned(percent: int) -> None:
    """In the checkpoint's bfloat16, which has ties at nearly every threshold: equal entries are made to grow a little
    from one to the next, less than up to the next bfloat16 number."""
    model = hf.load_model(PAIR / "teacher", "bfloat16")
    layers = [layer for layer in model.model.language_model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        count, weight = layer.weight.numel(), layer.weight.detach()
        assert weight.dtype == torch.bfloat16 and count <= 2**18
        order = weight.abs().double() * (1 + torch.arange(count).reshape(weight.shape) * 2.0**-27)
        prune.l1_unstructured(layer, "weight", amount=count * percent // 100, importance_scores=order)
        prune.remove(layer, "weight")
    expected = model.state_dict()
    stream, report = run(dict(weights.tensors(PAIR / "teacher")), percent / 100)
    assert stream.keys() == expected.keys() - {"lm_head.weight"}  # that one is the embeddings
    assert [name for name, tensor in stream.items() if not torch.equal(tensor, expected[name])] == []
    assert sum(report.masked.values()) == len(layers) > 0


PARTS = """
language: model.language_model.layers.0.self_attn.q_proj.weight model.layers.3.mlp.gate_proj.weight
language: language_model.model.layers.1.mlp.down_proj.weight model.language_model.layers.0.mlp.experts.gate_up_proj
language: model.layers.0.mlp.experts.7.down_proj.weight
vision: model.visual.blocks.0.attn.qkv.weight vision_model.encoder.layers.0.attn.qkv.weight
projector: model.visual.merger.linear_fc1.weight model.visual.deepstack_merger_list.0.linear_fc2.weight
projector: mlp1.1.weight model.connector.modality_projection.proj.weight
embeddings: model.language_model.embed_tokens.weight
lm_head: lm_head.weight
None: model.language_model.layers.0.mlp.experts.gate_up_proj_bias model.audio_tower.layers.0.self_attn.q_proj.weight
None: mtp.layers.0.mlp.up_proj.weight model.visual.pos_embed.weight
None: model.language_model.layers.0.input_layernorm.weight model.language_model.layers.0.self_attn.q_proj.bias
"""


def test_every_matrix_of_a_checkpoint_belongs_to_a_part() -> None:
    for line in PARTS.strip().splitlines():
        part, *names = line.split()
        assert {name: f"{part_of(name)}:" for name in names} == dict.fromkeys(names, part)


def test_a_stream_is_masked_in_scope_only_and_reports_what_was_masked_sparsity_and_digest() -> None:
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": torch.arange(1.0, 11.0).reshape(2, 5) for layer in range(3)}
    tensors |= {"lm_head.weight": torch.ones(2, 2), "model.norm.weight": torch.ones(2)}
    tensors["model.layers.0.conv.weight"] = torch.ones(2, 3, 4)  # three axes, and no experts
    stream, report = run(tensors, 0.25)
    assert [stream[name].tolist() for name in list(stream)[:3]] == [[[0, 0, 3, 4, 5], [6, 7, 8, 9, 10]]] * 3
    for name in ("lm_head.weight", "model.norm.weight", "model.layers.0.conv.weight"):
        assert torch.equal(stream[name], tensors[name])
    assert (report.sparsity, report.unmasked) == (0.2, {"lm_head.weight": 1})
    assert report.masked == {"model.layers.*.mlp.up_proj.weight": 3}
    assert report.digest == run(tensors, 0.25)[1].digest != run(tensors, 0.0)[1].digest


def test_a_mask_that_would_touch_nothing_quantised_matrices_or_numbers_that_are_none_is_refused() -> None:
    awq = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match="none of the checkpoint's weights is a matrix of language"):
        run(awq, 0.2)
    assert run(awq, 0.0)[0].keys() == awq.keys()
    for dtype in (torch.float8_e4m3fn, torch.int8, torch.uint8):
        with pytest.raises(CheckpointError, match="up_proj.weight is quantised"):
            run({UP: torch.zeros(8, 8).to(dtype)}, 0.2)
    for name, shape, number in ((UP, (2, 2), math.nan), ("model.visual.merger.norm.bias", (4,), math.inf)):
        with pytest.raises(CheckpointError, match=f"{name} holds numbers that are none"):
            run({name: torch.tensor([1.0, 1.0, 1.0, number]).reshape(shape)}, 0.0)


def test_each_expert_of_a_mixture_model_is_a_matrix_of_its_own() -> None:
    """One tensor for all experts gives what a tensor for each gives: a threshold per expert, and exact counts."""
    scales = torch.tensor([1.0, 10.0, 0.1, 1.0]).reshape(4, 1, 1)
    experts = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(3)) * scales
    name = "model.layers.0.mlp.experts"
    whole, together = run({f"{name}.down_proj": experts}, 0.25)
    single, apart = run({f"{name}.{i}.down_proj.weight": one for i, one in enumerate(experts)}, 0.25)
    assert torch.equal(whole[f"{name}.down_proj"], torch.stack(list(single.values())))
    assert (whole[f"{name}.down_proj"] == 0).sum((1, 2)).tolist() == [7] * 4
    assert together.sparsity == apart.sparsity == 28 / 120
    assert together.masked == {"model.layers.*.mlp.experts.down_proj": 4}
    assert list(apart.masked.values()) == [4]
