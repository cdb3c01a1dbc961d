"""What configurations are told of families: the type that nobody knows, another layout, experts the other way round."""

import json
from pathlib import Path
from typing import Any

import pytest

from masters_ray.checks import pair
from masters_ray.checks.context import CheckContext
from masters_ray.config import read
from masters_ray.families import ELSEWHERE, FAMILIES, Architecture
from masters_ray.models import weights
from tests.builders import checkpoint
from tests.conftest import DEMO


def told(folder: Path, *words: str, **config: Any) -> dict[str, str]:
    """What is complained of a student whose config.json says so: key → found and remedy."""
    student = checkpoint(folder / "student", weights=True, config=config)
    own, _ = read(DEMO, [f"student.checkpoint={student}", *words])
    context = CheckContext(config=own, complaints=[])
    pair.located(context)
    pair.models(context)
    return {one.where: f"{one.found}. {one.remedy}" for one in context.complaints}


def test_a_type_that_nobody_knows_must_be_accepted(tmp_path: Path) -> None:
    found = told(tmp_path, model_type="molmo9")
    assert "of type molmo9. model.unknown_family=rows has the learner" in found["student.checkpoint"]
    assert told(tmp_path, "model.unknown_family=rows", model_type="molmo9") == {}


def test_the_original_layout_of_internvl_is_refused_with_the_other_ones_name(tmp_path: Path) -> None:
    assert "publishes it with -hf in its name" in told(tmp_path, model_type="internvl_chat")["student.checkpoint"]


def test_a_mixture_cannot_learn_online(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_vl_moe"}
    found = told(tmp_path, "rollout.online_fraction=0.5", **config)
    assert "Train it offline" in found["rollout.online_fraction"]
    assert told(tmp_path, **config) == {}


def test_experts_the_other_way_round_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    held = {name: weights.Entry("F32", (4, 96, 64))}
    monkeypatch.setattr(weights, "headers", lambda folder: held)
    text = {"hidden_size": 64, "num_hidden_layers": 1}
    found = told(tmp_path, model_type="qwen3_vl_moe", text_config=text)
    assert f"{name} the other way round" in found["student.checkpoint"]
    held[name] = weights.Entry("F32", (4, 64, 96))
    assert told(tmp_path, model_type="qwen3_vl_moe", text_config=text) == {}


def test_every_entry_names_all_parts_and_says_how_many_matrices_it_has() -> None:
    for name, family in FAMILIES.items():
        assert set(family.parts) == {"language", "embeddings", "projector", "vision", "lm_head"}, name
        assert set(family.matrices) == {"language", "projector", "vision"}, name
    assert not ELSEWHERE.keys() & FAMILIES.keys()


def test_text_settings_may_stand_at_the_top_and_the_text_model_may_matter() -> None:
    assert Architecture(json.loads('{"model_type": "qwen2_5_vl", "num_hidden_layers": 3}')).expected() == {
        "language": 21,
        "projector": 2,
    }
    mixture = {"model_type": "internvl", "text_config": {"model_type": "qwen3_moe"}}
    assert Architecture(mixture).family is FAMILIES["internvl/qwen3_moe"]
    assert (
        Architecture({"model_type": "internvl", "text_config": {"model_type": "qwen3"}}).family is FAMILIES["internvl"]
    )
