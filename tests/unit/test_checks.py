"""What is said of a configuration before anything starts: of its data, places, checkpoints and prompts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.filesize import decimal

from masters_ray import checks, config
from masters_ray.checks import rows
from masters_ray.checks.prompts import check_ids
from masters_ray.errors import CheckpointError, ConfigError
from masters_ray.method.prompts import question_messages
from masters_ray.models.chat import Chat
from masters_ray.models.weights import parameter_count
from masters_ray.pipeline.run_dir import RunDirectory
from tests.builders import checkpoint, picture, png, problem
from tests.conftest import DEMO, PAIR, ROOT
from tests.unit.test_chat import TEMPLATE, starts_with


def row(number: int, **other: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "question": "what color?", "answer": "red", "image": "a.png", "kind": "colour"} | other


THREE = [row(number) for number in range(3)]


def words(folder: Path, train: Sequence[dict[str, Any]], *more: str) -> list[str]:
    """The words that make the rows a run's data."""
    (folder / "a.png").write_bytes(png())
    found = [f"run.dir={folder / 'deep' / 'run'}"]
    for name, content in (("train", train), ("held_out", THREE)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in content))
        found += [f"data.{name}.path={folder / name}.jsonl", f"data.{name}.rows=null"]
    return [*found, *more]


def complaints(overrides: list[str], *, all_rows: bool = False) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        checks.validate(DEMO, overrides, all_rows=all_rows)
    return {one.where: str(one) for one in caught.value.complaints}


def refused(*overrides: str) -> dict[str, str]:
    """The complaints that every command makes."""
    with pytest.raises(ConfigError) as caught:
        checks.load(DEMO, list(overrides))
    return {one.where: str(one) for one in caught.value.complaints}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "expected a key for wandb's server, found none for https://wandb.test"),
        ({"WANDB_API_KEY": "0" * 40}, ""),
        ({"NETRC": "{folder}/netrc"}, ""),
        ({"WANDB_MODE": "offline"}, ""),
    ],
)
def test_a_run_is_refused_that_wandb_would_stop_to_ask_for_a_key(
    tmp_path: Path, given: dict[str, str], told: str
) -> None:
    """In a process of its own, as wandb reads its settings once."""
    (tmp_path / "netrc").write_text("machine wandb.test login user password " + "0" * 40)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    surroundings |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "https://wandb.test"}
    surroundings |= {name: value.format(folder=tmp_path) for name, value in given.items()}
    code = "import sys; from masters_ray import checks; checks.load(sys.argv[1], ['tracker=wandb'])"
    words = [sys.executable, "-c", code, str(DEMO)]
    ran = subprocess.run(words, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=60, check=False)
    assert (told in ran.stderr) if told else ("wandb" not in ran.stderr), ran.stderr


def test_validate_shows_data_and_prompt_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = ["red", "blue"]
    train = [row(0, choices=two), row(1, choices=two), row(2, kind="shape", choices=two, hint="round")]
    train += [row(3, question=" "), row(4, image="b.png")]
    keys = ("data.max_quarantined_share=0.5", "data.train.rows=9", "rollout.sampling.max_tokens=1020")
    overrides = words(tmp_path, train, *keys, "rollout.online_fraction=0.25")
    before = sorted(tmp_path.rglob("*"))
    assert checks.validate(DEMO, overrides, all_rows=False) == ""
    output = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    for told in (
        f"data.train  all 5 questions of {tmp_path}/train.jsonl: 3 can be used\n",
        "  most frequent kinds: colour 2, shape 1\n",
        f"1 × empty question ({tmp_path}/train.jsonl:4)",
        "  columns that are not used: hint\n",
        "held-out questions",
        "9 questions are asked for in data.train: all 3 are taken",
        "<|vision_start|><|image_pad|>×16<|vision_end|>what color?",
        "right, as a judge is told: A. red",
        "online iterations: 2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, … (25.0% of all)",
        "answers up to 1020, together at most 1024: 3 of 3 prompts leave less for them",
        f"room: the learner writes up to {decimal((4 + 3 * (4 + 12)) * parameter_count(PAIR / 'student'))} in ",
    ):
        assert told in output


def test_what_a_run_would_refuse_is_complained_of_together(tmp_path: Path) -> None:
    train = [row(0), row(1), row(2, answer="")]
    wrong = ["learner.workers=1000", "student.checkpoint=nowhere", "learner.zer=1", "teacher.top_k=100000"]
    found = complaints(words(tmp_path, train, *wrong))
    assert "1 of 3 rows cannot be used" in found["data.train"]
    assert "expected room" in found["learner for learning"]
    assert "found nowhere: no such directory, and no model id" in found["student.checkpoint"]
    assert {"learner.zer", "teacher.top_k"} <= found.keys()
    assert "stage 0 of 3 has none" in complaints(words(tmp_path, train[:2]))["schedule"]
    assert "train.jsonl: no row (0 bytes)" in complaints(words(tmp_path, []))["data.train.path"]
    assert "holds no store" in complaints(words(tmp_path, THREE, f"rollout.reuse=[{tmp_path}]"))["rollout.reuse"]


def test_a_place_that_cannot_be_written_is_one_complaint_among_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "astray").symlink_to(tmp_path / "nowhere")
    faults = {"file/run": "Not a directory", "astray/run": "No such file", "a" * 400: "File name too long"}
    for name, why in faults.items():
        for key in ("run.dir", "rollout.store"):
            found = complaints([*words(tmp_path, [row(0), row(1, answer="")]), f"{key}={tmp_path / name}"])
            assert found.keys() - {"schedule"} == {key, "data.train"}, name
            assert why in found[key]


def test_questions_that_cannot_be_asked_are_told_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "narrow.png").write_bytes(png((1, 1000)))
    many = [row(0, image="narrow.png"), *(row(number) for number in range(1, 150))]
    assert checks.validate(DEMO, words(tmp_path, many), all_rows=False) == ""
    assert "student: data.train has 1 of 150 that cannot be asked (q0: " in capsys.readouterr().out
    few = complaints(words(tmp_path, many[:4]))
    assert "found 1 of 4 that cannot be asked (q0: ValueError" in few["data.train"]
    long = complaints(words(tmp_path, [row(n, question="what color? " * (500 if n else 1)) for n in range(3)]))
    assert "found 2 of 3 that cannot be asked (q" in long["data.train"]
    assert "tokens, where engine.max_model_len is 1024)" in long["data.train"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "internvl_chat"}, "Take the same model in transformers' own layout"),
        ({"architectures": None}, "config.json names no architectures, by which engines know a model"),
    ],
)
def test_a_model_that_nobody_knows_is_a_complaint(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    folder = checkpoint(tmp_path / "student", weights=True, config=config)
    assert told in complaints(words(tmp_path, THREE, f"student.checkpoint={folder}"))["student.checkpoint"]


def test_rows_after_the_first_are_looked_at_when_all_are_wanted(tmp_path: Path) -> None:
    many = [row(number) for number in range(rows.FIRST)]
    assert checks.validate(DEMO, words(tmp_path, many), all_rows=False) == ""
    overrides = words(tmp_path, many + [row(number, image="gone.png") for number in range(900, 910)])
    left = "rows after the first 200 of each source in data.train were not looked at (--all)"
    assert checks.validate(DEMO, overrides, all_rows=False) == left
    assert "10 of 210 rows cannot be used" in complaints(overrides, all_rows=True)["data.train"]


def test_another_run_in_the_directory_is_a_complaint_and_so_is_one_under_way(tmp_path: Path) -> None:
    overrides = words(tmp_path, THREE)
    directory = RunDirectory(config.load(DEMO, overrides))
    directory.claim()
    assert "as in the run that" in complaints([*overrides, "run.seed=7"])["run.seed"]
    with directory.locked():
        assert "another process works here" in complaints(overrides)["run.dir"]
    directory.file("journal.json").write_text("{")
    assert "not JSON" in complaints(overrides)["run.dir"]


def test_a_login_node_without_torch_looks_at_what_it_can(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'ray', 'vllm', 'deepspeed')))"
    program = f"{blocked}; from masters_ray import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "validate", str(DEMO), *words(tmp_path, THREE)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    left = ("placement: not looked at, since ray", "student.checkpoint: not looked at, since torch")
    for told in ("3 questions", *(f"{one} is not installed here" for one in left)):
        assert told in ended.stdout


def test_different_tokenizers_are_refused_with_what_differs(tmp_path: Path) -> None:
    def swapped(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        one, other = list(vocabulary)[300:302]
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]

    folder = checkpoint(tmp_path / "student", weights=True, tokenizer=swapped)
    assert "differs in vocabulary" in refused(f"student.checkpoint={folder}")["student.checkpoint"]


def test_half_of_a_matrix_cannot_be_frozen() -> None:
    assert "one matrix" in refused("learner.frozen=[vision,lm_head]")["learner.frozen"]
    checks.load(DEMO, ["learner.frozen=[lm_head,embeddings]"])


def test_quantised_weights_can_be_neither_masked_nor_trained(tmp_path: Path) -> None:
    def packed(tensors: dict[str, Any]) -> None:
        tensors.update({name: one.to(torch.int8) for name, one in tensors.items() if "mlp.up_proj" in name})

    folder = checkpoint(tmp_path / "packed", tensors=packed)
    found = refused(f"teacher.checkpoint={folder}", f"student.checkpoint={folder}")
    assert "packed numbers in model.language_model.layers.0.mlp.up_proj.weight" in found["teacher.checkpoint"]
    assert "can be trained" in found["student.checkpoint"]
    checks.load(DEMO, [f"teacher.checkpoint={folder}", "schedule.max_ratio=0"])  # it is never masked
    awq = {"quantization_config": {"quant_method": "awq"}}
    folder = checkpoint(tmp_path / "awq", weights=True, config=lambda config: config["text_config"].update(awq))
    assert "(awq)" in refused(f"teacher.checkpoint={folder}")["teacher.checkpoint"]


def test_a_teacher_whose_weights_are_in_no_known_part_is_refused(tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("language_model.layers", "transformer.blocks")] = tensors.pop(name)

    word = f"teacher.checkpoint={checkpoint(tmp_path / 'other', tensors=renamed)}"
    found = refused(word)
    assert "expected matrices of language in" in found["teacher.mask"]
    assert "teacher.mask" not in refused(word, "teacher.mask.vision=true")
    assert "21 of no known part: model.transformer.blocks.0.mlp" in found["teacher.checkpoint"]


def test_a_teacher_with_another_template_is_told_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = f"teacher.checkpoint={checkpoint(tmp_path, 'teacher', weights=True, template=TEMPLATE + ' ')}"
    checks.load(DEMO, [word])
    assert "teacher has other processor files or another chat template than the student" in capsys.readouterr().out
    assert "stored, since teacher makes other prompts" in refused(word, "learner.teacher=live")["learner.teacher"]


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
    chat = Chat(PAIR / "student")
    ids = chat.inputs(question_messages(problem()), [picture()])["input_ids"]
    monkeypatch.setattr(chat, "inputs", lambda *_: {"input_ids": ids.flip(1)})
    with pytest.raises(CheckpointError, match="engine and learner read different prompts: beside the pictures of p "):
        check_ids(chat, problem())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision_config": {"patch_size": 28}}, "patch_size 8, config.json has vision_config.patch_size 28"),
        ({"vision_config": {"spatial_merge_size": 3}}, "merge_size 2, config.json has vision_config.spatial_merge"),
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
    assert "at most 4096" in refused(*words)["teacher.engine.max_model_len"]
    text = json.loads((PAIR / "teacher" / "config.json").read_text())["text_config"]
    scaled = {"text_config": text | {"rope_parameters": text["rope_parameters"] | {"factor": 2.0}}}
    checks.load(DEMO, [*words, f"teacher.checkpoint={checkpoint(tmp_path, 'teacher', weights=True, config=scaled)}"])


def test_ends_that_differ_are_told_and_those_apart_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def teacher(name: str, **files: Any) -> str:
        return f"teacher.checkpoint={checkpoint(tmp_path / name, 'teacher', weights=True, **files)}"

    checks.load(DEMO, [teacher("two", generation_config={"eos_token_id": [2, 0]})])
    told = "answers of teacher end with tokens [0, 2], the student's with [2]; teacher is kept from writing [0]"
    assert told in capsys.readouterr().out
    other = teacher("other", generation_config={"eos_token_id": 0}, tokenizer_config={"eos_token": "<"})
    assert "expected a token that ends answers of teacher too: [0] in " in refused(other)["student.checkpoint"]
    for number, end in enumerate(("<|im_end|>", True, -1, [2, "3"])):
        found = refused(teacher(str(number), generation_config={"eos_token_id": end}))["student.checkpoint"]
        assert "generation_config.json: eos_token_id: expected a token's id or a list" in found
