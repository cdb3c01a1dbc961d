import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from masters_ray.errors import CheckpointError
from masters_ray.models import hf, weights
from tests.builders import checkpoint
from tests.conftest import PAIR

ONE, TWO = {"a": torch.ones(2, 2)}, {"b": torch.ones(3)}
FIRST, SECOND, SINGLE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def index(folder: Path, placed: dict[str, str]) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        weights.headers(folder)
    return str(caught.value)


def test_the_files_of_an_index_are_read_and_others_refused(tmp_path: Path) -> None:
    sharded = index(tmp_path, {"a": FIRST, "b": SECOND})
    save_file(ONE, sharded / FIRST)
    save_file(TWO, sharded / SECOND)
    (sharded / "pytorch_model.bin").write_bytes(b"read by nobody where there is safetensors")
    assert [file.name for file in weights.weight_files(sharded)] == [FIRST, SECOND]
    assert {name: entry.shape for name, entry in weights.headers(sharded).items()} == {"a": (2, 2), "b": (3,)}
    assert weights.parameter_count(sharded) == 7
    for other in (SINGLE, "consolidated.safetensors", "adapter_config.json"):
        (sharded / other).touch()
        assert f"{other} beside {FIRST}: engine and learner might read other weights" in refusal(sharded)
        (sharded / other).unlink()
    save_file(ONE | TWO, sharded / SECOND)
    assert f"{SECOND}: a in another file too: of different exports" in refusal(sharded)


def test_one_file_is_read_with_an_index_or_without_if_it_lies_beside_config_json(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / SINGLE)
    assert weights.weight_files(tmp_path) == [tmp_path / SINGLE]
    assert weights.weight_files(index(tmp_path, {"a": SINGLE})) == [tmp_path / SINGLE]
    (tmp_path / "below").mkdir()
    (tmp_path / SINGLE).rename(tmp_path / "below" / SINGLE)
    assert f"no below/{SINGLE} beside config.json" in refusal(index(tmp_path, {"a": f"below/{SINGLE}"}))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (SINGLE, POINTER, "model.safetensors: cannot be read as safetensors (Error while deserializing header"),
        ("generation_config.json", "", "generation_config.json: cannot be read as JSON"),
        ("config.json", "[]", "config.json: expected a JSON object, found a list"),
        (INDEX, '{"weight_map": {}}', "index.json: expected a weight_map of tensors to files, found none"),
        (INDEX, '{"weight_map": {"a": "one.safetensors"}}', "no one.safetensors"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_fault(
    tmp_path: Path, name: str, content: str, fault: str
) -> None:
    weights.check(checkpoint(tmp_path, weights=True))
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(fault)):
        weights.check(tmp_path)


def test_a_snapshot_in_part_is_completed_once_and_what_the_hub_does_not_deliver_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.locate_locally("~/tiny") is None, "no name that the hub knows"
    downloads = []

    def download(name: str, local_files_only: bool = False) -> str:
        if name == "org/other":
            raise LocalEntryNotFoundError("no such model")
        if name == "org/tiny" and not local_files_only:
            downloads.append(name)
            shutil.copyfile(PAIR / "student" / SINGLE, tmp_path / name / SINGLE)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint(tmp_path / "org/tiny")
    assert weights.locate_locally("org/tiny") is None
    assert [weights.locate("org/tiny") for _ in range(2)] == [tmp_path / "org/tiny"] * 2
    assert len(downloads) == 1
    index(checkpoint(tmp_path / "org/torn"), {"a": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"org/torn: no one.safetensors. Download it again"):
        weights.locate("org/torn")
    with pytest.raises(CheckpointError, match="org/other: no such directory, and the model hub did not deliver it"):
        weights.locate("org/other")


QUERIES = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("lacks", [QUERIES, "model.visual.blocks.0.attn.qkv.bias", "model.language_model.norm.weight"])
def test_weights_that_are_missing_or_of_another_shape_are_named_before_and_while_they_are_loaded(
    lacks: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "student", tensors=lambda tensors: tensors.pop(lacks))
    other = checkpoint(tmp_path / "other", tensors=lambda tensors: tensors.update({QUERIES: torch.ones(8, 4)}))
    for load in (hf.unexpected_weights, lambda folder: hf.load_model(folder, "float32")):
        with pytest.raises(CheckpointError, match=f"student: expected all weights of the model .* found no {lacks}"):
            load(folder)
        with pytest.raises(CheckpointError, match=r"q_proj.weight of shape \[8, 4\] in place of \[128, 128\]"):
            load(other)


def test_weights_of_no_part_are_told_and_those_of_more_layers_refused(tmp_path: Path) -> None:
    assert hf.unexpected_weights(PAIR / "student") == hf.unexpected_weights(PAIR / "teacher") == []
    other = "model.language_model.extra.weight"
    folder = checkpoint(tmp_path / "student", tensors=lambda held: held.update({other: held[QUERIES].clone()}))
    assert hf.unexpected_weights(folder) == [other]
    fewer = checkpoint(
        tmp_path / "fewer", weights=True, config=lambda it: it["text_config"].update(num_hidden_layers=1)
    )
    with pytest.raises(CheckpointError, match=r"found weights of further ones: .*layers\.1\."):
        hf.unexpected_weights(fewer)


LEFT_OUT = {"modeling_tiny.py", "pytorch_model.bin.index.json", ".cache/huggingface/x.json"}
SETTINGS = {"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_all_beside_the_weights_is_the_sources_but_its_card(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", weights=True, generation_config=SETTINGS)
    for name in LEFT_OUT | {"LICENSE", "merges.txt", "README.md", "additional_chat_templates/tools.jinja"}:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("mine")
    model, target = hf.load_model(source, "float32").eval(), tmp_path / "student"
    with torch.no_grad():
        model.lm_head.weight.mul_(1.25)
    hf.export(model.state_dict(), source, target, "float32")
    assert files(target) == files(source) - LEFT_OUT - {"README.md"} | {"README_of_base_model.md"}
    for name in files(target) - {"model.safetensors", "config.json", "README_of_base_model.md"}:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, target))
    assert now == was | {"dtype": "float32"}
    ids = torch.tensor([[20, 30, 40]])
    again = hf.load_model(target, "float32").eval()
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == [2, 0]
    hf.export(model.state_dict(), source, target, "bfloat16")
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
