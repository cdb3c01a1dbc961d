"""Statistics of the studies, the audit of judges and the scan of mask ratios."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray.cli import main
from masters_ray.files import as_json
from masters_ray.learner.measure import Divergence
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import JudgedText, Source
from masters_ray.replicas.judge import Verdict
from masters_ray.studies import judge_audit, mask_scan, sample
from masters_ray.studies.judge_audit import JudgePair
from masters_ray.studies.mask_scan import Scanned, advise
from masters_ray.studies.statistics import mean, resampled_mean, resampled_share
from tests.builders import group, scored, stage_outcome, written
from tests.conftest import DEMO

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
    some = [1, 0] * 10
    assert resampled_share(some, questions) == resampled_mean(some, questions)


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
    for _ in range(2):  # the second time nobody is asked
        page = judge_audit.audit(config, RunDirectory(config), str(DEMO))
    html, folder = page.read_text(), page.parent
    lines = (folder / "judge_audit.txt").read_text().splitlines()
    assert len(lines) == 1 + 3 + 1 + 9
    assert lines[3].split() == ["rule", "6", "0.0%", "–", "–"], "nothing that was not measured"
    numbers = "".join(f'<td class="number">{told}</td>' for told in ("6", "0.0 %", "–", "–"))
    assert f"<td>rule</td>{numbers}" in html
    assert "unreadable" in html and "&lt;b&gt;" in html and "All judges said the same" not in html
    assert len((folder / "disagreements.jsonl").read_text().splitlines()) == 2
    student, _, rule = json.loads((folder / "judge_audit.json").read_text())["judges"]
    assert (student["unjudged"], student["consistency"]) == (1, 5 / 6)
    assert student["right"] == {"teacher": 1.0, "student": 1 / 3} and student["seconds_per_answer"] > 0
    assert rule["right"] == {"teacher": 1.0, "student": 0.0}, "the stored verdicts"


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
    *lines, advice = (folder / "mask_scan.txt").read_text().splitlines()
    assert advice == advise(found)
    return lines, page.read_text()


def test_means_are_over_questions_and_comparisons_are_paired() -> None:
    strong, best, _ = scanned(r40=0.2, r20=0.1, r0=0.15)
    assert best.jsd.value == exactly(0.1 + sum(0.01 * (q % 7) for q in range(40)) / 40 + 0.01)
    assert best.jsd_by_source["student"].value - best.jsd_by_source["teacher"].value == exactly(0.02)
    assert set(best.jsd_by_kind) == set(KINDS)
    assert (strong.against_best.value, best.against_best.value) == (exactly(0.1), 0)
    assert strong.against_best.high - strong.against_best.low < 1e-9, "the questions' own spread is gone"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (scanned(r40=0.2, r20=0.1, r0=0.15), "schedule.max_ratio=0.2 schedule.step=0.05. Over-masked: 0.4; the div"),
        (scanned(r40=0.1, r20=0.2, r0=0.3), "It is the largest ratio that was scanned: scan larger ones."),
        (scanned(r40=0.3, r20=0.2, r0=0.1), "nearer to the student: schedule.max_ratio=0. Over-masked: 0.2, 0.4;"),
    ],
)
def test_the_ratio_of_the_lowest_divergence_is_advised(found: list[Scanned], told: str) -> None:
    assert told in advise(found)


def test_what_cannot_be_told_apart_is_said() -> None:
    best = rows(0.1)
    other = [replace(one, nats=one.nats + (0.05 if one.position % 2 else -0.045)) for one in best]
    stages = [stage_outcome(ratio=0.2), stage_outcome(ratio=0.0)]
    advice = advise(mask_scan.scanned(stages, [best, other], [[], []]))
    assert "lowest at 0.2:" in advice and "cannot tell it from 0;" in advice and "Over-masked" not in advice


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
    assert told in " ".join(capsys.readouterr().out.split())


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
        assert (lines[1].split()[5], lines[1].split()[-1]) == ("20.0%", last) and ">cut</th>" in page
    lines, page = shown(tmp_path, mask_scan.scanned([stage_outcome()], [rows(0.1)], [[]]))
    assert lines[1].split()[-1] == "–" and "The teacher wrote no answers" in page
    found = scanned(r40=0.2, r20=0.1, r0=0.15)
    lines, page = shown(tmp_path, found)
    assert [line.split()[0] for line in lines[1:]] == ["0.4", "0.2", "0"]
    assert page.count("<svg") == 2 and "40.0 %" in page and "Over-masked: 0.4" in page
    colour = found[0].teacher_right_by_kind["colour"]
    assert f'<td class="number">60.0 % ({100 * colour.low:.1f}–{100 * colour.high:.1f})</td>' in page
