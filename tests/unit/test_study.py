import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import ConfigError, StoreError
from masters_ray.evaluate import Interval, Marked
from masters_ray.files import append_lines, write_json
from masters_ray.method.schedule import ratios
from masters_ray.pipeline import held_out
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.report.render import render
from masters_ray.studies import study as studies
from tests.builders import accuracy, step, summary
from tests.conftest import ROOT
from tests.study_pages import tables, text_of
from tests.unit.test_plan_rates import write_run

TEXT = """
base: conf/demo.yaml
dir: {dir}
seeds: [0, 1]
changes: {{data.train.rows: 48, learner: {{groups_per_step: 8}}}}
reference: whole
variants:
  whole: {{}}
  No mask!: {{schedule: {{max_ratio: 0}}}}
"""


def written(tmp_path: Path, text: str = TEXT) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(text.format(dir=tmp_path / "runs"))
    return str(file)


def two(tmp_path: Path, seeds: str = "[0, 1]") -> tuple[studies.Study, dict[tuple[str, int], Config]]:
    study = studies.read(written(tmp_path, TEXT.replace("[0, 1]", seeds)))
    return study, dict(studies._configs(study))


def test_every_variant_is_a_run_of_its_own_for_each_seed(tmp_path: Path) -> None:
    _, configs = two(tmp_path)
    assert list(configs) == [("whole", 0), ("whole", 1), ("No mask!", 0), ("No mask!", 1)]
    masked, plain = configs["whole", 1], configs["No mask!", 1]
    assert (masked.schedule.max_ratio, plain.schedule.max_ratio) == (0.2, 0.0)
    assert (plain.run.seed, plain.data.train[0].rows, plain.learner.groups_per_step) == (1, 48, 8)
    assert plain.run.dir == str(tmp_path / "runs" / "no-mask" / "seed-1")


def rows(name: str) -> list[Config]:
    """The configuration of each variant of a study in conf/study, in the order of the file."""
    study, found = studies.read(f"conf/study/{name}"), []
    for changes in study.variants.values():
        words = [f"{key}={json.dumps(value)}" for key, value in (study.changes | changes).items()]
        found.append(configuration.load(study.base, words))
    return found


def rewards(config: Config) -> str:
    given = "R_acc + R_distill" if config.reward.alpha else "R_acc"
    return given if config.learner.policy_weight else ""


@pytest.mark.parametrize("name", [file.name for file in sorted((ROOT / "conf" / "study").glob("*.yaml"))])
def test_every_study_in_conf_has_valid_variants_and_changes_no_unknown_key(name: str) -> None:
    assert rows(name)


@pytest.mark.parametrize("name", ["components.yaml", "real_components.yaml"])
def test_the_components_are_the_five_rows_of_f8(name: str) -> None:
    found = rows(name)
    masked = [any(ratio for ratio, _ in ratios(config.schedule)) for config in found]
    rewarded = [(False, ""), (True, ""), (False, "R_acc"), (False, "R_acc + R_distill"), (True, "R_acc + R_distill")]
    assert list(zip(masked, map(rewards, found), strict=True)) == rewarded
    assert all(config.learner.jsd_weight == 1 for config in found), "all of them distil"


def test_judges_and_sources_are_the_three_rows_of_f7_and_two_more_and_of_f6_with_both_rewards() -> None:
    judges = {(config.judge.of_student, config.judge.of_teacher) for config in rows("judge.yaml")}
    paper = {("student", "teacher"), ("teacher", "teacher"), ("student", "student")}
    assert judges == paper | {("teacher", "student"), ("rule", "rule")}
    answers = [(config.rollout.student_answers, config.rollout.teacher_answers) for config in rows("sources.yaml")]
    assert answers == [(8, 0), (4, 4), (0, 8)]
    assert {rewards(config) for config in rows("sources.yaml")} == {"R_acc + R_distill"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("reference: whole", "reference: nobody", "reference .*one of whole, No mask!"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds .*different whole numbers"),
        ("seeds: [0, 1]", "seedz: [0, 1]", "study.yaml: .*seeds: Field required; seedz: Unexpected"),
        ("No mask!", "Whole", "names that differ in letters and digits"),
        ("schedule: {{max_ratio: 0}}", "schedule: {{max_ration: 0}}", "max_ration, variant No mask!"),
        ("schedule: {{max_ratio: 0}}", "rollout.store: /x", "rollout.store, variant No mask!: expected null"),
        ("variants:", "variants: [", "expected a study in YAML"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(old: str, new: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        dict(studies._configs(studies.read(written(tmp_path, TEXT.replace(old, new)))))


def finished(config: Config, correct: list[int], first: int = 0, learning: float = 10.0, waited: float = 0.0) -> None:
    """Leaves a run whose untrained student was right half the time. first: its first question; learning: seconds of the
    learner's phase, of which it waited so many."""
    folder = Path(config.run.dir)
    value = sum(correct) / len(correct)
    after, before = accuracy(value, value, value), accuracy(0.5, 0.4, 0.6)
    accuracies = dataclasses.replace(summary().accuracy, student_after=after, student_before=before)
    phases = {"rollouts": 99.0, "learner": learning}
    write_json(folder / "summary.json", summary(accuracy=accuracies, phases=phases))
    wait = {"rollout_wait_s": waited / 20}
    steps = [step(number, jsd=1.0 if number < 18 else 0.25, **wait) for number in range(20)]
    append_lines(folder / "metrics.jsonl", list(map(dataclasses.asdict, steps)))
    for name, own in (("student_before", [n % 2 for n in range(len(correct))]), ("student_after", correct)):
        marks = [
            Marked(id=str(number), kind="colour", label="red", answer="red", finish="stop", correct=bool(right))
            for number, right in enumerate(own, first)
        ]
        held_out.write_marks(folder / "evaluation" / f"{name}.json", marks, "questions", folder.parent.name)


def test_differences_are_paired_by_seed_and_by_question_and_times_are_of_the_learners_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seed asks other held-out questions; three are asked by both. Rows, which variants share, take no time."""
    study, configs = two(tmp_path)
    right = {("whole", 0): 8, ("whole", 1): 6, ("No mask!", 0): 7, ("No mask!", 1): 5}
    for (name, seed), config in configs.items():
        marks = [1] * right[name, seed] + [0] * (10 - right[name, seed])
        waited = 12.0 + seed if name == "No mask!" else 0.0
        finished(config, marks, first=7 * seed, learning=20.0 + 11 * seed, waited=waited)
    whole, plain = studies.outcomes(study, configs)
    assert (whole.accuracy.value, whole.difference.value) == (pytest.approx(0.7), 0.0)
    assert plain.difference.value == pytest.approx(-0.1)
    assert plain.difference.high - plain.difference.low < 1e-9, "the seeds' own spread is gone"
    by_question = plain.difference_by_question
    assert (by_question.value, by_question.n) == (pytest.approx(-0.1), 17)
    assert by_question.low < -0.1 < by_question.high
    page = studies.drawn(study, configs, {})().read_text()
    *_, head, _, first, second, _, headline, _, told = (study.dir / "study.md").read_text().splitlines()
    assert (whole.before.value, whole.teacher.value) == (0.5, summary().accuracy.teacher.value)
    assert (whole.gain_by_question.value, whole.gain_by_question.n) == (pytest.approx(0.2), 17)
    assert (
        headline == "“No mask!” is worse than “whole” by 10.0 points (10.0 to 10.0 over the seeds)."
        and headline in text_of(page)
    )
    assert head.endswith("| JSD at the end | learning, s | waiting, s |") and "“waiting, s” is the part" in told
    teacher = f"{100 * whole.teacher.value:.1f}"
    assert (
        first.startswith(f"| whole | {teacher} | 50.0 | 70.0 | ")
        and " | +20.0 | " in first
        and first.endswith(" | 0.2500 | 25.5 | 0.0 |")
    )
    assert second.startswith(f"| No mask! | {teacher} | 50.0 | 60.0 | ") and " | -10.0 | -10.0 to -10.0 | " in second
    assert '<td class="number">25.5</td><td class="number">12.5</td><td>' in page
    assert "Two seeds can hardly show anything" in page and "does not show a difference; there may be one" in page
    assert "each seed draws its own" in text_of(page), "data.held_out.rows: 720"
    assert "schedule.max_ratio=0" in page and page.count("<svg") == 2
    draw = MagicMock(wraps=studies.charts.rows_chart)
    monkeypatch.setattr(studies.charts, "rows_chart", draw)
    write = studies.drawn(study, configs, {})
    assert [write().read_text().count("<svg") for _ in range(3)] == [2, 2, 2] and draw.call_count == 2, "drawn once"
    alone = dataclasses.replace(study, variants={"whole": {}})
    assert studies.drawn(alone, dict(studies._configs(alone)), {})().read_text().count("<svg") == 1, "no other variant"


@pytest.mark.parametrize("seeds", ["[0, 1]", "[0]"])
def test_variants_that_share_no_question_are_compared_by_seed_alone(seeds: str, tmp_path: Path) -> None:
    study, configs = two(tmp_path, seeds)
    for (name, _), config in configs.items():
        finished(config, [1, 0], first=0 if name == "whole" else 2)
    found = studies.outcomes(study, configs)
    assert (found[1].difference.value, found[1].difference_by_question.n) == (0.0, 0)
    studies.drawn(study, configs, {})()
    row = (study.dir / "study.md").read_text().splitlines()[5]
    assert row.endswith(" | – | 0.2500 | 10.0 |"), "none of them waited"


def leave(config: Config) -> None:
    """Leaves a run that made its own rollouts and measured the untrained models."""
    folder = Path(config.run.dir)
    finished(config, [1, 0])
    (folder / "rollouts").mkdir()
    (folder / "evaluation" / "teacher.json").write_text(json.dumps({"model": folder.parent.name}))


def states(folder: Path) -> list[list[str]]:
    """Of each run on the page: variant, seed, state without time, steps, accuracy without interval, rollouts, link."""
    found = tables((folder / "study.html").read_text())[0]
    return [[*row[:2], row[2].partition(" 20")[0], row[3], row[4].partition(" (")[0], *row[5:]] for row in found]


def test_a_study_runs_what_is_not_finished_and_shares_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str | None, list[str], list[str]]] = []
    shown: list[list[list[str]]] = []

    def make_run(config: Config, directory: RunDirectory, base: str, turns: None) -> None:
        files = sorted((directory.root / "evaluation").glob("*.json"))
        measured = [f"{file.stem} of {json.loads(file.read_text())['model']}" for file in files]
        made.append((directory.root.parent.name, config.rollout.store, config.rollout.reuse, measured))
        append_lines(directory.file("metrics.jsonl"), [dataclasses.asdict(step(1))])
        append_lines(directory.file("skipped.jsonl"), [{"step": 2}])
        before = (tmp_path / "runs" / "study.html").read_text()
        until(lambda: states(tmp_path / "runs")[len(made)][3] == "2 of 6")
        assert 'http-equiv="refresh" content="10"' in before
        shown.append(states(tmp_path / "runs"))
        for name in ("metrics.jsonl", "skipped.jsonl"):
            directory.file(name).unlink()
        finished(config, [1, 0]) if config.rollout.store else leave(config)

    monkeypatch.setattr(studies, "make_run", make_run)
    monkeypatch.setattr(studies.runs, "_SECONDS", 0.05)
    monkeypatch.setattr(studies.cluster, "connected", connected := MagicMock())
    monkeypatch.setattr(studies.cluster, "place", lambda config: None)
    text = TEXT.replace("[0, 1]", "[3]") + "  distilled: {{learner.policy_weight: 0}}\n"
    text += "  no mask, distilled: {{schedule.max_ratio: 0, learner.policy_weight: 0}}\n"
    study = studies.read(written(tmp_path, text))
    leave(dict(studies._configs(study))["whole", 3])
    of_whole, of_no_mask = (str(tmp_path / "runs" / name / "seed-3" / "rollouts") for name in ("whole", "no-mask"))
    page = studies.run(study)
    assert made == [
        ("no-mask", None, [of_whole], []),
        ("distilled", of_whole, [], ["student_before of whole", "teacher of whole"]),
        ("no-mask-distilled", of_no_mask, [], ["student_before of no-mask", "teacher of no-mask"]),
    ]
    assert shown[1] == [
        ["whole", "3", "finished", "20 of 6", "50.0 %", "its own", "report"],
        ["No mask!", "3", "finished", "20 of 6", "50.0 %", "its own", "report"],
        ["distilled", "3", "running since", "2 of 6", "–", "whole, seed 3", "log"],
        ["no mask, distilled", "3", "waiting", "0 of 6", "–", "No mask!, seed 3", ""],
    ]
    studies.run(study)
    assert (len(made), connected.call_count) == (3, 1), "all is finished: no Ray is started"
    result = (tmp_path / "runs" / "study.json").read_text()
    content = json.loads(result, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert content["outcomes"][1]["difference"] == {"value": 0.0, "low": None, "high": None, "n": 1}
    html = page.read_text()
    assert "There is one seed, so the intervals are over the held-out questions alone" in html
    assert "3 variants are compared with “whole”" in html and "about 14 % of such studies" in text_of(html), "1 − 0.95³"
    assert 'http-equiv="refresh"' not in html and 'href="no-mask/seed-3/report.html"' in html


def until(holds: Callable[[], bool]) -> None:
    """Waits up to ten seconds."""
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_that_fails_is_shown_with_its_reason_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = [StoreError("the disk is <full>")]

    def make_run(config: Config, directory: RunDirectory, base: str, turns: None) -> None:
        if reasons:
            raise reasons.pop()
        leave(config)

    monkeypatch.setattr(studies, "make_run", make_run)
    monkeypatch.setattr(studies.cluster, "connected", MagicMock())
    monkeypatch.setattr(studies.cluster, "place", lambda config: None)
    study = studies.read(written(tmp_path, TEXT.replace("[0, 1]", "[3]")))
    with pytest.raises(StoreError, match="full"):
        studies.run(study)
    failed, waiting = states(tmp_path / "runs")
    assert (failed[2], waiting[2]) == ("failed: the disk is <full>", "waiting")
    html = (tmp_path / "runs" / "study.html").read_text()
    assert 'http-equiv="refresh"' not in html and "0 of 2 runs are finished." in html and "The study stopped" in html
    assert studies.run(study).read_text().count("<td>finished</td>") == 2


def test_a_study_says_first_what_it_costs(tmp_path: Path) -> None:
    """48 questions with 8 answers each, of every seed its own; 48 / 8 steps for each run."""
    text = TEXT + "  distilled: {{learner.policy_weight: 0}}\n"
    study = studies.read(written(tmp_path, text.replace("  No mask!: {{schedule: {{max_ratio: 0}}}}\n", "")))
    configs = dict(studies._configs(study))
    told = studies.runs.cost(configs, tmp_path / "none")
    assert told.startswith(
        "4 runs, 0 of them finished; 2 make rollouts, 768 answers that are judged and scored; 2 take those of another "
        "run; 24 optimizer steps: no rates are known"
    )
    leave(configs["whole", 0])
    assert studies.runs.cost(configs, write_run(tmp_path)).startswith(
        "4 runs, 1 of them finished; 1 make rollouts, 384 answers that are judged and scored; 2 take those of another "
        "run; 18 optimizer steps: about "
    )
    assert studies.runs.lenders(configs) == {
        ("whole", 0): None,
        ("whole", 1): None,
        ("distilled", 0): ("whole", 0),
        ("distilled", 1): ("whole", 1),
    }


def outcome(name: str, low: float, high: float, value: float = 0.021, lost: float = 0.0) -> studies.VariantOutcome:
    """Of a variant whose difference to the reference has these bounds over the seeds; over questions −1 … 1. lost: what
    it is below the untrained student, with bounds 0.01 apart."""
    one, wide = Interval(value=0.5, low=0.4, high=0.6, n=3), Interval(value=0.0, low=-0.01, high=0.01, n=90)
    difference = Interval(value=value, low=low, high=high, n=3)
    return studies.VariantOutcome(
        name=name,
        changes={},
        before=dataclasses.replace(one, value=0.5 + lost),
        teacher=one,
        gain_by_question=dataclasses.replace(wide, value=-lost, low=-lost - 0.01, high=-lost + 0.01),
        accuracies=[0.5],
        accuracy=one,
        difference=difference,
        difference_by_question=wide,
        jsd=one,
        seconds=one,
        waited=one,
    )


REFERENCE = outcome("base", 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([("a", 0.004, 0.038)], "“a” is better than “base” by 2.1 points (0.4 to 3.8 over the seeds)."),
        ([("a", -0.038, -0.004, -0.021)], "“a” is worse than “base” by 2.1 points (0.4 to 3.8 over the seeds)."),
        ([("a", 0.0, 0.042)], "“a” cannot be told from “base” (+2.1 points, 0.0 to 4.2 over the seeds)."),
        ([("a", math.nan, math.nan)], "“a” cannot be told from “base”."),
        (
            [("a", 0.004, 0.038), ("b", -0.1, 0.1), ("c", -0.1, 0.0)],
            "“a” is better than “base” by 2.1 points (0.4 to 3.8 over the seeds); “b” and “c” cannot be told from "
            "“base”.",
        ),
        (
            [("a", -0.1, 0.1, 0.0, 0.125), ("b", 0.004, 0.038, 0.021, 0.01)],
            "One variant ends below the untrained student with these seeds: “a” by 12.5 points (11.5 to 13.5 over "
            "questions). “b” is better than “base” by 2.1 points (0.4 to 3.8 over the seeds); “a” cannot be told from "
            "“base”.",
        ),
        ([], "“base” has 50.0 %, and nothing is compared with it."),
    ],
)
def test_a_study_says_in_words_what_its_intervals_tell_apart(others: list[tuple[Any, ...]], told: str) -> None:
    """An interval that touches 0 shows no difference."""

    def headline(**changes: Any) -> str:
        found = [REFERENCE, *(outcome(*one) for one in others)]
        study = SimpleNamespace(reference="base")
        values = {"study": study, "outcomes": found, "several": True, "unfinished": 0, "runs": [None] * 4} | changes
        return " ".join(render("masters_ray.studies", "study.headline.jinja", **values).split())

    assert headline() == told
    assert headline(unfinished=3) == f"1 of 4 runs are finished. {told}".replace("is compared", "is yet compared")
    assert headline(outcomes=[], unfinished=4) == "0 of 4 runs are finished."
    if len(others) == 2 and len(others[0]) > 4:
        assert headline(outcomes=[outcome(name, 0, 0, 0, 0.1) for name in ("base", "a")]).startswith(
            "Both variants end below the untrained student with these seeds: “base” by 10.0 "
        )
    if len(others) == 1:
        assert headline(several=False) == "“a” cannot be told from “base” (+0.0 points, -1.0 to 1.0 over questions)."


def test_students_that_differ_although_the_variants_cannot_be_told_apart_are_named() -> None:
    over_questions = Interval(value=0.02, low=0.01, high=0.03, n=90)
    apart = dataclasses.replace(outcome("a", -0.1, 0.1), difference_by_question=over_questions)
    values = {"study": SimpleNamespace(reference="base"), "outcomes": [REFERENCE, apart], "several": True}
    told = render("masters_ray.studies", "study.headline.jinja", unfinished=0, runs=[None] * 4, **values)
    assert " ".join(told.split()) == (
        "“a” cannot be told from “base” (+2.1 points, -10.0 to 10.0 over the seeds). The students of these seeds do "
        "differ on such questions (1.0 to 3.0 points); whether those of other seeds would cannot be told."
    )
