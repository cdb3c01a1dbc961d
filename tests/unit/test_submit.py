import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from masters_ray import checks, submit
from masters_ray.checks.places import COPY
from masters_ray.cli import main
from masters_ray.cluster import connected
from masters_ray.config import Config, DataSource, Growth, Teacher
from masters_ray.errors import ConfigError, SubmitError
from tests.conftest import PAIR, ROOT

DEMO = "conf/demo.yaml"


def test_paths_mean_the_same_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model id is no path, an absolute path stays."""
    for name in ("data/rows", "models/large", "models/teacher"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.run.dir, config.data.train[0].path, config.data.held_out[0].path = (
        "runs/x",
        "data/rows",
        "/shared/rows.jsonl",
    )
    config.data.held_out.append(DataSource(path="data/rows/*.parquet", images="models"))
    config.data.held_out.append(DataSource(path="org/name", split="train"))
    config.teacher.checkpoint, config.student.checkpoint = "models/teacher", "org/name"
    config.rollout.store, config.rollout.reuse = "s3://bucket/run", ["runs/old", "s3://bucket/old"]
    config.growth = [Growth(teacher=Teacher(checkpoint=name)) for name in ("models/large", "org/name")]
    merged = submit._absolute(dataclasses.asdict(config), tmp_path)
    assert [one["teacher"]["checkpoint"] for one in merged["growth"]] == [f"{tmp_path}/models/large", "org/name"]
    assert merged["rollout"]["reuse"] == [f"{tmp_path}/runs/old", "s3://bucket/old"]
    assert merged["rollout"]["store"] == "s3://bucket/run"
    assert merged["run"]["dir"] == f"{tmp_path}/runs/x"
    assert [merged[model]["checkpoint"] for model in ("teacher", "student")] == [
        f"{tmp_path}/models/teacher",
        "org/name",
    ]
    assert [one["path"] for one in merged["data"]["train"]] == [f"{tmp_path}/data/rows"]
    assert [(one["path"], one["images"]) for one in merged["data"]["held_out"]] == [
        ("/shared/rows.jsonl", None),
        (f"{tmp_path}/data/rows/*.parquet", f"{tmp_path}/models"),
        ("org/name", None),
    ]


def test_the_package_and_one_file_of_the_merged_configuration_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From any directory: interpolations stay as they are written, further files and words are merged here."""
    travelled: dict[str, Any] = {}

    def submit_job(entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> str:
        working_dir = Path(runtime_env["working_dir"])
        travelled.update({file.name: file.read_text() for file in working_dir.iterdir()}, entrypoint=entrypoint)
        travelled.update(modules=runtime_env["py_modules"], excludes=runtime_env["excludes"], name=metadata["name"])
        return "job-1"

    monkeypatch.setattr(submit, "_client", lambda _: Mock(submit_job=submit_job))
    monkeypatch.setenv("PLACE", "/hidden-place")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text("learner: {workers: 2}\n")
    words = ["more.yaml", "run.dir=x", "rollout.store=${oc.env:PLACE}/rows"]
    assert submit.submit(str(ROOT / DEMO), words, None, follow=False) == 0
    merged = yaml.safe_load(travelled.pop("demo.yaml"))
    assert merged["run"]["dir"] == f"{tmp_path}/x"
    assert merged["rollout"]["store"] == "${oc.env:PLACE}/rows"
    assert merged["learner"]["workers"] == 2
    assert travelled == {
        "entrypoint": "python -m masters_ray.cli run demo.yaml",
        "modules": [str(ROOT / "masters_ray")],
        "excludes": ["shipped/", "__pycache__/"],
        "name": "demo",
    }
    assert capsys.readouterr().out == "job job-1 submitted: python -m masters_ray.cli run demo.yaml\n"


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(SubmitError, match="127.0.0.1:1: no cluster answers there"):
        submit._client("http://127.0.0.1:1")


def test_the_program_says_what_is_wrong_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert main(list(words)) == 1
        return capsys.readouterr().err

    assert main(["validate", DEMO]) == 0
    assert "no complaint" in capsys.readouterr().out
    assert "Did you mean learner.workers?" in told("validate", DEMO, "learner.workrs=2")
    for command in ("mask-scan", "judge-audit"):
        assert "data.train_rows: expected greater than 0, found '0'" in told(command, DEMO, "--questions", "0")
    long = "/" + "a" * 400
    for word in (f"student.checkpoint={long}", f"rollout.reuse=[{long}]"):
        said = told("validate", DEMO, word)
        assert long in said and "File name too long" in said


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_named_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="Start one with ray start --head"), connected(Config().cluster):
        raise AssertionError("connected to nothing")


def test_a_job_that_is_no_longer_followed_goes_on_and_can_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    async def until_ctrl_c(_: str) -> AsyncIterator[str]:
        yield "a line\n"
        raise KeyboardInterrupt

    assert submit._follow(Mock(tail_job_logs=until_ctrl_c), "job-1", "http://head:8265") == 130
    told = capsys.readouterr().out
    assert "job job-1 goes on; follow it with: ray job logs --follow --address http://head:8265 job-1" in told


def test_a_run_in_the_jobs_own_copy_of_the_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / COPY / "_ray_pkg_1"
    shutil.copytree(ROOT / "conf", copy / "conf")
    pair = [f"{name}.checkpoint={PAIR / name}" for name in ("teacher", "student")]
    pair += [f"data.{name}.path={ROOT / 'runs' / 'easy_vqa' / 'test.jsonl'}" for name in ("train", "held_out")]
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match="run.dir: expected a whole path that every node sees, found 'runs/x'"):
        checks.load(DEMO, ["run.dir=runs/x", *pair])
    checks.load(DEMO, [f"run.dir={tmp_path}", *pair])


def test_a_cluster_that_is_still_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, full = (RuntimeError(f"status code 500: {told}") for told in ("No available agent to", "disk full"))
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    agent = Mock(**{"submit_job.side_effect": [starting, starting, "job-1", full]})
    assert submit._handed_over(agent, entrypoint="x") == "job-1"
    with pytest.raises(SubmitError, match="did not take the job.*disk full"):
        submit._handed_over(agent, entrypoint="x")
