"""The table against public checkpoints' headers, a family that is added by the recipe, and one that nobody knows."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from masters_ray import families
from masters_ray.families import FAMILIES, Architecture, Family
from tests.facts import FACTS
from tests.facts import shapes as shapes_of
from tests.families import models, test_learner
from tests.families.models import KINDS, SIGLIP, Kind


@pytest.mark.parametrize("file", FACTS, ids=lambda file: file.stem)
def test_the_matrices_of_public_checkpoints_are_known_and_as_many_as_expected(file: Path) -> None:
    facts = json.loads(file.read_text())
    shapes = shapes_of(facts)
    known = Architecture(facts["config"])
    assert [name for name, shape in shapes.items() if known.is_unknown(name, shape)] == []
    expected, counted = known.expected(), known.counted(shapes)
    assert "language" in expected
    assert {part: counted[part] for part in expected} == expected
    assert counted["embeddings"] == 1


def test_public_checkpoints_of_the_papers_sizes_have_the_known_numbers_of_matrices() -> None:
    of = {file.stem: Architecture(json.loads(file.read_text())["config"]).expected()["language"] for file in FACTS}
    known = {"Qwen3-VL-8B": 252, "Qwen3-VL-32B": 448, "Qwen3-VL-30B-A3B": 48 * (4 + 3 * 128)}
    known |= {"InternVL3_5-38B": 448, "InternVL3-8B": 196, "Qwen2.5-VL-7B": 196, "Qwen2.5-VL-72B": 560}
    found = {name: next(count for stem, count in of.items() if stem.startswith(name)) for name in known}
    assert found == known


LLAVA = Family(
    parts={
        "language": r"(model\.)?language_model\.(model\.)?(layers\.\d+|norm)\.",
        "embeddings": r"(model\.)?language_model\.(model\.)?embed_tokens\.",
        "projector": r"(model\.)?multi_modal_projector\.",
        "vision": r"(model\.)?vision_tower\.",
        "lm_head": r"(language_model\.)?lm_head\.",
    },
    matrices={
        "language": lambda text, _: 7 * text["num_hidden_layers"],
        "vision": lambda _, vision: 6 * vision["num_hidden_layers"],
        "projector": lambda *_: 2,
    },
)


def llava(text: dict[str, Any], ids: Any) -> dict[str, Any]:
    return {
        "text_config": text | {"model_type": "llama"},
        "vision_config": SIGLIP | {"model_type": "clip_vision_model", "projection_dim": 16},
        "image_token_index": ids("<image>"),
        "image_seq_length": 16,
        "tie_word_embeddings": False,
    }


def llava_processor(tokenizer: Any) -> Any:
    sizes: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(**sizes),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


@pytest.fixture
def llava_kind(monkeypatch: pytest.MonkeyPatch) -> Kind:
    kind = Kind(
        model="Llava",
        image="<image>",
        tokens={"image_token": "<image>"},
        config=llava,
        processor=llava_processor,
        to_hub=models._renamed(*models._LLAVA, *models._SIGLIP_TOWER),
    )
    monkeypatch.setitem(KINDS, "llava", kind)
    return kind


def test_a_family_is_added_by_an_entry_alone(
    llava_kind: Kind, checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "llava", LLAVA)
    test_learner.test_every_matrix_is_known_and_counted("llava", checkpoint)
    test_learner.test_answers_of_a_batch_are_what_they_are_alone("llava", checkpoint)
    test_learner.test_an_export_has_the_sources_names_and_shapes_and_gives_the_trained_logits(
        "llava", checkpoint, tmp_path
    )


@pytest.mark.parametrize("kind", ["llava", "qwen3_5", "gemma3", "llava_onevision", "smolvlm", "qwen3_vl"])
def test_a_family_that_nobody_knows_is_computed_row_by_row(
    llava_kind: Kind, kind: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FAMILIES, kind, raising=False)
    assert Architecture({"model_type": kind}).family is families.UNKNOWN
    test_learner.test_answers_of_a_batch_are_what_they_are_alone(kind, checkpoint)
