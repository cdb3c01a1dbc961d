from typing import Any

import pytest
import torch

from masters_ray.masks import MaskReport, mask_smallest, masked, part_of, zeroed_count


def test_the_smallest_entries_are_zeroed_and_the_others_kept() -> None:
    weight = torch.tensor([[3.0, -1.0], [1.5, -2.0]])
    assert mask_smallest(weight, 0.5).tolist() == [[3.0, 0.0], [0.0, -2.0]]


def test_ties_at_the_threshold_go_by_position_so_that_the_count_is_exact() -> None:
    weight = torch.tensor([1.0, -1.0, 1.0, 1.0, 2.0])
    assert mask_smallest(weight, 0.4).tolist() == [0.0, 0.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exactly_the_floor_of_ratio_times_entries_is_zeroed(ratio: float, dtype: torch.dtype) -> None:
    weight = torch.randn(37, 53, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[weight == 0] = 1
    result = mask_smallest(weight, ratio)
    assert int((result == 0).sum()) == zeroed_count(weight.numel(), ratio)
    assert torch.equal(result[result != 0], weight[result != 0])


def test_counts_read_the_ratio_as_the_decimal_that_was_written() -> None:
    assert zeroed_count(100, 0.29) == 29  # int(0.29 * 100) is 28


def test_a_smaller_ratio_keeps_a_superset() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    kept = [mask_smallest(weight, ratio) != 0 for ratio in (0.2, 0.1, 0.05)]
    assert (kept[0] <= kept[1]).all()
    assert (kept[1] <= kept[2]).all()


def test_the_same_entries_as_torch_prune_on_distinct_magnitudes() -> None:
    from torch.nn.utils import prune

    layer = torch.nn.Linear(40, 30)
    expected = mask_smallest(layer.weight.detach(), 0.25)
    prune.l1_unstructured(layer, "weight", amount=zeroed_count(1200, 0.25))
    assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.language_model.layers.0.self_attn.q_proj.weight", "language"),
        ("model.layers.3.mlp.gate_proj.weight", "language"),
        ("language_model.model.layers.1.mlp.down_proj.weight", "language"),
        ("model.visual.blocks.0.attn.qkv.weight", "vision"),
        ("vision_model.encoder.layers.0.attn.qkv.weight", "vision"),
        ("model.visual.merger.linear_fc1.weight", "projector"),
        ("model.visual.deepstack_merger_list.0.linear_fc2.weight", "projector"),
        ("mlp1.1.weight", "projector"),
        ("model.language_model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "lm_head"),
        ("model.language_model.layers.0.mlp.experts.gate_up_proj", "language"),
        ("model.layers.0.mlp.experts.7.down_proj.weight", "language"),
        ("model.language_model.layers.0.mlp.experts.gate_up_proj_bias", None),
        ("model.visual.pos_embed.weight", None),
        ("model.language_model.layers.0.input_layernorm.weight", None),
        ("model.language_model.layers.0.self_attn.q_proj.bias", None),
    ],
)
def test_every_matrix_of_a_checkpoint_belongs_to_a_part(name: str, part: str | None) -> None:
    assert part_of(name) == part


def test_a_stream_is_masked_in_scope_only_and_reports_sparsity_and_digest() -> None:
    tensors = {
        "model.language_model.layers.0.mlp.up_proj.weight": torch.arange(1.0, 11.0).reshape(2, 5),
        "model.language_model.embed_tokens.weight": torch.ones(2, 2),
    }

    def run(ratio: float) -> tuple[dict[str, torch.Tensor], MaskReport]:
        result: list[MaskReport] = []
        stream = dict(masked(tensors.items(), ratio, frozenset({"language"}), result))
        return stream, result[0]

    stream, report = run(0.25)
    assert stream["model.language_model.layers.0.mlp.up_proj.weight"].tolist() == [[0, 0, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert stream["model.language_model.embed_tokens.weight"].tolist() == [[1, 1], [1, 1]]
    assert (report.sparsity, report.matrices) == (0.2, 1)
    assert report.digest == run(0.25)[1].digest
    assert report.digest != run(0.0)[1].digest


def test_each_expert_of_a_mixture_model_is_a_matrix_of_its_own() -> None:
    """One tensor for all experts gives what a tensor for each gives: a threshold per expert, and exact counts."""
    generator = torch.Generator().manual_seed(3)
    experts = torch.randn(4, 6, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0]).reshape(4, 1, 1)
    scope, together, apart = frozenset[Any]({"language"}), list[MaskReport](), list[MaskReport]()
    name = "model.layers.0.mlp.experts"
    whole = dict(masked({f"{name}.down_proj": experts}.items(), 0.25, scope, together))
    single = dict(
        masked({f"{name}.{i}.down_proj.weight": one for i, one in enumerate(experts)}.items(), 0.25, scope, apart)
    )
    assert torch.equal(whole[f"{name}.down_proj"], torch.stack(list(single.values())))
    assert (whole[f"{name}.down_proj"] == 0).sum((1, 2)).tolist() == [7] * 4
    assert (together[0].sparsity, together[0].matrices) == (apart[0].sparsity, apart[0].matrices) == (28 / 120, 4)


def test_a_tensor_with_three_axes_that_holds_no_experts_is_left_alone() -> None:
    tensor = torch.ones(2, 3, 4)
    [(_, found)] = masked([("model.layers.0.conv.weight", tensor)], 0.5, frozenset({"language"}), [])
    assert torch.equal(found, tensor)
