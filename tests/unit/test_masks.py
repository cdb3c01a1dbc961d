import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from masters_ray.errors import CheckpointError
from masters_ray.families import Architecture, Cut
from masters_ray.method import masks
from masters_ray.method.masks import Masker, MaskReport, mask_smallest, thresholds, zeroed_count
from masters_ray.models import hf, weights
from tests.conftest import PAIR

QWEN3 = Architecture({"model_type": "qwen3_vl"})
UP = "model.layers.0.mlp.up_proj.weight"


def run(
    tensors: dict[str, Tensor], ratio: float, architecture: Architecture = QWEN3
) -> tuple[dict[str, Tensor], MaskReport]:
    """The masked stream as a whole, and its report."""
    result: list[MaskReport] = []
    masker = Masker(architecture, frozenset({"language"}), [ratio])
    return dict(masker.stream(tensors.items(), ratio, result)), result[0]


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


def sorted_out(weight: Tensor, count: int) -> Tensor:
    """A mask by a stable sort of the magnitudes: what counting must give."""
    flat = weight.reshape(-1).clone()
    flat[flat.abs().double().sort(stable=True).indices[:count]] = 0
    return flat.reshape(weight.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["spread", "few values", "tiny and huge", "all equal"])
def test_counting_finds_what_sorting_finds(dtype: torch.dtype, kind: str) -> None:
    weight = torch.randn(31, 17, generator=torch.Generator().manual_seed(4)).to(dtype)
    if kind == "few values":
        weight = weight.round()  # with many ties, and zeros of both signs
    elif kind == "tiny and huge":
        weight = (
            weight
            * torch.tensor([torch.finfo(dtype).tiny / 4, 1.0, torch.finfo(dtype).max / 8]).to(dtype)[
                torch.arange(31 * 17).reshape(31, 17) % 3
            ]
        )
    elif kind == "all equal":
        weight = torch.full_like(weight, -0.5)
    counts = [0, 1, 100, 263, 264, 526, 527]
    for count, one in zip(counts, thresholds(weight, counts), strict=True):
        found = weight.clone()
        masks._zero(found, one)
        assert torch.equal(found, sorted_out(weight, count)), count


def test_thresholds_of_all_ratios_are_found_in_the_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def counting(weight: Tensor, counts: Sequence[int]) -> list[masks.Threshold]:
        searched.append(1)
        return thresholds(weight, counts)

    monkeypatch.setattr(masks, "thresholds", counting)
    held = {UP.replace("0", str(number)): torch.randn(6, 5) for number in range(3)}
    masker = Masker(QWEN3, frozenset({"language"}), [0.4, 0.2])
    for ratio in (0.4, 0.2, 0.0, 0.4):
        result: list[MaskReport] = []
        for name, tensor in masker.stream(held.items(), ratio, result):
            assert torch.equal(tensor, sorted_out(held[name], zeroed_count(30, ratio)))
    assert len(searched) == 3
    list(masker.stream(held.items(), 0.3, []))
    assert len(searched) == 6, "of a ratio that was not announced"


def test_threads_change_neither_order_nor_digest() -> None:
    held = {f"model.layers.{number}.mlp.up_proj.weight": torch.randn(40, 30) for number in range(20)}
    told = []
    for threads in (1, 3):
        result: list[MaskReport] = []
        masker = Masker(QWEN3, frozenset({"language"}), [0.2], threads=threads)
        assert [name for name, _ in masker.stream(held.items(), 0.2, result)] == list(held)
        told += result
    assert told[0] == told[1]


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
qwen3_vl language: model.language_model.layers.0.self_attn.q_proj.weight model.language_model.norm.weight
qwen2_5_vl language: model.layers.3.mlp.gate_proj.weight model.layers.0.self_attn.q_proj.bias
qwen2_5_vl vision: visual.blocks.0.attn.qkv.weight model.visual.patch_embed.proj.weight
qwen3_vl projector: model.visual.merger.linear_fc1.weight model.visual.deepstack_merger_list.0.linear_fc2.weight
qwen3_vl embeddings: model.language_model.embed_tokens.weight
qwen3_vl lm_head: lm_head.weight
qwen3_vl None: model.audio_tower.layers.0.self_attn.q_proj.weight layers_of_another.0.weight
qwen3_vl_moe language: model.language_model.layers.0.mlp.experts.gate_up_proj
qwen3_vl_moe language: model.language_model.layers.0.mlp.gate.weight
internvl language: language_model.model.layers.1.mlp.down_proj.weight
internvl vision: vision_tower.encoder.layer.0.attention.q_proj.weight
internvl lm_head: language_model.lm_head.weight lm_head.weight
llava_onevision projector: multi_modal_projector.linear_1.weight image_newline
smolvlm projector: model.connector.modality_projection.proj.weight
gemma3 projector: multi_modal_projector.mm_input_projection_weight
qwen3_5 language: model.language_model.layers.0.linear_attn.in_proj_qkv.weight
qwen3_5 None: mtp.layers.0.mlp.up_proj.weight
a_type_of_tomorrow language: language_model.model.layers.1.mlp.down_proj.weight model.norm.weight
a_type_of_tomorrow projector: mlp1.1.weight model.connector.modality_projection.proj.weight
a_type_of_tomorrow None: model.audio_tower.layers.0.self_attn.q_proj.weight mtp.layers.0.mlp.up_proj.weight
"""


def test_every_weight_of_a_checkpoint_belongs_to_a_part() -> None:
    for line in PARTS.strip().splitlines():
        family, part, *names = line.split()
        part_of = Architecture({"model_type": family}).part_of
        assert {name: f"{part_of(name)}:" for name in names} == dict.fromkeys(names, part)


TEXT = {"hidden_size": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 1}
TEXT |= {"linear_num_value_heads": 2, "linear_value_head_dim": 2}
CUTS = [
    ("qwen3_vl", "model.language_model.layers.0.mlp.up_proj.weight", (6, 4), Cut(None, 0, (6,))),
    ("qwen3_vl", "model.visual.blocks.0.attn.qkv.weight", (6, 4), Cut(None, 0, (2, 2, 2))),
    ("glm4v", "model.language_model.layers.0.mlp.gate_up_proj.weight", (6, 4), Cut(None, 0, (3, 3))),
    ("qwen3_5", "model.language_model.layers.0.linear_attn.in_proj_qkv.weight", (8, 4), Cut(None, 0, (2, 2, 4))),
    ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", (3, 4, 6), Cut(3, 2, (3, 3))),
    ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", (3, 6, 4), Cut(3, 1, (3, 3))),
    ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.down_proj", (3, 3, 4), Cut(3, 1, (3,))),
    ("qwen3_vl_moe", "model.language_model.layers.0.mlp.gate.weight", (3, 4), None),
    ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj_bias", (3, 6), None),
    ("qwen3_vl", "model.visual.pos_embed.weight", (9, 4), None),
    ("qwen3_vl", "model.visual.patch_embed.proj.weight", (4, 3, 2, 2, 2), None),
    ("qwen3_vl", "model.language_model.layers.0.input_layernorm.weight", (4,), None),
    ("gemma3", "multi_modal_projector.mm_input_projection_weight", (4, 4), Cut(None, 0, (4,))),
]


@pytest.mark.parametrize(("family", "name", "shape", "cut"), CUTS)
def test_tensors_are_cut_into_the_methods_matrices(
    family: str, name: str, shape: tuple[int, ...], cut: Cut | None
) -> None:
    assert Architecture({"model_type": family, "text_config": TEXT}).cut(name, shape) == cut


def test_a_tensor_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"gate_up_proj.weight: expected matrices of relative sizes \(1, 1\)"):
        Architecture({"model_type": "glm4v"}).cut("model.language_model.layers.0.mlp.gate_up_proj.weight", (5, 4))


def test_gate_and_up_of_one_tensor_are_masked_each_alone() -> None:
    gate, up = torch.arange(1.0, 9.0).reshape(2, 4), torch.arange(101.0, 109.0).reshape(2, 4)
    name = "model.language_model.layers.0.mlp.gate_up_proj.weight"
    stream, report = run({name: torch.cat([gate, up])}, 0.25, Architecture({"model_type": "glm4v"}))
    assert torch.equal(stream[name], torch.cat([mask_smallest(gate, 0.25), mask_smallest(up, 0.25)]))
    assert (report.masked, report.sparsity) == ({"model.language_model.layers.*.mlp.gate_up_proj.weight": 2}, 0.25)


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
    mixture = Architecture({"model_type": "qwen3_vl_moe"})
    whole, together = run({f"{name}.down_proj": experts}, 0.25, mixture)
    single, apart = run({f"{name}.{i}.down_proj.weight": one for i, one in enumerate(experts)}, 0.25, mixture)
    assert torch.equal(whole[f"{name}.down_proj"], torch.stack(list(single.values())))
    assert (whole[f"{name}.down_proj"] == 0).sum((1, 2)).tolist() == [7] * 4
    assert together.sparsity == apart.sparsity == 28 / 120
    assert together.masked == {"model.layers.*.mlp.experts.down_proj": 4}
    assert list(apart.masked.values()) == [4]
