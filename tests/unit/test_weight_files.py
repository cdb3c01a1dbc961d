"""Which weights of a checkpoint are read, and what is said where transformers and vLLM would not read the same."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from masters_ray import weights
from masters_ray.errors import CheckpointError

ONE, TWO = {"a": torch.ones(2, 2)}, {"b": torch.ones(3)}
FIRST, SECOND, SINGLE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def sharded(folder: Path) -> Path:
    save_file(ONE, folder / FIRST)
    save_file(TWO, folder / SECOND)
    return index(folder, {"a": FIRST, "b": SECOND})


def index(folder: Path, placed: dict[str, str]) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        weights.headers(folder)
    assert str(caught.value).removeprefix(f"{folder}: ").rstrip(".") in weights.check(folder)
    return str(caught.value)


def test_the_files_of_an_index_are_read_whatever_lies_beside_them_unread(tmp_path: Path) -> None:
    save_file(ONE, sharded(tmp_path) / "model-00003-of-00003.safetensors")  # of an export with three
    (tmp_path / "pytorch_model.bin").write_bytes(b"read by nobody where there is safetensors")
    assert [file.name for file in weights.weight_files(tmp_path)] == [FIRST, SECOND]
    assert {name: entry.shape for name, entry in weights.headers(tmp_path).items()} == {"a": (2, 2), "b": (3,)}
    assert weights.parameter_count(tmp_path) == 7


@pytest.mark.parametrize("other", [SINGLE, "consolidated.safetensors", "consolidated-00001-of-00002.safetensors"])
def test_what_transformers_or_vllm_would_read_in_place_of_the_index_is_refused(tmp_path: Path, other: str) -> None:
    save_file(ONE, sharded(tmp_path) / other)
    assert f"{other} beside {INDEX}: transformers and vLLM would not read the same" in refusal(tmp_path)


def test_an_index_may_name_a_single_file_and_none_below(tmp_path: Path) -> None:
    save_file(ONE, index(tmp_path, {"a": SINGLE}) / SINGLE)
    assert weights.weight_files(tmp_path) == [tmp_path / SINGLE]
    index(tmp_path, {"a": f"below/{SINGLE}"})
    assert f"places weights below (below/{SINGLE}), where vLLM does not look" in refusal(tmp_path)


def test_without_an_index_there_is_one_file(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / SINGLE)
    assert weights.weight_files(tmp_path) == [tmp_path / SINGLE]
    save_file(TWO, tmp_path / "extra.safetensors")
    assert "extra.safetensors beside model.safetensors" in refusal(tmp_path)
    (tmp_path / SINGLE).unlink()
    assert f"found extra.safetensors, without {INDEX}" in refusal(tmp_path)


@pytest.mark.parametrize("adapter", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters_are_not_a_model(tmp_path: Path, adapter: str) -> None:
    (tmp_path / adapter).write_text("{}")
    assert f"{adapter}: low-rank adapters" in refusal(tmp_path)
    save_file(ONE, tmp_path / SINGLE)
    assert "Merge them" in refusal(tmp_path)


def test_an_index_of_another_export_is_refused(tmp_path: Path) -> None:
    index(sharded(tmp_path), {"a": SECOND, "b": SECOND})
    assert "the files do not agree on a:" in refusal(tmp_path)
    index(tmp_path, {"a": FIRST, "c": SECOND})
    assert "do not agree on b, c:" in refusal(tmp_path)
    index(tmp_path, {"a": FIRST, "b": SECOND})
    save_file(ONE | TWO, tmp_path / SECOND)
    assert "the files do not agree on a:" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("model-Q4_K_M.gguf", "", "Take the checkpoint that it was made of"),
        ("pytorch_model.bin", "", "save_pretrained"),
        ("README.md", "", "no model.safetensors. Download or export it again"),
        (SINGLE, POINTER, "run git lfs pull"),
        (SINGLE, "", "model.safetensors is cut off where its header says more, or no safetensors file"),
    ],
)
def test_weights_of_another_form_have_their_remedy(tmp_path: Path, name: str, content: str, remedy: str) -> None:
    (tmp_path / name).write_text(content)
    assert remedy in refusal(tmp_path)


def test_what_git_lfs_or_a_cache_left_in_place_of_a_file_is_said(tmp_path: Path) -> None:
    os.symlink("../../blobs/gone", tmp_path / SINGLE)  # noqa: PTH211 - to nowhere
    assert "a link to a file that is not there" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text(POINTER)
    (tmp_path / "generation_config.json").write_bytes(b"")
    wrong = "\n".join(weights.check(tmp_path))
    assert "generation_config.json is not JSON" in wrong and "tokenizer.json is a pointer of git-lfs" in wrong


@pytest.mark.parametrize("content", ['{"hidden_size": 4}', "[]"])
def test_a_configuration_without_a_model_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert "config.json names no model_type" in weights.check(tmp_path)
