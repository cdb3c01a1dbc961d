"""What is said of checkpoints and of how they fit each other, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from masters_ray import checks
from masters_ray.checks.prompts import check_ids
from masters_ray.errors import CheckpointError, ConfigError
from masters_ray.method.prompts import question_messages
from masters_ray.models.chat import Chat
from tests.builders import checkpoint, picture, problem
from tests.conftest import DEMO, PAIR
from tests.unit.test_chat import TEMPLATE, starts_with

TEACHER, STUDENT = PAIR / "teacher", PAIR / "student"


def complaints(*overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        checks.load(DEMO, list(overrides))
    return {complaint.where: str(complaint) for complaint in caught.value.complaints}


def test_several_complaints_come_together() -> None:
    words = ["data.train.path=none.jsonl", "student.checkpoint=nowhere", "schedule.max_ratio=1.2", "learner.workrs=2"]
    found = complaints(*words, "teacher.top_k=100000")
    assert set(found) == {word.partition("=")[0] for word in words} | {"teacher.top_k"}
    assert "found nowhere: no such directory, and no model id" in found["student.checkpoint"]


def test_different_tokenizers_are_refused_with_what_differs(tmp_path: Path) -> None:
    def swapped(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        one, other = list(vocabulary)[300:302]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    folder = checkpoint(tmp_path / "student", weights=True, tokenizer=swapped)
    found = complaints(f"student.checkpoint={folder}")["student.checkpoint"]
    assert "differs in vocabulary" in found


def test_half_of_a_matrix_cannot_be_frozen() -> None:
    assert "one matrix" in complaints("learner.frozen=[vision,lm_head]")["learner.frozen"]
    checks.load(DEMO, ["learner.frozen=[lm_head,embeddings]"])


def test_quantised_weights_can_be_neither_masked_nor_trained(tmp_path: Path) -> None:
    def packed(tensors: dict[str, Any]) -> None:
        tensors.update({name: one.to(torch.int8) for name, one in tensors.items() if "mlp.up_proj" in name})

    folder = checkpoint(tmp_path / "packed", tensors=packed)
    found = complaints(f"teacher.checkpoint={folder}", f"student.checkpoint={folder}")
    assert "packed numbers in model.language_model.layers.0.mlp.up_proj.weight" in found["teacher.checkpoint"]
    assert "can be trained" in found["student.checkpoint"]
    checks.load(DEMO, [f"teacher.checkpoint={folder}", "schedule.max_ratio=0"])  # it is never masked
    awq = {"quantization_config": {"quant_method": "awq"}}
    folder = checkpoint(tmp_path / "awq", weights=True, config=lambda config: config["text_config"].update(awq))
    assert "(awq)" in complaints(f"teacher.checkpoint={folder}")["teacher.checkpoint"]


def test_a_teacher_whose_weights_are_in_no_known_part_is_refused(tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("language_model.layers", "transformer.blocks")] = tensors.pop(name)

    word = f"teacher.checkpoint={checkpoint(tmp_path / 'other', tensors=renamed)}"
    found = complaints(word)
    assert "expected matrices of language in" in found["teacher.mask"]
    assert "teacher.mask" not in complaints(word, "teacher.mask.vision=true")
    assert "21 of no known part: model.transformer.blocks.0.mlp" in found["teacher.checkpoint"]


def test_a_teacher_with_another_template_is_told_and_a_live_one_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = f"teacher.checkpoint={checkpoint(tmp_path, 'teacher', weights=True, template=TEMPLATE + ' ')}"
    checks.load(DEMO, [word])
    assert "teacher has other processor files or another chat template than the student" in capsys.readouterr().out
    assert "stored, since teacher makes other prompts" in complaints(word, "learner.teacher=live")["learner.teacher"]


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


def test_a_processor_that_reads_another_text_than_the_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(STUDENT)
    ids = chat.inputs(question_messages(problem()), [picture()])["input_ids"]
    monkeypatch.setattr(chat, "inputs", lambda *_: {"input_ids": ids.flip(1)})
    with pytest.raises(CheckpointError, match="engine and learner read different prompts: beside the pictures of p "):
        check_ids(chat, problem())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision_config": {"patch_size": 28}}, "patch_size 8, config.json has vision_config.patch_size 28"),
        (
            {"vision_config": {"spatial_merge_size": 3}},
            "merge_size 2, config.json has vision_config.spatial_merge_size",
        ),
        ({"image_token_id": 6, "video_token_id": 5}, "pictures at token 6, where the processor puts none"),
    ],
)
def test_a_processor_that_does_not_fit_its_model_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    def changed(config: dict[str, Any]) -> None:
        config |= {key: config[key] | one if isinstance(one, dict) else one for key, one in change.items()}

    with pytest.raises(CheckpointError, match=told):
        check_ids(Chat(checkpoint(tmp_path, config=changed)), problem())


def test_no_engine_is_asked_for_more_tokens_than_its_model_was_made_for(tmp_path: Path) -> None:
    words = [f"teacher.engine.{key}=4097" for key in ("max_model_len", "max_num_batched_tokens")]
    assert "at most 4096" in complaints(*words)["teacher.engine.max_model_len"]
    text = json.loads((TEACHER / "config.json").read_text())["text_config"]
    scaled = {"text_config": text | {"rope_parameters": text["rope_parameters"] | {"factor": 2.0}}}
    checks.load(DEMO, [*words, f"teacher.checkpoint={checkpoint(tmp_path, 'teacher', weights=True, config=scaled)}"])


def test_ends_that_differ_are_told_and_those_that_have_nothing_in_common_or_are_no_tokens_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def teacher(name: str, **files: Any) -> str:
        return f"teacher.checkpoint={checkpoint(tmp_path / name, 'teacher', weights=True, **files)}"

    checks.load(DEMO, [teacher("two", generation_config={"eos_token_id": [2, 0]})])
    told = "answers of teacher end with tokens [0, 2], the student's with [2]; teacher is kept from writing [0]"
    assert told in capsys.readouterr().out
    other = teacher("other", generation_config={"eos_token_id": 0}, tokenizer_config={"eos_token": "<"})
    assert "expected a token that ends answers of teacher too: [0] in " in complaints(other)["student.checkpoint"]
    for number, end in enumerate(("<|im_end|>", True, -1, [2, "3"])):
        found = complaints(teacher(str(number), generation_config={"eos_token_id": end}))["student.checkpoint"]
        assert "generation_config.json: eos_token_id: expected a token's id or a list" in found
