"""Statistics of the studies, the audit of judges and the scan of mask ratios."""

import json
import math
import operator
import re
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray.cli import main
from masters_ray.evaluate import Interval
from masters_ray.files import append_lines, as_json
from masters_ray.learner.measure import Divergence
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.plan.rates import Rates
from masters_ray.records import Event, JudgedText, Source
from masters_ray.replicas.judge import Verdict
from masters_ray.report.render import render
from masters_ray.studies import judge_audit, mask_scan, sample, sample_seconds, told_time
from masters_ray.studies.judge_audit import JudgePair
from masters_ray.studies.mask_scan import Scanned, advise
from masters_ray.studies.statistics import alike_needed, mean, questions_needed, resampled_mean, resampled_share
from tests.builders import group, scored, stage_outcome, written
from tests.conftest import DEMO
from tests.study_pages import check_date, tables, text_of
from tests.unit.test_plan_rates import write_run

exactly = pytest.approx


def test_the_interval_of_three_values_is_students_and_one_value_has_none() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.n, found.high - found.value) == (2.0, 3, exactly(4.303 / math.sqrt(3)))
    assert mean([5.0, 5.1, 4.9]).settled and not mean([1.0]).settled
    assert as_json(mean([1.5])) == {"value": 1.5, "low": None, "high": None, "n": 1}


def test_resampling_gives_the_interval_of_the_normal_distribution_for_many_values() -> None:
    values = [float(i % 2) for i in range(400)]
    found = resampled_mean(values)
    assert (found.value, found.high - found.low) == (0.5, exactly(2 * 1.96 * 0.5 / 20, rel=0.1))
    twice = resampled_mean(values * 2, [str(i) for i in range(400)] * 2)
    assert (twice.value, twice.n) == (found.value, 400)
    assert twice.high - twice.low == exactly(found.high - found.low, rel=0.1), "two copies tell no more than one"


def test_a_share_of_all_or_none_is_not_certain() -> None:
    """The interval of 10 of 10 is Wilson's."""
    questions = [str(index // 2) for index in range(20)]
    all_right, none_right = resampled_share([1] * 20, questions), resampled_share([0] * 20, questions)
    assert (all_right.value, all_right.low, all_right.high, all_right.n) == (1.0, exactly(0.722, abs=1e-3), 1.0, 10)
    assert (none_right.value, none_right.low, none_right.high) == (0.0, 0.0, exactly(0.278, abs=1e-3))
    some = [1, 0, 1, 1] * 5
    assert resampled_share(some, questions) == resampled_mean(some, questions)
    same = resampled_share([0] * 20, questions, -1.0)
    assert (same.low, same.high) == (exactly(-0.278, abs=1e-3), exactly(0.278, abs=1e-3)), "two judges that agree"
    assert math.isnan(resampled_share([], []).value)


def test_intervals_that_are_to_hold_at_once_are_wider() -> None:
    """Of 400 values the bootstrap is near the normal distribution: 2.576 standard errors for five at once."""
    values = [float(i % 2) for i in range(400)]
    one, five = resampled_mean(values), resampled_mean(values, comparisons=5)
    assert (five.high - five.low) / (one.high - one.low) == exactly(2.576 / 1.960, rel=0.07)


def test_the_number_of_questions_that_would_tell_a_difference_grows_with_the_square_of_its_interval() -> None:
    """50 · (0.1 / 0.1 · (1.960 + 0.842) / 1.960)² = 102.2; a half width that is twice as wide needs four times "
    "as many."""
    found = Interval(value=0.1, low=0.0, high=0.2, n=50)
    assert questions_needed(found) == exactly(102.2, abs=0.1)
    assert questions_needed(replace(found, low=-0.1, high=0.3)) == exactly(408.8, abs=0.2)
    assert math.isinf(questions_needed(replace(found, value=0.0)))


def test_questions_that_are_all_alike_reach_a_width_with_the_number_that_is_told() -> None:
    for count, reach in ((72, operator.gt), (73, operator.lt)):
        assert reach(resampled_share([0] * count, range(count)).high, 0.05)
    assert alike_needed(0.05) == exactly(73.0, abs=0.05)


def test_studies_work_in_directories_of_their_own_beside_a_run_whose_stores_lie_elsewhere(tmp_path: Path) -> None:
    """As the run's stage 0 is the study's, a finished store of the run would be opened again and lose its manifest."""
    words = [f"run.dir={tmp_path}/run", f"rollout.store={tmp_path}/stores", "rollout.online_fraction=1"]
    config = configuration.load(DEMO, words)
    for study, name in (
        (sample(config, "mask-scan", 50, [0.2, 0.0]), "mask-scan-50"),
        (judge_audit.audit_config(config, 30, 0.1), "judge-audit-30"),
    ):
        directory, own = RunDirectory(study), tmp_path / "run" / name
        assert configuration.violations(study) == []
        assert (directory.root, str(directory.stage(0))) == (own, str(own / "rollouts" / "stage-0"))
        assert directory.owner_of_rollouts is None
        assert study.rollout.online_fraction == 0, "all questions are answered before training"


def case(position: int, source: Source, text: str = "red", accuracy: int = 1, kind: str = "colour") -> JudgedText:
    asked: dict[str, Any] = {"id": str(position), "question": "what color is the shape?", "label": "red", "choices": ()}
    said: dict[str, Any] = {"text": text, "accuracy": accuracy, "verdict": "said", "reasoning": None}
    return JudgedText(position=position, kind=kind, source=source, **asked, **said)


ANSWERS = [("red", 1), ("blue", 0), ("red", 1), ("<b>", 0), ("red", 1), ("green", 0)]
CASES = [case(index // 2, ("teacher", "student")[index % 2], *answer) for index, answer in enumerate(ANSWERS)]


def verdicts(*said: int | None, text: str = "") -> list[Verdict]:
    return [Verdict(accuracy=one, text=text) for one in said]


STUDENT, TEACHER = verdicts(1, 0, 1, 1, None, 0, text="yes"), verdicts(1, 0, 1, 0, 1, 0, text="no")
ALL = {"student": STUDENT, "teacher": TEACHER, "rule": verdicts(1, 0, 1, 0, 1, 0)}


def test_kappa_by_hand() -> None:
    """20 both right, 5 first only, 10 second only, 15 both wrong: observed 0.7, chance 0.5·0.6 + 0.5·0.4 = 0.5. There
    are two answers to each question."""

    def compared(first: list[int], second: list[int]) -> JudgePair:
        cases = [case(index // 2, "teacher") for index in range(len(first))]
        [found, _] = judge_audit.pairs(cases, {"a": verdicts(*first), "b": verdicts(*second)})
        return found

    found = compared([1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert (found.both_right, found.right_wrong, found.wrong_right, found.both_wrong) == (20, 5, 10, 15)
    assert (found.share, found.kappa.value) == (exactly(0.7), exactly(0.4))
    assert found.kappa.low < 0.4 < found.kappa.high and found.kappa.n == 25
    same = compared([1, 1], [1, 1])
    assert same.share == 1.0 and math.isnan(same.kappa.value), "judges that always say the same one thing"


def test_judges_are_compared_on_what_both_could_judge() -> None:
    found = {(one.first, one.second, one.of): one for one in judge_audit.pairs(CASES, ALL)}
    both = found["student", "teacher", "all"]
    assert (both.both_right, both.right_wrong, both.wrong_right, both.both_wrong) == (2, 1, 0, 2)
    assert found["student", "rule", "teacher"].share == found["teacher", "rule", "all"].kappa.value == 1.0
    assert len(found) == 9
    both_wrote = [*CASES, case(1, "teacher", "<b>", 0)]
    twice = judge_audit.disagreements(both_wrote, {name: [*of, of[3]] for name, of in ALL.items()})
    assert [(one.case.id, one.case.source) for one in twice] == [("1", "student"), ("2", "teacher"), ("1", "teacher")]
    listed = judge_audit.disagreements(CASES, ALL)
    assert [(one.case.id, one.case.text) for one in listed] == [("1", "<b>"), ("2", "red")]
    assert listed[1].verdicts == {"student": None, "teacher": 1, "rule": 1}
    assert listed[1].said == {"student": "yes", "teacher": "no"}


class Judges:
    """A pool whose model gives these verdicts on the cases in each pass, one after the other."""

    most_calls_at_once = 1

    def __init__(self, *passes: list[Verdict]) -> None:
        self.passes = list(passes)

    def call_again(self, method: str, asked: list[JudgedText], texts: object, reasoning: bool) -> list[list[Verdict]]:
        said = self.passes.pop(0)
        return [[said[2 * one.position + (one.source == "student")]] for one in asked]


def test_an_audit_judges_answers_twice_and_shows_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [scored([5, 1], source=one.source, text=one.text, accuracy=one.accuracy) for one in CASES]
    groups = [group(answers[2 * place : 2 * place + 2], position=place) for place in range(3)]
    written(tmp_path / "stage-0", {}, groups).finish({})
    again = verdicts(1, 0, 0, 1, None, 0)
    pools = {"judge": Judges(STUDENT, again), "teacher_judge": Judges(TEACHER, TEACHER)}
    monkeypatch.setattr(judge_audit.run, "generate", lambda *_, **__: [tmp_path / "stage-0"])
    monkeypatch.setattr(judge_audit, "Replicas", lambda _: nullcontext(SimpleNamespace(pools=pools)))
    words = [f"run.dir={tmp_path}", "judge.reasoning=true"]
    config = judge_audit.audit_config(configuration.load(DEMO, words), 3, 0.0)
    assert configuration.violations(config) == []
    assert config.judges == {"rule"}, "which leaves no answer out"
    told = Event(time="2026-11-30T18:54:15+00:00", kind="start", text="masters-ray judge-audit")
    append_lines(
        tmp_path / "judge-audit-3" / "events.jsonl",
        [asdict(one) for one in (told, replace(told, kind="code", text="0123abc"))],
    )
    for _ in range(2):  # the second time nobody is asked
        page = judge_audit.audit(config, RunDirectory(config), str(DEMO))
    html, folder = page.read_text(), page.parent
    lines = (folder / "judge_audit.txt").read_text().splitlines()
    assert len(lines) == 1 + 3 + 1 + 9 + 1
    assert lines[3].split() == ["rule", "6", "0.0%", "–", "–"], "nothing that was not measured"
    assert ["rule", "6", "0.0 %", "–"] in [row for table in tables(html) for row in table]
    assert "unreadable" in html and "&lt;b&gt;" in html and "All judges said the same" not in html
    assert len((folder / "disagreements.jsonl").read_text().splitlines()) == 2
    figures = json.loads((folder / "judge_audit.json").read_text())
    check_date(html, folder)
    student, teacher, rule = figures["judges"]
    assert (student["unjudged"], student["consistency"]["value"]) == (1, exactly(5 / 6))
    assert student["right"] == {"teacher": 1.0, "student": 1 / 3} and student["seconds_per_answer"] > 0
    assert student["more_right"]["student"]["value"] == exactly(1 / 3)
    assert rule["right"] == {"teacher": 1.0, "student": 0.0}, "the stored verdicts"
    assert lines[-1] == figures["headline"] and figures["headline"] in text_of(html)
    assert (teacher["more_right"]["teacher"]["value"], figures["fitness"]["teacher"]["more right, teacher"]) == (
        0,
        "open",
    )
    assert html.count('<article class="card disagreement m-student"') == 2, "the teacher says what the rule says"
    patterns = [row[:2] for row in tables(html)[4]]
    assert patterns == [
        ["a model says right, the rule wrong: student’s answers", "1"],
        ["a model’s verdict is unreadable: teacher’s answers", "1"],
    ]
    assert "seed: 0" in html and "The whole configuration (YAML)" in html and "masters-ray" in text_of(html)


def test_what_would_teach_most_is_the_first_of_the_patterns() -> None:
    def pattern(rule: int, student: int | None, teacher: int | None) -> int:
        verdicts, said = {"student": student, "teacher": teacher, "rule": rule}, {"student": "", "teacher": ""}
        return judge_audit.Disagreement(case=case(0, "student"), verdicts=verdicts, said=said).pattern[0]

    assert [pattern(0, 1, 0), pattern(0, None, 1), pattern(1, 0, 0), pattern(1, None, 0)] == [0, 0, 1, 1]
    assert [pattern(0, None, 0), pattern(1, 1, None)] == [2, 2]


def audited(right: dict[Source, tuple[int, int]], questions: int = 100, same: float = 1.0) -> dict[str, Any]:
    """The figures of the student as a judge of an answer of each source to each question. right: of a hundred, those
    that the judge calls right and, among them or around them, those that the rule does."""
    cases = [
        case(q, source, accuracy=int(q < by_rule)) for source, (_, by_rule) in right.items() for q in range(questions)
    ]
    said = [int(q < judge) for judge, _ in right.values() for q in range(questions)]
    again = [one if q % 100 < 100 * same else 1 - one for q, one in enumerate(said)]
    passes = [judge_audit.JudgePass(seconds=1.0, verdicts=verdicts(*of)) for of in (said, again)]
    by_rule = verdicts(*(one.accuracy for one in cases))
    judge = judge_audit.judge_figures("student", cases, *passes)
    pairs = list(judge_audit.pairs(cases, {"student": passes[0].verdicts, "rule": by_rule}))
    kappas = {one.first: one.kappa for one in pairs if one.of == "all"}
    told = {"fitness": judge_audit.fitness, "needed": judge_audit.needed}
    return {"judges": [judge], "kappas": kappas, "questions": questions, "pairs": pairs} | {
        name: {"student": of(judge, kappas["student"])} for name, of in told.items()
    }


def headline(study: str, **figures: Any) -> str:
    return " ".join(render("masters_ray.studies", f"{study}.headline.jinja", **figures).split())


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (
            audited({"teacher": (90, 90), "student": (76, 38)}),
            "The student as a judge says right for 76 % of the student’s answers, the rule for 38 %: do not "
            "train on it.",
        ),
        (
            audited({"student": (10, 38)}),
            "The student as a judge says right for 10 % of the student’s answers, the rule for 38 %: do not "
            "train on it.",
        ),
        (
            audited({"teacher": (50, 50), "student": (49, 50)}),
            "The student is fit to judge: it says right for 49 % of the student’s answers, the rule for 50 %.",
        ),
        (
            audited({"student": (25, 25)}, questions=50),
            "Whether the student is fit to judge cannot be told from 50 questions: it agreed with the rule on all of "
            "the student’s answers, but so few leave room for a difference of -7.1 to 7.1 points (95 %), past the "
            "limit. About 73 would tell if it judges others as it judged these.",
        ),
        (
            audited({"student": (50, 50)}, same=0.7),
            "The student as a judge says the same again of only 70 % of the answers: do not train on it.",
        ),
        (
            audited({"student": (100, 100)}),
            "Whether the student is fit to judge cannot be told from 100 questions: how far it agrees with the rule "
            "beyond chance (κ) is not known.",
        ),
    ],
    ids=["lenient", "strict", "fit", "few questions", "inconsistent", "all right, so that κ is not defined"],
)
def test_a_judge_is_told_fit_or_not_in_words(figures: dict[str, Any], told: str) -> None:
    assert headline("judge_audit", **figures) == told


def test_a_judge_whose_share_is_the_rules_by_chance_is_refused_by_kappa() -> None:
    """It calls 50 of a hundred right, of which the rule calls 25 right, and of the other 50 again 25: κ is 0."""
    cases = [case(q, "student", accuracy=int(q % 2 == 0)) for q in range(800)]
    said = judge_audit.JudgePass(seconds=1.0, verdicts=verdicts(*(int(q % 4 < 2) for q in range(800))))
    judge = judge_audit.judge_figures("student", cases, said, said)
    [of_all, _] = judge_audit.pairs(
        cases, {"student": said.verdicts, "rule": verdicts(*(one.accuracy for one in cases))}
    )
    assert (of_all.kappa.value, judge.more_right["student"].value) == (0.0, 0.0)
    found = {"student": judge_audit.fitness(judge, of_all.kappa)}
    told = headline(
        "judge_audit", judges=[judge], kappas={"student": of_all.kappa}, fitness=found, questions=800, needed={}
    )
    assert told == "The student as a judge agrees with the rule little beyond chance (κ 0.00): do not train on it."


def test_the_number_of_questions_that_would_tell_is_that_of_the_measure_nearest_to_its_limit() -> None:
    """Of the teacher's answers, all alike, 73 would do; the student's are 0.021 from the limit with bounds 0.019 away,
    and 60 · (0.019 · 2.802 / (1.960 · 0.021))² = 100."""
    alike = resampled_share([0] * 60, range(60), -1.0)
    near = Interval(value=0.029, low=0.012, high=0.05, n=60)
    sure = Interval(value=0.98, low=0.95, high=1.0, n=60)
    judge = judge_audit.JudgeFigures(
        name="student",
        unjudged=0,
        right={},
        more_right={"teacher": alike, "student": near},
        consistency=sure,
        seconds_per_answer=None,
    )
    assert judge_audit.fitness(judge, sure)["more right, student"] == "fit"
    assert judge_audit.needed(judge, sure) == exactly(100, abs=0.5)
    assert judge_audit.needed(replace(judge, more_right={"student": near}), sure) == 0


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(-0.05, 0.05, "fit"), (-0.06, 0.05, "open"), (0.05, 0.2, "open"), (0.051, 0.2, "unfit"), (-0.2, -0.051, "unfit")],
)
def test_an_interval_that_touches_a_limit_is_not_beyond_it(low: float, high: float, told: str) -> None:
    change = Interval(value=(low + high) / 2, low=low, high=high, n=100)
    sure = Interval(value=1.0, low=0.9, high=1.0, n=100)
    judge = judge_audit.JudgeFigures(
        name="student", unjudged=0, right={}, more_right={"student": change}, consistency=sure, seconds_per_answer=None
    )
    assert judge_audit.fitness(judge, sure) == {"more right, student": told, "κ": "fit", "consistency": "fit"}
    assert judge_audit.fitness(judge, None)["κ"] == "open", "nothing that both could judge"
    assert judge_audit.fitness(judge, replace(sure, low=0.3, high=0.6))["κ"] == "open"
    assert judge_audit.fitness(judge, replace(sure, low=0.3, high=0.59))["κ"] == "unfit"


KINDS = ("colour", "shape")


def rows(level: float, questions: int = 40) -> list[Divergence]:
    """Two answers to each question; questions differ more than ratios do."""
    apart: dict[Source, float] = {"teacher": 0.0, "student": 0.02}
    return [
        Divergence(position=number, kind=KINDS[number % 2], source=source, nats=level + 0.01 * (number % 7) + more)
        for number in range(questions)
        for source, more in apart.items()
    ]


def judged(right: float, reasoning: int | None = None, questions: int = 40) -> list[JudgedText]:
    """Two answers of each source; of the teacher's, that share of the questions about colour is answered right, and all
    about shape are; the student's are wrong."""
    found = []
    for question in range(questions):
        for source in ("teacher", "teacher", "student", "student"):
            correct = source == "teacher" and (question % 2 == 1 or question < right * questions)
            one = case(question, source, accuracy=int(correct), kind=KINDS[question % 2])
            supports = None if reasoning is None else int(source == "teacher") * reasoning
            found.append(replace(one, reasoning=supports))
    return found


def scanned(reasoning: int | None = None, **levels: float) -> list[Scanned]:
    """Of a ratio in percent → the level of its divergences; r40=0.2: at ratio 0.4."""
    ratios = [float(name.removeprefix("r")) / 100 for name in levels]
    return mask_scan.scanned(
        [stage_outcome(ratio=ratio, teacher_written=1000, teacher_cut=round(500 * ratio)) for ratio in ratios],
        [rows(level) for level in levels.values()],
        [judged(1 - ratio, reasoning) for ratio in ratios],
    )


def shown(folder: Path, found: list[Scanned]) -> tuple[list[str], str]:
    """The terminal's lines and the page."""
    config = sample(configuration.load(DEMO), "mask-scan", 40, [one.ratio for one in found])
    page = mask_scan.publish_scan(config, folder, found)
    *lines, told = (folder / "mask_scan.txt").read_text().splitlines()
    assert told == json.loads((folder / "mask_scan.json").read_text())["headline"] == advice(found)
    assert told in text_of(page.read_text())
    return lines, page.read_text()


def advice(found: list[Scanned]) -> str:
    return headline("mask_scan", questions=40, ratios=found, advice=advise(found))


def test_means_are_over_questions_and_comparisons_are_paired() -> None:
    strong, best, _ = scanned(r40=0.2, r20=0.1, r0=0.15)
    assert best.jsd.value == exactly(0.1 + sum(0.01 * (q % 7) for q in range(40)) / 40 + 0.01)
    assert best.jsd_by_source["student"].value - best.jsd_by_source["teacher"].value == exactly(0.02)
    assert set(best.jsd_by_kind) == set(KINDS)
    assert (strong.against_best.value, best.against_best.value) == (exactly(0.1), 0)
    assert strong.against_best.high - strong.against_best.low < 1e-9, "the questions' own spread is gone"


HIGHER = "; the divergence is higher again there."


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            scanned(r40=0.2, r20=0.1, r0=0.15),
            "Start at 20 % (schedule.max_ratio=0.2 schedule.step=0.05): the divergence is lowest there, and lower than "
            f"without a mask. Over-masked: 40 %{HIGHER}",
        ),
        (
            scanned(r40=0.1, r20=0.2, r0=0.3),
            "Start at 40 % (schedule.max_ratio=0.4 schedule.step=0.1): the divergence is lowest there, and lower "
            "than without "
            "a mask. It is the largest ratio that was scanned: scan larger ones.",
        ),
        (
            scanned(r40=0.3, r20=0.2, r0=0.1),
            "Start without a mask (schedule.max_ratio=0): no mask brings the teacher nearer to the student. "
            f"Over-masked: 20 % and 40 %{HIGHER}",
        ),
        (
            scanned(r40=0.2, r20=0.1),
            "Start at 20 % (schedule.max_ratio=0.2 schedule.step=0.05): the divergence is lowest there. Whether "
            "it is lower "
            f"than without a mask is not known: scan the ratio 0, too. Over-masked: 40 %{HIGHER}",
        ),
        (scanned(r20=0.1), "One ratio was scanned, so there is nothing to compare it with: scan several (--ratios)."),
        (
            scanned(r40=0.1, r20=0.1, r0=0.1),
            "These 40 questions cannot tell any ratio from 40 %, which has the lowest divergence, so none is "
            "recommended.",
        ),
    ],
    ids=["in between", "largest", "none", "0 not scanned", "one ratio", "all equal"],
)
def test_a_start_is_recommended_where_the_ratios_can_be_told_apart(found: list[Scanned], told: str) -> None:
    assert advice(found) == told


def test_what_cannot_be_told_apart_is_said_with_the_number_of_questions_that_could() -> None:
    """Differences of 0.05 and −0.045 in turn: their mean is 0.0025, their deviation 0.0475, and
    (2.802 · 0.0475 / 0.0025)² = 2834."""
    best = rows(0.1)
    other = [replace(one, nats=one.nats + (0.05 if one.position % 2 else -0.045)) for one in best]
    stages = [stage_outcome(ratio=0.2), stage_outcome(ratio=0.0)]
    found = mask_scan.scanned(stages, [best, other], [[], []])
    assert (advise(found)["rival"], advise(found)["needed"]) == (0.0, exactly(2834, rel=0.1))
    assert re.fullmatch(
        r"These 40 questions cannot tell any ratio from 20 %, which has the lowest divergence, so none is recommended. "
        r"About [23],\d00 would tell 20 % from 0 %, which a start has to beat, in four of five samples, if they differ "
        r"as much as measured here \(0.0025 nats, where the divergence is 0.139\).",
        advice(found),
    )


def test_an_interval_that_touches_0_tells_nothing_apart() -> None:
    """Over-masked ratios do not make a start: what counts is whether the lowest is below that of no mask."""
    strong, best, none = scanned(r40=0.2, r20=0.1, r0=0.15)
    touching = Interval(value=0.05, low=0.0, high=0.1, n=40)
    assert advice([strong, best, replace(none, against_best=replace(touching, low=1e-9))]).startswith("Start at 20 % ")
    assert advice([strong, best, replace(none, against_best=touching)]) == (
        "These 40 questions cannot tell whether a mask helps, so no start is recommended: the divergence is "
        "lowest at 20 %, "
        "but not known to be lower than without a mask. About 76 would tell 20 % from 0 %, which a start has "
        "to beat, in four of five samples, if they differ as much "
        f"as measured here (0.05 nats, where the divergence is 0.139). Over-masked: 40 %{HIGHER}"
    )
    assert advice([replace(strong, against_best=touching), best, none]).endswith(
        "and lower than without a mask. These 40 questions cannot tell it from 40 %."
    )


def test_ratios_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mask-scan", str(DEMO), "--ratios", "0.2,x"])
    assert "argument --ratios: invalid" in capsys.readouterr().err
    scan = sample(configuration.load(DEMO), "mask-scan", 9, [0.5, -0.1])
    assert [one.where for one in configuration.violations(scan)] == ["schedule.stages[1].ratio"]


def test_a_scan_says_first_what_asking_at_every_ratio_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mask_scan.run, "generate", lambda *_, **__: pytest.fail("generated"))
    scan = sample(configuration.load(DEMO, [f"run.dir={tmp_path}"]), "mask-scan", 50, [0.2, 0.0])
    with pytest.raises(pytest.fail.Exception, match="generated"):
        mask_scan.scan(scan, RunDirectory(scan), str(DEMO))
    told = "50 questions at 2 mask ratios: 400 answers of masked teachers and 200 of the student are written and judged"
    said = " ".join(capsys.readouterr().out.split())
    assert told in said and "no rates are known" in said and "masters-ray plan --probe measures them" in said


def test_how_long_a_sample_takes_is_told_at_the_rates_of_the_run_or_of_its_probe(tmp_path: Path) -> None:
    """A batch of 32 questions takes 0.1 s · 32 to answer with 2 s for the engines and 3 s once; a run that has not
    learned yet has no rates, and is passed over."""
    rates = Rates(group_seconds=0.5, calls={"answer": {"teacher": 0.1}}, engines_seconds=2.0, once={"data": 3.0})
    config = sample(configuration.load(DEMO, [f"run.dir={tmp_path}"]), "mask-scan", 32, [0.0])
    assert sample_seconds(config, rates) == exactly(2.0 + 3.0 + 3.2)
    place = tmp_path / "run" / "plan" / "probe"
    place.mkdir(parents=True)
    write_run(place)
    told = told_time([tmp_path / "none", tmp_path / "run"], lambda found: 100 * found.group_seconds)  # 1.875 / 32 s
    assert told == f"about 5.9 s at the rates of {place}; what is there is not made again"
    (place / "journal.json").unlink()
    assert told_time([tmp_path / "run"], lambda found: 1.0).startswith("no rates are known")


def test_the_masked_teachers_rewards_are_over_its_own_answers_with_intervals_over_questions() -> None:
    """12 of 20 questions about colour and 20 of 20 about shape are answered right; the student's do not count."""
    strong, none = scanned(r40=0.2, r0=0.1, reasoning=1)
    some, every = strong.teacher_right, none.teacher_right
    assert some is not None and every is not None and strong.teacher_reasoning is not None
    assert (some.value, some.n) == (exactly(0.8), 40) and some.low < 0.8 < some.high
    assert strong.teacher_right_by_kind["colour"].value == exactly(0.6)
    assert (every.value, every.low) == (1.0, exactly(0.912, abs=1e-3)), "not certain"
    assert strong.teacher_reasoning.value == 1.0


def test_table_and_page_show_every_ratio_and_the_rewards_that_were_asked_for(tmp_path: Path) -> None:
    for reasoning, last in ((None, "80.0%"), (1, "100.0%")):
        lines, page = shown(tmp_path, scanned(r40=0.2, r0=0.1, reasoning=reasoning))
        assert ("R_rea" in lines[0]) == ("R_rea" in page) == bool(reasoning)
        assert (lines[1].split()[6], lines[1].split()[-1]) == ("20.0%", last) and ">cut</th>" in page
    lines, page = shown(tmp_path, mask_scan.scanned([stage_outcome()], [rows(0.1)], [[]]))
    assert lines[1].split()[-1] == "–" and "The teacher wrote no answers" in page
    found = scanned(r40=0.2, r20=0.1, r0=0.15)
    lines, page = shown(tmp_path, found)
    assert "code</dt><dd>not noted<" in page
    assert tables(page)[0][0][0] == "40 %", "as in the headline"
    assert [line.split()[0] for line in lines[1:]] == ["40", "20", "0"]
    assert page.count("<svg") == 3 and "Over-masked: 40 %" in text_of(page)
    colour = found[0].teacher_right_by_kind["colour"]
    assert tables(page)[1][0][-2] == f"60.0 % ({100 * colour.low:.1f}–{100 * colour.high:.1f})"


def test_a_ratio_without_a_question_of_a_kind_has_a_dash_in_that_kinds_column(tmp_path: Path) -> None:
    """The strong mask's answers about shape were all dropped: neither divergence nor reward of that kind is known."""
    kept = [one for one in rows(0.2) if one.kind == "colour"]
    answers = [one for one in judged(0.6) if one.kind == "colour"]
    stages = [stage_outcome(ratio=0.4), stage_outcome(ratio=0.0)]
    found = mask_scan.scanned(stages, [kept, rows(0.1)], [answers, judged(1.0)])
    assert (found[0].against_best.n, found[0].jsd_by_kind.keys()) == (20, {"colour"})
    _, page = shown(tmp_path, found)
    for strong, none in tables(page):
        assert strong[-1] == "–" and "–" not in {strong[-2], none[-2], none[-1]}
