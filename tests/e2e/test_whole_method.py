"""Everything that is not the default in one run: two teachers, listed stages, a refreshed student, a judge for each
source, easy questions first, a live teacher and two updates per step."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from masters_ray import store
from masters_ray.files import read_lines
from masters_ray.models import weights
from tests.conftest import PAIR, ROOT
from tests.e2e.runs import SMALL, long_form, masters_ray, summary

pytestmark = pytest.mark.e2e


@long_form
def test_two_teachers_one_after_the_other_and_a_student_that_writes_anew(tmp_path: Path) -> None:
    demo = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "demo.yaml"))
    assert isinstance(demo, dict)
    demo["schedule"] = {"stages": [{"ratio": 0.2, "share": 1.0}]}
    grown = demo["teacher"] | {"mask": {"vision": True}}
    demo["growth"] = [{"teacher": grown, "schedule": {"stages": [{"ratio": 0.1}]}}]
    file = tmp_path / "whole.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(demo)))
    run = tmp_path / "run"
    settings = "data.train.rows=16 data.order=easy_to_hard data.difficulty=likelihood rollout.student_refresh=stage "
    settings += "judge.of_teacher=teacher judge.of_student=student learner.teacher=live learner.updates_per_step=2 "
    settings += "learner.aggregation=token learner.kl_estimator=k2"
    done = masters_ray("run", str(file), f"run.dir={run}", *SMALL, *settings.split())
    assert done.returncode == 0, done.stderr
    first, second = summary(run)["stages"]
    assert [(stage["ratio"], stage["rows"]) for stage in (first, second)] == [(0.2, 8), (0.1, 8)]
    rows = [next(iter(store.read(run / "rollouts" / f"stage-{stage}"))) for stage in (0, 1)]
    before, refreshed = map(weights.digest, (PAIR / "student", run / "students" / "stage-0"))
    assert [row.student_digest for row in rows] == [before, refreshed]
    assert before != refreshed
    keys = [store.read_key(run / "rollouts" / f"stage-{stage}") for stage in (0, 1)]
    assert {key["reference_digest"] for key in keys} == {before}
    assert [key["mask"]["vision"] for key in keys] == [False, True]
    [told] = (run / "difficulty").iterdir()
    said = {row["question"]: row["said"] for row in read_lines(told)}
    accounts = [store.read_accounts(run / "rollouts" / f"stage-{stage}").values() for stage in (0, 1)]
    asked: dict[int, str] = {}
    for account in (*accounts[0], *accounts[1]):
        asked |= account.asked
    order = [said[asked[position]] for position in range(16)]
    assert len(said) == 16
    assert order[0] in sorted(order)[-2:] and order[-1] in sorted(order)[:2], "likeliest labels come first, by tenths"
    steps = [(step["stage"], step["jsd_error_bound"]) for step in read_lines(run / "metrics.jsonl")]
    assert steps == [(0, 0.0), (1, 0.0)], "a live teacher leaves nothing out"
    assert "the learner goes on after step 1" in done.stdout
    assert {model["checkpoint"] for model in summary(run)["teachers"]} == {"examples/toy/pair/teacher"}
