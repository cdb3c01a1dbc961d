import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from masters_ray import checkpoints, validation
from masters_ray.errors import ConfigError
from tests.conftest import PAIR, ROOT

DEMO = ROOT / "conf" / "demo.yaml"


@pytest.fixture(autouse=True)
def _in_the_projects_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def complaints(*overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        validation.load(DEMO, list(overrides))
    return {complaint.where: str(complaint) for complaint in caught.value.complaints}


def copied(folder: Path) -> Path:
    shutil.copytree(PAIR / "student", folder)
    return folder


def test_the_demo_has_nothing_to_complain_about() -> None:
    validation.load(DEMO)


def test_a_missing_data_file_is_named() -> None:
    found = complaints("data.train.format=jsonl", "data.train.path=none.jsonl")
    assert "none.jsonl: none. Set data.*.path to an existing file" in found["data.train.path"]


def test_data_in_another_form_are_refused_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"conversations": []}]')
    words = [f"data.{name}.format=jsonl" for name in ("train", "held_out")]
    found = complaints(*words, f"data.train.path={tmp_path}", f"data.held_out.path={tmp_path}/rows.json")
    assert f"{tmp_path}: a folder (1 .json). masters_ray reads one jsonl file" in found["data.train.path"]
    assert "a JSON array; its rows have LLaVA's layout (conversations). Write an object" in found["data.held_out.path"]


def test_a_checkpoint_that_is_no_directory_is_named() -> None:
    assert (
        "found nowhere: no such directory, and no model id"
        in complaints("teacher.checkpoint=nowhere")["teacher.checkpoint"]
    )


def test_a_torn_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "student")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "where its header says" in complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    weights.write_bytes(b"no")
    assert "cut off" in complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    weights.unlink()
    assert "no model.safetensors" in complaints(f"student.checkpoint={folder}")["student.checkpoint"]


def test_a_checkpoint_without_its_files_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "student")
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text("{")
    found = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    assert "no tokenizer.json" in found
    assert "config.json is not JSON" in found


def test_different_tokenizers_are_refused_with_what_differs(tmp_path: Path) -> None:
    folder = copied(tmp_path / "student")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    one, other = list(tokenizer["model"]["vocab"])[300:302]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    assert "differs in vocabulary" in found
    assert "choose a pair of one family" in found


def test_more_log_probabilities_than_tokens_are_refused() -> None:
    assert "at most the vocabulary's" in complaints("teacher.top_k=100000")["teacher.top_k"]


def test_no_engine_is_asked_for_more_tokens_than_its_model_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("max_model_len", "max_num_batched_tokens")
    words = [f"{model}.engine.{key}=4097" for model in ("teacher", "student") for key in keys]
    found = complaints(*words)
    assert "at most 4096" in found["teacher.engine.max_model_len"]
    assert "student.engine.max_model_len=4096" in found["student.engine.max_model_len"]
    scaled = copied(tmp_path / "scaled")
    for kind, more in (("linear", True), ("yarn", False)):
        content = json.loads((scaled / "config.json").read_text())
        content["text_config"]["rope_parameters"] = {"rope_type": kind, "factor": 2.0}
        (scaled / "config.json").write_text(json.dumps(content))
        assert checkpoints.most_positions(scaled) == (8192 if more else 4096)
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    validation.load(DEMO, words)


@pytest.mark.parametrize("end", ['"<|im_end|>"', "2.5", "true", "-1", "[[2]]", '{"a": 2}', '[2, "3"]'])
def test_ends_of_answers_that_are_no_tokens_are_refused(tmp_path: Path, end: str) -> None:
    folder = copied(tmp_path / "student")
    (folder / "generation_config.json").write_text('{"eos_token_id": ' + end + "}")
    told = complaints(f"student.checkpoint={folder}")["eos_token_id"]
    assert f"generation_config.json: eos_token_id: expected a token's id or a list of them, found {end}" in told


def test_several_complaints_come_together() -> None:
    found = complaints(
        "data.held_out.format=parquet",
        "data.held_out.path=none.parquet",
        "student.checkpoint=nowhere",
        "schedule.max_ratio=1.2",
        "learner.workrs=2",
        "teacher.replicas=two",
    )
    assert set(found) == {
        "data.held_out.path",
        "student.checkpoint",
        "schedule.max_ratio",
        "learner.workrs",
        "teacher.replicas",
    }


@pytest.mark.parametrize("frozen", ["vision,lm_head", "embeddings"])
def test_half_of_a_matrix_cannot_be_frozen(frozen: str) -> None:
    assert "one matrix" in complaints(f"learner.frozen=[{frozen}]")["learner.frozen"]
    validation.load(DEMO, [f"learner.frozen=[{frozen}]", "learner.lora.rank=4"])
    validation.load(DEMO, ["learner.frozen=[lm_head,embeddings]"])


def test_adapters_train_the_language_model_and_so_it_cannot_be_frozen() -> None:
    found = complaints("learner.frozen=[vision,language]", "learner.lora.rank=8")["learner.frozen"]
    assert "adapters train the language model" in found
    validation.load(DEMO, ["learner.frozen=[vision,language]"])


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of the shipped student, its tensors changed."""
    shutil.copytree(PAIR / "student", folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


def packed(dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda held: {
        name: torch.zeros_like(tensor, dtype=dtype) if "mlp.up_proj" in name else tensor
        for name, tensor in held.items()
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_quantised_weights_can_be_neither_masked_nor_trained(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = rewritten(tmp_path / "packed", packed(dtype))
    found = complaints(f"teacher.checkpoint={folder}", f"student.checkpoint={folder}")
    assert "packed numbers in model.language_model.layers.0.mlp.up_proj.weight" in found["teacher.checkpoint"]
    assert "can be trained" in found["student.checkpoint"]


def test_what_config_json_says_of_quantisation_is_enough(tmp_path: Path) -> None:
    folder = copied(tmp_path / "awq")
    content = json.loads((folder / "config.json").read_text())
    for section in (content, content["text_config"]):
        section["quantization_config"] = {"quant_method": "awq"}
        (folder / "config.json").write_text(json.dumps(content))
        assert "(awq)" in complaints(f"teacher.checkpoint={folder}")["teacher.checkpoint"]
        del section["quantization_config"]


def test_a_quantised_teacher_may_be_one_that_is_never_masked(tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "packed", packed(torch.float8_e4m3fn))
    validation.load(DEMO, [f"teacher.checkpoint={folder}", "schedule.max_ratio=0"])


def test_a_teacher_whose_weights_are_in_no_known_part_is_refused(tmp_path: Path) -> None:
    def renamed(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("language_model.layers", "transformer.blocks"): one for name, one in held.items()}

    found = complaints(f"teacher.checkpoint={rewritten(tmp_path / 'other', renamed)}")
    assert "matrices of language" in found["teacher.mask"]
    assert "21 of 39 matrices in no known part: model.transformer.blocks.0.mlp" in found["teacher.checkpoint"]
