import contextlib
import dataclasses
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from masters_ray.config import Lora
from masters_ray.errors import LearnerError
from masters_ray.families import Architecture
from masters_ray.learner.checkpoints import find
from masters_ray.learner.job import Report, TakenStep
from masters_ray.learner.trainer import fit
from masters_ray.records import LeftOut, Problem, RolloutGroup, SkippedStep, StepMetrics
from tests.conftest import PAIR, ROOT
from tests.e2e.learning import ONE_BY_ONE, Told, job, rollouts, state, stored, train

pytestmark = pytest.mark.e2e
TIMES = ("seconds", "tokens_per_second", "mfu", "memory_gib")
"""Fields of StepMetrics that differ between equal runs."""
Course = tuple[dict[int, dict[str, Any]], dict[str, torch.Tensor]]
"""What each step reported, and the trained weights."""


@pytest.fixture(scope="module")
def rows(questions: list[Problem]) -> list[RolloutGroup]:
    return rollouts(questions)


def curve(steps: list[StepMetrics]) -> dict[int, dict[str, Any]]:
    """What each step reported, by its number; a step taken twice must have said the same twice."""
    found: dict[int, dict[str, Any]] = {}
    for one in steps:
        said = {name: value for name, value in dataclasses.asdict(one).items() if name not in TIMES}
        assert found.setdefault(one.step, said) == said
    return found


@pytest.fixture(scope="module")
def uninterrupted(local_ray: None, rows: list[RolloutGroup], tmp_path_factory: pytest.TempPathFactory) -> Course:
    """Nine steps of one group."""
    root = tmp_path_factory.mktemp("uninterrupted")
    told = train(root, stored(root / "rollouts", rows), **ONE_BY_ONE)
    assert [found.step for found in find(root / "learner" / "checkpoints")][-2:] == [8, 9]
    return curve(told.steps), state(root / "student")


def test_a_learner_that_is_asked_to_stop_keeps_every_step_and_goes_on_to_the_bit(
    uninterrupted: Course, rows: list[RolloutGroup], tmp_path: Path
) -> None:
    """It would write its first checkpoint after the last step."""
    told = Told()

    def on_news(news: Report) -> None:
        told.reports.append(news)
        if isinstance(news, TakenStep) and news.metrics.step == 1:
            raise KeyboardInterrupt

    settings, folders = ONE_BY_ONE | {"checkpoint_every": 100}, stored(tmp_path / "rollouts", rows)
    with pytest.raises(KeyboardInterrupt):
        fit(job(tmp_path, **settings), folders, on_news)
    [saved] = find(tmp_path / "learner" / "checkpoints")
    assert [one.step for one in told.steps] == list(range(1, saved.step + 1))
    assert saved.step < 9
    assert not (tmp_path / "student").exists()
    fit(job(tmp_path, **settings), folders, told.reports.append)
    assert f"the learner goes on after step {saved.step}" in told.all(str)
    expected, trained = uninterrupted
    assert curve(told.steps) == expected
    assert all(torch.equal(trained[name], tensor) for name, tensor in state(tmp_path / "student").items())


def test_a_worker_killed_at_any_step_goes_on_to_the_bit(
    uninterrupted: Course, rows: list[RolloutGroup], tmp_path: Path
) -> None:
    at = random.SystemRandom().randint(3, 7)
    print(f"the worker is killed after step {at}")
    told = Told()
    killed: list[int] = []

    def on_news(news: Report) -> None:
        told.reports.append(news)
        if not killed and isinstance(news, TakenStep) and news.metrics.step >= at:
            for process in psutil.Process().children(recursive=True):  # another Ray of the machine has its own
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        killed.append(process.pid)
                        process.kill()

    fit(job(tmp_path, **ONE_BY_ONE, max_failures=1), stored(tmp_path / "rollouts", rows), on_news)
    expected, trained = uninterrupted
    assert killed
    assert any("goes on after step" in note for note in told.all(str))
    assert curve(told.steps) == expected
    assert all(torch.equal(trained[name], tensor) for name, tensor in state(tmp_path / "student").items())


def learn_alone(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.e2e.learning", str(folder)]
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=nothing, text=True, start_new_session=True)


def steps_of(lines: list[str]) -> list[StepMetrics]:
    return [StepMetrics(**json.loads(line.removeprefix("STEP "))) for line in lines if line.startswith("STEP ")]


def test_a_driver_killed_at_any_step_goes_on_to_the_bit_past_a_torn_checkpoint(
    uninterrupted: Course, rows: list[RolloutGroup], tmp_path: Path
) -> None:
    stored(tmp_path / "rollouts", rows)
    at = random.SystemRandom().randint(4, 7)
    print(f"the driver is killed after step {at}")
    process = learn_alone(tmp_path)
    before: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        before.append(line)
        if steps_of([line]) and steps_of([line])[0].step >= at:
            break
    driver = psutil.Process(process.pid)
    for one in (driver, *driver.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    complete = find(tmp_path / "learner" / "checkpoints")
    assert complete
    if len(complete) > 1:
        largest = max(complete[-1].folder.rglob("*.pt"), key=lambda file: file.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    process = learn_alone(tmp_path)
    after, _ = process.communicate()
    lines = after.splitlines()
    assert process.returncode == 0, after
    expected, trained = uninterrupted
    resumed = [int(found[1]) for line in lines if (found := re.search(r"goes on after step (\d+)", line))]
    assert resumed == [complete[-2 if len(complete) > 1 else -1].step]
    assert any("damaged" in line for line in lines) == (len(complete) > 1)
    assert curve([*steps_of(before), *steps_of(lines)]) == expected
    assert all(torch.equal(trained[name], tensor) for name, tensor in state(tmp_path / "student").items())


def test_steps_without_finite_loss_are_skipped_and_counted_until_there_are_too_many(
    local_ray: None, rows: list[RolloutGroup], tmp_path: Path
) -> None:
    written = []
    for row in rows:
        factor = math.nan if row.position in {1, 3, 4} else 1
        answers = [dataclasses.replace(one, behaviour_logprobs=one.reference_logprobs * factor) for one in row.answers]
        written.append(dataclasses.replace(row, answers=tuple(answers)))
    folders = stored(tmp_path / "rollouts", written)
    told = Told()
    last = rf"2 steps in a row were skipped; .* step 5: the loss of {rows[4].problem.id} "
    with pytest.raises(LearnerError, match=last):
        fit(job(tmp_path, **ONE_BY_ONE, max_skipped_in_a_row=1), folders, told.reports.append)
    assert [one.step for one in told.steps] == [1, 3]
    assert [one.step for one in told.all(SkippedStep)] == [2, 4, 5]


def test_adapters_are_trained_alone_exported_alone_and_merged_without_a_row_that_cannot_be_read(
    local_ray: None, rows: list[RolloutGroup], tmp_path: Path
) -> None:
    broken = dataclasses.replace(rows[1], prompt_tokens=7)
    folders = stored(tmp_path / "rollouts", [broken if row is rows[1] else row for row in rows])
    told = train(tmp_path, folders, zero_stage=2, workers=2, dtype="bfloat16", lora=Lora(rank=4, alpha=8))
    assert [(step.groups, step.answer_tokens) for step in told.steps] == [(3, 27), (1, 9), (4, 36)]
    [left_out] = told.all(LeftOut)
    [row] = left_out.rows
    assert (left_out.step, row.row, row.kind) == (1, rows[1].problem.id, "learner")
    assert "stage 0, position 1: expected a prompt of 7 tokens" in row.reason
    adapters = load_file(tmp_path / "student_adapters" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "student_adapters" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    before, after = state(PAIR / "student"), state(tmp_path / "student")
    assert before.keys() == after.keys()
    products = {}
    for name in before:
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in adapters:
            products[name] = adapters[f"{stem}.lora_B.weight"].float() @ adapters[f"{stem}.lora_A.weight"].float()
            assert products[name].any()
    assert (
        set(map(Architecture({"model_type": "qwen3_vl"}).part_of, products)) == {"language"}
        and len(products) == len(adapters) / 2
    )
    for name, tensor in before.items():
        assert torch.allclose(after[name], tensor + 8 / 4 * products.get(name, 0), rtol=1e-2, atol=1e-3), name
