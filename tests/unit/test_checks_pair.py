"""What is said of checkpoints and of how they fit each other, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from masters_ray import checks
from masters_ray.checks.pair import ends
from masters_ray.checks.prompts import check_ids, difference
from masters_ray.errors import CheckpointError, ConfigError
from masters_ray.method.prompts import question_messages
from masters_ray.models.chat import Chat
from tests.builders import checkpoint, picture, problem
from tests.conftest import DEMO, PAIR
from tests.unit.test_chat import TEMPLATE, starts_with

TEACHER, STUDENT = PAIR / "teacher", PAIR / "student"
SYSTEM = "<|im_start|>system\nLook closely.<|im_end|>"


def complaints(*overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        checks.load(DEMO, list(overrides))
    return {complaint.where: str(complaint) for complaint in caught.value.complaints}


def test_several_complaints_come_together(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"conversations": []}]')
    words = ["data.train.format=jsonl", "data.train.path=none.jsonl", "data.held_out.format=jsonl"]
    words += [f"data.held_out.path={tmp_path}/rows.json", "student.checkpoint=nowhere", "schedule.max_ratio=1.2"]
    found = complaints(*words, "learner.workrs=2", "teacher.replicas=two", "teacher.top_k=100000")
    assert set(found) == {
        *("data.train.path", "data.held_out.path", "student.checkpoint", "schedule.max_ratio"),
        *("learner.workrs", "teacher.replicas", "teacher.top_k"),
    }
    assert "none.jsonl: none. Set data.*.path to an existing file" in found["data.train.path"]
    assert "a JSON array; its rows have LLaVA's layout (conversations). Write an object" in found["data.held_out.path"]
    assert "found nowhere: no such directory, and no model id" in found["student.checkpoint"]
    assert "at most the vocabulary's" in found["teacher.top_k"]


def test_a_torn_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "student", weights=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    told = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    assert "model.safetensors: cannot be read as safetensors (Error while deserializing" in told
    (folder / "tokenizer.json").unlink()
    weights.unlink()
    told = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    assert f"found {folder}: no tokenizer.json, model.safetensors. Download it again" in told


def test_different_tokenizers_are_refused_with_what_differs(tmp_path: Path) -> None:
    def swapped(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        one, other = list(vocabulary)[300:302]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    folder = checkpoint(tmp_path / "student", weights=True, tokenizer=swapped)
    found = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    assert "differs in vocabulary" in found and "choose a pair of one family" in found


@pytest.mark.parametrize("frozen", ["vision,lm_head", "embeddings"])
def test_half_of_a_matrix_cannot_be_frozen_nor_what_adapters_train(frozen: str) -> None:
    assert "one matrix" in complaints(f"learner.frozen=[{frozen}]")["learner.frozen"]
    checks.load(DEMO, [f"learner.frozen=[{frozen}]", "learner.lora.rank=4"])
    checks.load(DEMO, ["learner.frozen=[lm_head,embeddings]"])

    found = complaints("learner.frozen=[vision,language]", "learner.lora.rank=8")["learner.frozen"]
    assert "no language with learner.lora.rank above 0" in found and "Adapters train just that part" in found
    checks.load(DEMO, ["learner.frozen=[vision,language]"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_quantised_weights_can_be_neither_masked_nor_trained(tmp_path: Path, dtype: torch.dtype) -> None:
    def packed(tensors: dict[str, Any]) -> None:
        tensors.update({name: one.to(dtype) for name, one in tensors.items() if "mlp.up_proj" in name})

    folder = checkpoint(tmp_path / "packed", tensors=packed)
    found = complaints(f"teacher.checkpoint={folder}", f"student.checkpoint={folder}")
    assert "packed numbers in model.language_model.layers.0.mlp.up_proj.weight" in found["teacher.checkpoint"]
    assert "can be trained" in found["student.checkpoint"]
    checks.load(DEMO, [f"teacher.checkpoint={folder}", "schedule.max_ratio=0"])  # it is never masked

    awq = {"quantization_config": {"quant_method": "awq"}}
    text = json.loads((STUDENT / "config.json").read_text())["text_config"]
    for name, said in (("whole", awq), ("text", {"text_config": text | awq})):
        folder = checkpoint(tmp_path / name, weights=True, config=said)
        assert "(awq)" in complaints(f"teacher.checkpoint={folder}")["teacher.checkpoint"]


def test_a_teacher_whose_weights_are_in_no_known_part_is_refused(tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("language_model.layers", "transformer.blocks")] = tensors.pop(name)

    word = f"teacher.checkpoint={checkpoint(tmp_path / 'other', tensors=renamed)}"
    found = complaints(word)
    assert "expected matrices of language in" in found["teacher.mask"]
    assert "teacher.mask" not in complaints(word, "teacher.mask.vision=true")
    assert "21 of 39 matrices in no known part: model.transformer.blocks.0.mlp" in found["teacher.checkpoint"]


def test_a_teacher_with_a_system_line_or_more_tokens_for_a_picture_is_told_and_not_refused(tmp_path: Path) -> None:
    student = Chat(STUDENT)
    assert list(difference("teacher", Chat(TEACHER), student, problem())) == []
    teacher = Chat(checkpoint(tmp_path, template=SYSTEM + TEMPLATE))
    [note] = difference("teacher", teacher, student, problem())
    more = len(student.answer_ids(SYSTEM))
    [asked] = student.inputs(question_messages(problem()), [picture()])["input_ids"]
    told = f"question p has {len(asked) + more} tokens for it and {len(asked)} for the student"
    assert "by its chat template" in str(note) and told in str(note)

    size = {"shortest_edge": 16384, "longest_edge": 16384}
    larger = checkpoint(tmp_path / "larger", processor_config=lambda one: one["image_processor"].update(size=size))
    [note] = difference("teacher", Chat(larger), student, problem())
    assert "by the tokens of its pictures" in str(note)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("<|reserved_3|><|reserved_3|>" + TEMPLATE, "writes the start token twice"),
        (TEMPLATE.replace("<|image_pad|>", "<|image_pad|><|image_pad|>"), "marks 2 pictures of 1"),
        (TEMPLATE.replace("<|im_end|>", "<|reserved_5|>"), "ends a turn with token 636, .*eos_token_id: \\[2\\]"),
    ],
)
def test_a_template_that_would_make_wrong_prompts_is_refused(tmp_path: Path, template: str, told: str) -> None:
    check_ids(Chat(checkpoint(tmp_path, tokenizer=starts_with("<|reserved_3|>"))), problem(pictures=2))
    student = Chat(checkpoint(tmp_path, tokenizer=starts_with("<|reserved_3|>"), template=template))
    with pytest.raises(CheckpointError, match=told):
        check_ids(student, problem())


def test_no_engine_is_asked_for_more_tokens_than_its_model_was_made_for(tmp_path: Path) -> None:
    words = [f"teacher.engine.{key}=4097" for key in ("max_model_len", "max_num_batched_tokens")]
    assert "at most 4096" in complaints(*words)["teacher.engine.max_model_len"]
    text = json.loads((TEACHER / "config.json").read_text())["text_config"]
    scaled = {"text_config": text | {"rope_parameters": text["rope_parameters"] | {"factor": 2.0}}}
    checks.load(DEMO, [*words, f"teacher.checkpoint={checkpoint(tmp_path, 'teacher', weights=True, config=scaled)}"])


def ending(folder: Path, eos: Any) -> Path:
    return checkpoint(folder, generation_config={"eos_token_id": eos})


def test_ends_that_differ_are_told_and_those_that_have_nothing_in_common_refused(tmp_path: Path) -> None:
    told = "answers of teacher end with tokens [0, 2], the student's with [2]; teacher is kept from writing [0]"
    assert list(ends("teacher", ending(tmp_path / "two", [2, 0]), STUDENT)) == [told]
    assert list(ends("teacher", ending(tmp_path / "same", 2), STUDENT)) == []
    folder = checkpoint(
        tmp_path,
        weights=True,
        generation_config={"eos_token_id": 0},
        tokenizer_config={"eos_token": "<|endoftext|>"},
    )
    told = complaints(f"teacher.checkpoint={folder}")["student.checkpoint"]
    assert told.startswith("student.checkpoint: expected a token that ends answers of teacher too")


def test_ends_of_answers_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "student", weights=True)
    for end in ('"<|im_end|>"', "2.5", "true", "-1", "[[2]]", '{"a": 2}', '[2, "3"]'):
        (folder / "generation_config.json").write_text('{"eos_token_id": ' + end + "}")
        told = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
        assert f"generation_config.json: eos_token_id: expected a token's id or a list of them, found {end}" in told
