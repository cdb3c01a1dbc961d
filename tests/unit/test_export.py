"""A trained student is written as whole a checkpoint as the one that it was made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from masters_ray.engines import hf
from tests.conftest import PAIR

CARD = (
    "---\nlicense: apache-2.0\nlanguage: [en]\nlicense_link: https://example.org/L\n---\n# Tiny\n88 % on everything\n"
)
SETTINGS = {"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The toy student with all that a checkpoint of the Hub may have beside its weights."""
    folder = shutil.copytree(PAIR / "student", tmp_path / "models--org--tiny" / "snapshots" / "abc")
    more = {
        "generation_config.json": json.dumps(SETTINGS),
        "chat_template.json": '{"chat_template": "x"}',
        "additional_chat_templates/tools.jinja": "{{ messages }}",
        "LICENSE": "mine",
        "NOTICE.md": "theirs",
        "README.md": CARD,
        "merges.txt": "a b\n",
        "modeling_tiny.py": "raise SystemExit",
        "model.safetensors.index.json.bak": "{}",
        "pytorch_model.bin.index.json": "{}",
        ".cache/huggingface/x.json": "{}",
    }
    for name, text in more.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_everything_beside_the_weights_is_the_sources_to_the_byte(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, target = hf.load_model(source, "float32").eval(), tmp_path / "student"
    with torch.no_grad():
        model.lm_head.weight.mul_(1.25)
    hf.export(model.state_dict(), source, target, "float32")
    left_out = {"modeling_tiny.py", "model.safetensors.index.json.bak", "pytorch_model.bin.index.json"}
    left_out |= {".cache/huggingface/x.json"}
    assert files(target) == files(source) - left_out | {"README_of_base_model.md"}
    for name in files(target) - {"model.safetensors", "config.json", "README.md", "README_of_base_model.md"}:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name
    assert "not copied (modeling_tiny.py)" in "".join(capsys.readouterr())
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, target))
    assert now == was | {"dtype": "float32"}
    ids = torch.tensor([[20, 30, 40]])
    again = hf.load_model(target, "float32").eval()
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == [2, 0]


def test_the_model_card_names_the_source_and_its_licence_and_keeps_its_card_beside(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "student"
    hf.export(hf.load_model(source, "bfloat16").state_dict(), source, target, "bfloat16")
    card = (target / "README.md").read_text()
    assert card.startswith(
        "---\nbase_model: org/tiny\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n"
        "license: apache-2.0\nlicense_link: https://example.org/L\n---\n"
    )
    assert "88 %" not in card and (target / "README_of_base_model.md").read_text() == CARD
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
