"""What ``validate`` says of two checkpoints' prompts and of how their answers end."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from masters_ray import validation
from masters_ray.engines import prompt_check
from masters_ray.engines.chat import Chat
from masters_ray.errors import ConfigError
from masters_ray.prompts import question_messages
from tests.builders import picture, problem
from tests.conftest import PAIR, ROOT
from tests.unit.test_chat import TEMPLATE, changed, starts_with

PROBLEMS = [problem(), problem(id="two", pictures=2)]
STUDENT = PAIR / "student"
SYSTEM = "<|im_start|>system\nLook closely.<|im_end|>" + TEMPLATE


def ends(folder: Path, eos: Any, **more: Any) -> Path:
    return changed(folder, generation_config=lambda content: content.update(eos_token_id=eos, **more))


def test_the_shipped_pair_needs_no_word() -> None:
    assert prompt_check.compare("teacher", PAIR / "teacher", STUDENT, PROBLEMS) == ([], [])
    assert prompt_check.ends("teacher", PAIR / "teacher", STUDENT) == ([], [])


def test_a_teacher_with_a_system_line_is_told_and_not_refused(tmp_path: Path) -> None:
    complaints, [note] = prompt_check.compare("teacher", changed(tmp_path, template=SYSTEM), STUDENT, PROBLEMS)
    assert complaints == []
    more = len(Chat(STUDENT).answer_ids("<|im_start|>system\nLook closely.<|im_end|>"))
    [asked] = Chat(STUDENT).inputs(question_messages(PROBLEMS[0]), [picture()])["input_ids"]
    told = f"question p has {len(asked) + more} tokens for it and {len(asked)} for the student"
    assert "by its chat template" in note and told in note


def test_a_teacher_whose_pictures_have_more_tokens_is_told(tmp_path: Path) -> None:
    def larger(content: dict[str, Any]) -> None:
        content["image_processor"]["size"] = {"shortest_edge": 16384, "longest_edge": 16384}

    teacher = changed(tmp_path, processor_config=larger)
    complaints, [note] = prompt_check.compare("teacher", teacher, STUDENT, PROBLEMS)
    assert complaints == []
    assert "by the tokens of its pictures" in note


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("<|reserved_3|><|reserved_3|>" + TEMPLATE, "writes the start token twice"),
        (TEMPLATE.replace("<|image_pad|>", "<|image_pad|><|image_pad|>"), "marks 2 pictures of 1"),
        (
            "{% if messages[0].content | length > 2 %}{{ raise_exception('one only') }}{% endif %}" + TEMPLATE,
            "one only",
        ),
        (TEMPLATE.replace("<|im_end|>", "<|reserved_5|>"), "ends a turn with token 636, .*eos_token_id: \\[2\\]"),
    ],
)
def test_a_template_that_would_make_wrong_prompts_is_refused(tmp_path: Path, template: str, told: str) -> None:
    folder = changed(tmp_path, tokenizer=starts_with("<|reserved_3|>"), template=template)
    [complaint], notes = prompt_check.compare("teacher", PAIR / "teacher", folder, PROBLEMS)
    assert complaint.where == "student.checkpoint"
    assert re.search(told, complaint.found)
    assert notes == []


def test_ends_that_differ_are_told_and_those_that_have_nothing_in_common_refused(tmp_path: Path) -> None:
    for eos, kept in (([2, 0], "; teacher is kept from writing [0]"), (2, None)):
        complaints, notes = prompt_check.ends("teacher", ends(tmp_path / str(eos), eos), STUDENT)
        expected = f"answers of teacher end with tokens [0, 2], the student's with [2]{kept}"
        assert (complaints, notes) == ([], [expected] if kept else [])
    folder = changed(
        tmp_path,
        generation_config=lambda content: content.update(eos_token_id=0),
        tokenizer_config=lambda content: content.update(eos_token="<|endoftext|>"),
    )
    shutil.copyfile(STUDENT / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"student.checkpoint: expected a token that ends answers of teacher too"):
        validation.load(ROOT / "conf" / "demo.yaml", [f"teacher.checkpoint={folder}"])


def test_sampling_of_a_generation_configuration_is_told_as_not_used(tmp_path: Path) -> None:
    folder = ends(tmp_path, 2, temperature=0.7, top_k=20, suppress_tokens=[7])
    _, [note] = prompt_check.ends("teacher", PAIR / "teacher", folder)
    assert note.startswith("student: generation_config.json sets temperature 0.7, top_k 20, suppress_tokens [7]; ")
