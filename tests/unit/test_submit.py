import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from masters_ray import checks, cli, submit
from masters_ray.checks.places import COPY
from masters_ray.cli import main
from masters_ray.cluster import connected
from masters_ray.config import Config, DataSource, Growth, Teacher
from masters_ray.errors import ConfigError, SubmitError
from tests.conftest import PAIR, ROOT

DEMO = "conf/demo.yaml"


def test_paths_mean_the_same_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy pair travels with the job, a model id is no path, an absolute path stays."""
    for name in ("data/rows", "models/large", "examples/toy/pair/teacher"):
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
    config.teacher.checkpoint, config.student.checkpoint = "examples/toy/pair/teacher", "org/name"
    config.rollout.store, config.rollout.reuse = "s3://bucket/run", ["runs/old", "s3://bucket/old"]
    config.growth = [Growth(teacher=Teacher(checkpoint=name)) for name in ("models/large", "org/name")]
    words = dict(word.split("=", 1) for word in submit._absolute_paths(config, tmp_path))
    growth = [one["teacher"]["checkpoint"] for one in json.loads(words.pop("growth"))]
    assert growth == [f"{tmp_path}/models/large", "org/name"]
    assert json.loads(words.pop("rollout.reuse")) == [f"{tmp_path}/runs/old", "s3://bucket/old"]
    here = {"run.dir": f"{tmp_path}/runs/x", "data.train.path": f"{tmp_path}/data/rows"}
    here |= {
        "data.held_out[1].path": f"{tmp_path}/data/rows/*.parquet",
        "data.held_out[1].images": f"{tmp_path}/models",
    }
    assert words == here | {"rollout.store": "s3://bucket/run"}


def test_only_what_the_job_needs_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("masters_ray", "conf", "jobs", ".venv", "runs", ".git"):
        (tmp_path / name).mkdir()
    assert sorted(submit._excludes(tmp_path)) == ["/.git", "/.venv", "/runs"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SubmitError, match="submit from the project's directory"):
        submit.submit(str(ROOT / DEMO), [], None)
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


def test_words_may_stand_behind_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[str]] = []
    monkeypatch.setattr(cli, "_mask_scan", lambda arguments: taken.append(arguments.overrides))
    assert main(["mask-scan", DEMO, "--ratios", "0.2,0", "run.dir=x"]) == 0
    assert main(["mask-scan", DEMO, "a=1", "--ratios", "0.2,0", "b=2", "--questions", "7", "c=3"]) == 0
    assert taken == [["run.dir=x"], ["a=1", "b=2", "c=3"]]
    for words in ("mask-scan x --ratio 0.2,0", "validate x --al", "mask-scan x --none", "store verify x --none", ""):
        with pytest.raises(SystemExit, match="2"):
            main(words.split())
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert "masters-ray 0." in capsys.readouterr().out


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
