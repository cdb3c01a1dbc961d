import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from masters_ray import config, preflight
from masters_ray.errors import ConfigError
from masters_ray.pipeline import inputs
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.preflight import gpus, machine, rows
from tests.builders import png
from tests.conftest import PAIR, ROOT

DEMO = ROOT / "conf" / "demo.yaml"


@pytest.fixture(autouse=True)
def _in_the_projects_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def row(number: int, **other: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "question": "what color?", "answer": "red", "image": "a.png", "kind": "colour"} | other


def source(folder: Path, content: Sequence[dict[str, Any]], name: str = "train") -> list[str]:
    """The words that make the rows a run's data."""
    (folder / "a.png").write_bytes(png())
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in content))
    return [f"data.{name}.format=jsonl", f"data.{name}.path={folder / name}.jsonl", f"data.{name}.rows=null"]


def words(folder: Path, train: Sequence[dict[str, Any]], *more: str) -> list[str]:
    held_out = source(folder, [row(number) for number in range(3)], "held_out")
    return [*source(folder, train), *held_out, f"run.dir={folder / 'deep' / 'run'}", *more]


def complaints(overrides: list[str], *, whole: bool = False) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        preflight.validate(DEMO, overrides, whole=whole)
    return {one.where: str(one) for one in caught.value.complaints}


def test_validate_shows_rows_kinds_reasons_and_a_prompt_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [
        *(row(number, choices=["red", "blue"]) for number in range(2)),
        row(2, kind="shape", choices=["red", "blue"], hint="round"),
        row(3, question=" "),
        row(4, image="b.png"),
    ]
    overrides = words(tmp_path, train, "data.max_quarantined_share=0.5", "data.train.rows=9")
    before = sorted(tmp_path.rglob("*"))
    assert preflight.validate(DEMO, overrides, whole=False) == ""
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    assert f"data.train  all 5 rows of {tmp_path}/train.jsonl: 3 questions (colour 2, shape 1)" in said
    assert f"1 × empty question ({tmp_path}/train.jsonl:4)" in said
    assert "  columns that are not used: hint (1 row)\n" in said
    assert "held-out questions" in said
    assert "data.train.rows asks for 9: all 3 are taken" in said
    assert "<|vision_start|><|image_pad|>×16<|vision_end|>what color?" in said
    assert "right, as a judge is told: A. red" in said
    assert "student: prompts of data.held_out have" in said
    assert "room: the run writes up to" in said


def test_what_a_run_would_refuse_is_complained_of_together(tmp_path: Path) -> None:
    train = [row(0), row(1), row(2, answer="")]
    found = complaints(words(tmp_path, train, "learner.workers=1000", "student.checkpoint=nowhere", "learner.zer=1"))
    assert "1 of 3 rows cannot be used" in found["data.train"]
    assert "stage 0 of 3 has none" in complaints(words(tmp_path, train[:2]))["schedule"]
    assert "at most" in found["CPU for the learner"]
    assert {"student.checkpoint", "learner.zer"} <= found.keys()
    assert "train.jsonl: no row (0 bytes)" in complaints(words(tmp_path, []))["data.train.path"]


def test_what_the_processor_fails_on_is_the_rows_and_not_the_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "narrow.png").write_bytes(png((1, 1000)))
    many = [row(0, image="narrow.png"), *(row(number) for number in range(1, 150))]
    preflight.validate(DEMO, words(tmp_path, many), whole=False)
    assert "student: data.train has 1 of 150 questions on which its processor fails (q0: " in capsys.readouterr().out
    few = complaints(words(tmp_path, many[:4]))
    assert "1 of 4 questions on which its processor fails (q0: ValueError" in few["data.train"]
    assert "student.checkpoint" not in few


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": None}, "names no architectures"),
        ({"image_token_id": 6, "video_token_id": 5}, "pictures stand at token 6, and the processor puts none there"),
    ],
)
def test_a_config_json_that_does_not_fit_its_processor_is_a_complaint(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(PAIR / "student", tmp_path / "student")
    content = json.loads((folder / "config.json").read_text())
    content |= change
    (folder / "config.json").write_text(json.dumps(content))
    found = complaints(words(tmp_path, [row(number) for number in range(3)], f"student.checkpoint={folder}"))
    assert told in found["student.checkpoint"]


@pytest.mark.parametrize("name", ["patch_size", "temporal_patch_size", "merge_size"])
def test_a_processor_that_cuts_other_patches_than_the_model_has_is_a_complaint(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(PAIR / "student", tmp_path / "student")
    [file] = [one for one in folder.glob("*processor_config.json") if f'"{name}"' in one.read_text()]
    text = file.read_text()
    file.write_text(re.sub(rf'("{name}": )(\d+)', lambda found: f"{found[1]}{int(found[2]) * 2}", text, count=1))
    found = complaints(words(tmp_path, [row(number) for number in range(3)], f"student.checkpoint={folder}"))
    assert f"cuts pictures with {name}" in found["student.checkpoint"]


def test_pictures_that_the_processor_shrinks_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "large.png").write_bytes(png((1000, 1000)))
    train = [row(0), row(1), row(2, image="large.png")]
    preflight.validate(DEMO, words(tmp_path, train), whole=False)
    seen = capsys.readouterr().out
    assert "student: the processor shrinks pictures of 1 of 3 questions of data.train to less than 50%" in seen
    assert "q2, 1,000,000 pixels to 16,384): small writing may be lost" in seen
    assert "questions of data.held_out to less" not in seen


@pytest.mark.parametrize("target", ["itself", "nowhere"])
def test_a_link_that_leads_nowhere_is_no_directory(tmp_path: Path, target: str) -> None:
    link = tmp_path / "itself"
    link.symlink_to(tmp_path / target)
    for path in (link, link / "run"):
        [told] = machine.writable("run.dir", path)
        assert f"{link}, a link to {tmp_path / target}, which is not there" in str(told)


def test_rows_after_the_first_are_looked_at_when_all_are_wanted(tmp_path: Path) -> None:
    many = [row(number) for number in range(rows.FIRST)]
    assert preflight.validate(DEMO, words(tmp_path, many), whole=False) == ""
    overrides = words(tmp_path, many + [row(number, image="gone.png") for number in range(900, 910)])
    assert preflight.validate(DEMO, overrides, whole=False) == (
        "rows after the first 200 of data.train were not looked at (--all)"
    )
    assert "10 of 210 rows cannot be used" in complaints(overrides, whole=True)["data.train"]


def test_prompts_that_no_engine_takes_are_a_complaint_about_each_model(tmp_path: Path) -> None:
    long = [row(number, question="what color? " * (500 if number else 1)) for number in range(3)]
    found = complaints(words(tmp_path, long))
    assert "2 of 3 do not fit" in found["teacher.engine.max_model_len"]
    assert "2 of 3 do not fit" in found["student.engine.max_model_len"]


def test_a_model_that_transformers_does_not_know_is_a_complaint(tmp_path: Path) -> None:
    folder = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "internvl_chat"}))
    found = complaints(words(tmp_path, [row(number) for number in range(3)], f"teacher.checkpoint={folder}"))
    assert "found model_type 'internvl_chat'" in found["teacher.checkpoint"]


def test_prompts_that_leave_less_than_the_longest_answer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [row(number) for number in range(3)]
    preflight.validate(DEMO, words(tmp_path, train, "rollout.sampling.max_tokens=1020"), whole=False)
    assert "3 of 3 prompts leave less than rollout.sampling.max_tokens" in capsys.readouterr().out


def test_a_teacher_that_reads_another_prompt_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    template = teacher / "chat_template.jinja"
    template.write_text("<|im_start|>system\nLook closely.<|im_end|>" + template.read_text())
    train = [row(number) for number in range(3)]
    assert preflight.validate(DEMO, words(tmp_path, train, f"teacher.checkpoint={teacher}"), whole=False) == ""
    assert "teacher reads another prompt than the student, by its chat template" in capsys.readouterr().out


def test_another_run_in_the_directory_is_a_complaint_and_so_is_one_under_way(tmp_path: Path) -> None:
    train = [row(number) for number in range(3)]
    overrides = words(tmp_path, train)
    directory = RunDirectory(config.load(DEMO, overrides))
    directory.claim()
    assert "'0', as in the run" not in complaints([*overrides, "run.seed=7"])
    assert "as in the run that" in complaints([*overrides, "run.seed=7"])["run.seed"]
    with directory.locked():
        assert "another process works here" in complaints(overrides)["run.dir"]
    with (directory.root / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more
    directory.file("journal.json").write_text("{")
    assert "not JSON" in complaints(overrides)["run.dir"]


@pytest.mark.parametrize("key", ["run.dir", "rollout.store"])
def test_a_directory_that_cannot_be_made_is_a_complaint(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("")
    found = complaints(words(tmp_path, [row(number) for number in range(3)], f"{key}={tmp_path / 'file' / 'run'}"))
    assert f"{tmp_path / 'file'} cannot be (it is a file)" in found[key]


def test_a_store_to_be_taken_over_must_be_there(tmp_path: Path) -> None:
    found = complaints(words(tmp_path, [row(number) for number in range(3)], f"rollout.reuse=[{tmp_path}]"))
    assert "holds no store" in found["rollout.reuse"]


def test_a_login_node_without_torch_looks_at_what_it_can(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'ray', 'vllm', 'deepspeed')))"
    program = f"{blocked}; from masters_ray import cli; sys.exit(cli.main(sys.argv[1:]))"
    train = [row(number) for number in range(3)]
    ended = subprocess.run(
        [sys.executable, "-c", program, "validate", str(DEMO), *words(tmp_path, train)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "3 questions" in ended.stdout
    assert "prompts: not looked at, since transformers and torch are not installed here" in ended.stdout
    assert (
        "no complaint about what was looked at; placement was not looked at, since ray is not installed here"
        in ended.stdout
    )


def test_what_a_run_writes_is_estimated_from_its_keys(tmp_path: Path) -> None:
    settings = config.load(DEMO, [*words(tmp_path, [row(n) for n in range(3)]), "schedule.stage_data=all"])
    loaded = inputs.load_source(settings, settings.data.train, [], tmp_path / "spool", 0.0)
    train = rows.Seen(name="train", source=settings.data.train, loaded=loaded, more=False)
    picture = len(png())
    assert machine.rollout_bytes(settings, [train]) == 3 * 3 * (picture + 8 * 8 * (2 * 32 + 12))
    assert machine.learner_bytes(settings, 1000) == 1000 * (4 + 3 * (4 + 12))
    adapters = config.load(DEMO, ["learner.lora.rank=8"])
    assert machine.learner_bytes(adapters, 1000) == 4000


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        ("580.65.06", "13.0", None),
        ("570.124.06", "13.0", "version 580 or later"),
        ("570.124.06", "12.8", None),
        ("", "13.0", "no answer of nvidia-smi"),
        ("580.65.06", None, "one for CPUs alone"),
    ],
)
def test_a_driver_must_run_the_cuda_of_torch(driver: str, cuda: str | None, said: str | None) -> None:
    found = [str(one) for one in gpus.driver_complaints(driver, cuda)]
    assert found == [] if said is None else said in found[0]


def test_a_kernel_that_does_not_compile_is_told_with_what_is_missing() -> None:
    assert gpus.compiler_complaints("print('compiled')") == []
    missing = "import sys; sys.exit('In file included\\nmain.c:5:10: fatal error: Python.h: No such file\\nTraceback')"
    assert "fatal error: Python.h" in str(gpus.compiler_complaints(missing)[0])
