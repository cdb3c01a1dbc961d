"""What ``validate`` says of data, directories, prompts and the machine."""

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from masters_ray import checks, config
from masters_ray.checks import machine, rows
from masters_ray.errors import ConfigError
from masters_ray.pipeline import inputs
from masters_ray.pipeline.directory import RunDirectory
from tests.builders import checkpoint, png
from tests.conftest import DEMO, PAIR


def row(number: int, **other: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "question": "what color?", "answer": "red", "image": "a.png", "kind": "colour"} | other


THREE = [row(number) for number in range(3)]


def words(folder: Path, train: Sequence[dict[str, Any]], *more: str) -> list[str]:
    """The words that make the rows a run's data."""
    (folder / "a.png").write_bytes(png())
    found = [f"run.dir={folder / 'deep' / 'run'}", *more]
    for name, content in (("train", train), ("held_out", THREE)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in content))
        found += [f"data.{name}.format=jsonl", f"data.{name}.path={folder / name}.jsonl", f"data.{name}.rows=null"]
    return [*found, *more]


def complaints(overrides: list[str], *, all_rows: bool = False) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        checks.validate(DEMO, overrides, all_rows=all_rows)
    return {one.where: str(one) for one in caught.value.complaints}


Said = Callable[[list[str]], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What is said of a configuration without a complaint."""

    def validated(overrides: list[str]) -> str:
        assert checks.validate(DEMO, overrides, all_rows=False) == ""
        return capsys.readouterr().out

    return validated


def test_validate_shows_rows_kinds_reasons_and_a_prompt_and_leaves_nothing_behind(tmp_path: Path, said: Said) -> None:
    two = ["red", "blue"]
    train = [row(0, choices=two), row(1, choices=two), row(2, kind="shape", choices=two, hint="round")]
    train += [row(3, question=" "), row(4, image="b.png")]
    overrides = words(tmp_path, train, "data.max_quarantined_share=0.5", "data.train.rows=9")
    overrides.append("rollout.online_fraction=0.25")
    before = sorted(tmp_path.rglob("*"))
    output = said(overrides)
    assert sorted(tmp_path.rglob("*")) == before
    for told in (
        f"data.train  all 5 rows of {tmp_path}/train.jsonl: 3 questions (colour 2, shape 1)",
        f"1 × empty question ({tmp_path}/train.jsonl:4)",
        "  columns that are not used: hint (1 row)\n",
        "held-out questions",
        "data.train.rows asks for 9: all 3 are taken",
        "<|vision_start|><|image_pad|>×16<|vision_end|>what color?",
        "right, as a judge is told: A. red",
        "student: prompts of data.held_out have",
        "room: the learner writes up to",
        "online iterations: 2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, … (25.0% of all)",
    ):
        assert told in output


def test_what_a_run_would_refuse_is_complained_of_together(tmp_path: Path) -> None:
    train = [row(0), row(1), row(2, answer="")]
    found = complaints(words(tmp_path, train, "learner.workers=1000", "student.checkpoint=nowhere", "learner.zer=1"))
    assert "1 of 3 rows cannot be used" in found["data.train"]
    assert "at most" in found["CPU for the learner"]
    assert {"student.checkpoint", "learner.zer"} <= found.keys()
    assert "stage 0 of 3 has none" in complaints(words(tmp_path, train[:2]))["schedule"]
    assert "train.jsonl: no row (0 bytes)" in complaints(words(tmp_path, []))["data.train.path"]
    assert "holds no store" in complaints(words(tmp_path, THREE, f"rollout.reuse=[{tmp_path}]"))["rollout.reuse"]
    (tmp_path / "file").touch()
    for key in ("run.dir", "rollout.store"):
        found = complaints(words(tmp_path, THREE, f"{key}={tmp_path / 'file' / 'run'}"))
        assert f"{tmp_path / 'file'} cannot be (it is a file)" in found[key]


def test_what_the_processor_fails_on_is_the_rows_and_not_the_checkpoints(tmp_path: Path, said: Said) -> None:
    (tmp_path / "narrow.png").write_bytes(png((1, 1000)))
    many = [row(0, image="narrow.png"), *(row(number) for number in range(1, 150))]
    told = "student: data.train has 1 of 150 questions on which its processor fails (q0: "
    assert told in said(words(tmp_path, many))
    few = complaints(words(tmp_path, many[:4]))
    assert "1 of 4 questions on which its processor fails (q0: ValueError" in few["data.train"]
    assert "student.checkpoint" not in few
    none = complaints(words(tmp_path, [row(number, image="narrow.png") for number in range(3)]))
    assert "expected prompts, found q0: ValueError" in none["student.checkpoint"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": None}, "names no architectures"),
        ({"image_token_id": 6, "video_token_id": 5}, "pictures stand at token 6, and the processor puts none there"),
        ({"model_type": "internvl_chat"}, "found model_type 'internvl_chat'"),
    ],
)
def test_a_config_json_that_does_not_fit_is_a_complaint(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "student", weights=True, config=change)
    assert told in complaints(words(tmp_path, THREE, f"student.checkpoint={folder}"))["student.checkpoint"]


@pytest.mark.parametrize("name", ["patch_size", "temporal_patch_size", "merge_size"])
def test_a_processor_that_cuts_other_patches_than_the_model_has_is_a_complaint(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "student", weights=True)
    [file] = [one for one in folder.glob("*processor_config.json") if f'"{name}"' in one.read_text()]
    text = file.read_text()
    file.write_text(re.sub(rf'("{name}": )(\d+)', lambda found: f"{found[1]}{int(found[2]) * 2}", text, count=1))
    found = complaints(words(tmp_path, THREE, f"student.checkpoint={folder}"))
    assert f"cuts pictures with {name}" in found["student.checkpoint"]


def test_prompts_that_lose_something_are_told(tmp_path: Path, said: Said) -> None:
    (tmp_path / "large.png").write_bytes(png((1000, 1000)))
    seen = said(words(tmp_path, [row(0), row(1), row(2, image="large.png")], "rollout.sampling.max_tokens=1020"))
    assert "student: the processor shrinks pictures of 1 of 3 questions of data.train to less than 50%" in seen
    assert "q2, 1,000,000 pixels to 16,384): small writing may be lost" in seen
    assert "questions of data.held_out to less" not in seen
    assert "3 of 3 prompts leave less than rollout.sampling.max_tokens" in seen

    template = (PAIR / "teacher" / "chat_template.jinja").read_text()
    template = f"<|im_start|>system\nLook closely.<|im_end|>{template}"
    teacher = checkpoint(tmp_path / "teacher", "teacher", weights=True, template=template)
    seen = said(words(tmp_path, THREE, f"teacher.checkpoint={teacher}"))
    assert "teacher reads another prompt than the student, by its chat template" in seen


def test_prompts_that_no_engine_takes_are_a_complaint_about_each_model(tmp_path: Path) -> None:
    found = complaints(words(tmp_path, [row(n, question="what color? " * (500 if n else 1)) for n in range(3)]))
    for model in ("teacher", "student"):
        assert "2 of 3 do not fit" in found[f"{model}.engine.max_model_len"]


def test_rows_after_the_first_are_looked_at_when_all_are_wanted(tmp_path: Path) -> None:
    many = [row(number) for number in range(rows.FIRST)]
    assert checks.validate(DEMO, words(tmp_path, many), all_rows=False) == ""
    overrides = words(tmp_path, many + [row(number, image="gone.png") for number in range(900, 910)])
    left = "rows after the first 200 of data.train were not looked at (--all)"
    assert checks.validate(DEMO, overrides, all_rows=False) == left
    assert "10 of 210 rows cannot be used" in complaints(overrides, all_rows=True)["data.train"]


def test_another_run_in_the_directory_is_a_complaint_and_so_is_one_under_way(tmp_path: Path) -> None:
    overrides = words(tmp_path, THREE)
    directory = RunDirectory(config.load(DEMO, overrides))
    directory.claim()
    assert "as in the run that" in complaints([*overrides, "run.seed=7"])["run.seed"]
    with directory.locked():
        assert "another process works here" in complaints(overrides)["run.dir"]
    with (directory.root / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more
    directory.file("journal.json").write_text("{")
    assert "not JSON" in complaints(overrides)["run.dir"]


def test_a_link_that_leads_nowhere_and_a_name_that_is_too_long_are_no_directories(tmp_path: Path) -> None:
    for name, target in (("itself", "itself"), ("astray", "nowhere")):
        link = tmp_path / name
        link.symlink_to(tmp_path / target)
        for path in (link, link / "run"):
            [told] = machine.writable("run.dir", path)
            assert f"{link} cannot be (a link to {tmp_path / target}, which is not there)" in str(told)
    assert "File name too long" in str(*machine.writable("run.dir", tmp_path / ("a" * 400)))


def test_a_login_node_without_torch_looks_at_what_it_can(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'ray', 'vllm', 'deepspeed')))"
    program = f"{blocked}; from masters_ray import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "validate", str(DEMO), *words(tmp_path, THREE)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for told in (
        "3 questions",
        "prompts: not looked at, since transformers and torch are not installed here",
        "no complaint about what was looked at; placement was not looked at, since ray is not installed here",
    ):
        assert told in ended.stdout


def test_what_a_run_writes_is_estimated_from_its_keys(tmp_path: Path) -> None:
    settings = config.load(DEMO, [*words(tmp_path, THREE), "schedule.stage_data=all"])
    loaded = inputs.load_source(settings, settings.data.train, [], tmp_path / "spool", 0.0)
    assert machine.rollout_bytes(settings, loaded.problems, 3) == 3 * 3 * (len(png()) + 8 * 8 * (2 * 32 + 12))
    assert machine.learner_bytes(settings, 1000) == 1000 * (4 + 3 * (4 + 12))
    assert machine.learner_bytes(config.load(DEMO, ["learner.lora.rank=8"]), 1000) == 4000


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print('ran')", ""),
        ("raise SystemExit('main.c:5:10: fatal error: Python.h: No such file\\nTraceback')", "fatal error: Python.h"),
        ("raise RuntimeError('The NVIDIA driver on your system is too old')", "RuntimeError: The NVIDIA driver on yo"),
        ("raise AssertionError('Torch not compiled with CUDA enabled')", "Torch not compiled with CUDA enabled"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_kernel_that_does_not_run_is_told_with_what_is_missing(program: str, told: str) -> None:
    found = machine.failure(program)
    assert told in found and bool(told) == bool(found)
