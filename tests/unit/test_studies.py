"""Statistics of the studies, the audit of judges and the scan of mask ratios."""

import math
from pathlib import Path

import pytest

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.errors import ConfigError
from masters_ray.files import as_json
from masters_ray.learner.measure import Divergence
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.records import JudgedText, Source, StageOutcome
from masters_ray.studies import judge_audit, mask_scan
from masters_ray.studies.judge_audit import AuditCase, JudgePass, disagreements, pairs
from masters_ray.studies.mask_scan import Scanned, advise
from masters_ray.studies.statistics import agreement, mean, resampled_mean, resampled_share
from tests.builders import problem, stage_outcome
from tests.conftest import DEMO, ROOT


def test_the_interval_of_three_values_is_students() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high - found.value == pytest.approx(4.303 / math.sqrt(3))
    assert not found.settled or found.low > 0
    assert mean([5.0, 5.1, 4.9]).settled


def test_one_value_has_no_interval_null_in_json_and_none_is_refused() -> None:
    assert math.isnan(mean([1.0]).low) and not mean([1.0]).settled
    assert as_json(mean([1.5])) == {"value": 1.5, "low": None, "high": None, "n": 1}
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_resampling_gives_the_interval_of_the_normal_distribution_for_many_values() -> None:
    values = [float(i % 2) for i in range(400)]
    found = resampled_mean(values)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    twice = resampled_mean(values * 2, [str(i) for i in range(400)] * 2)
    assert (twice.value, twice.n) == (found.value, 400)
    assert twice.high - twice.low == pytest.approx(found.high - found.low, rel=0.1), "two copies tell no more than one"


def test_a_share_of_all_or_none_is_not_certain() -> None:
    questions = [str(index // 2) for index in range(20)]
    all_right, none_right = resampled_share([1] * 20, questions), resampled_share([0] * 20, questions)
    assert (all_right.value, all_right.high, all_right.n) == (1.0, 1.0, 10)
    assert all_right.low == pytest.approx(0.722, abs=1e-3), "Wilson's, for 10 of 10"
    assert (none_right.value, none_right.low) == (0.0, 0.0)
    assert none_right.high == pytest.approx(0.278, abs=1e-3)
    some = [1, 0] * 10
    assert resampled_share(some, questions) == resampled_mean(some, questions)


def test_kappa_by_hand() -> None:
    """20 both right, 5 first only, 10 second only, 15 both wrong: observed 0.7, chance 0.5·0.6 + 0.5·0.4 = 0.5."""
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = agreement(first, second, list(range(50)))
    assert (found.both_right, found.right_wrong, found.wrong_right, found.both_wrong) == (20, 5, 10, 15)
    assert found.share == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.kappa.low < 0.4 < found.kappa.high
    same = agreement([1, 1], [1, 1], [0, 1])
    assert same.share == 1.0 and math.isnan(same.kappa.value), "judges that always say the same one thing"


def test_answers_to_one_question_count_together_in_the_interval() -> None:
    first, second = [1, 0] * 40, [1, 0, 0, 1] * 20
    alone = agreement(first, second, list(range(80))).kappa
    together = agreement(first, second, [index // 8 for index in range(80)]).kappa
    assert together.high - together.low < alone.high - alone.low, "every question here has the same mixture"
    pairs = agreement(first, second, [0 if a == b else 1 for a, b in zip(first, second, strict=True)]).kappa
    assert pairs.high - pairs.low > alone.high - alone.low, "two questions, of which one is all agreement"


CASES = [
    AuditCase(
        position=index // 2,
        problem=problem(id=str(index // 2), pictures=0),
        source=("teacher", "student")[index % 2],
        text=text,
    )
    for index, text in enumerate(["red", "blue", "red", "<b>", "red", "green"])
]
PASSES = {
    "student": JudgePass(seconds=12.0, accuracy=[1, 0, 1, 1, None, 0], said=["yes"] * 6),
    "teacher": JudgePass(seconds=12.0, accuracy=[1, 0, 1, 0, 1, 0], said=["no"] * 6),
    "rule": JudgePass(seconds=None, accuracy=[1, 0, 1, 0, 1, 0], said=[]),
}
AGAIN = JudgePass(seconds=9.0, accuracy=[1, 0, 0, 1, None, 0], said=["yes"] * 6)


def config(*words: str, questions: int = 3) -> Config:
    return judge_audit.audit_config(configuration.load(ROOT / "conf" / "demo.yaml", list(words)), questions, 0.2)


def test_judges_are_compared_on_what_both_could_judge() -> None:
    found = {(one.first, one.second, one.of): one.agreement for one in pairs(CASES, PASSES)}
    both = found["student", "teacher", "all"]
    assert (both.both_right, both.right_wrong, both.wrong_right, both.both_wrong) == (2, 1, 0, 2)
    assert both.share == pytest.approx(0.8)
    assert found["student", "rule", "teacher"].share == 1.0
    assert found["teacher", "rule", "all"].kappa.value == 1.0
    judges = (("student", "teacher"), ("student", "rule"), ("teacher", "rule"))
    assert set(found) == {(*both, of) for both in judges for of in ("all", "teacher", "student")}
    listed = disagreements(CASES, PASSES)
    assert [(one.problem.id, one.text) for one in listed] == [("1", "<b>"), ("2", "red")]
    assert listed[1].verdicts == {"student": None, "teacher": 1, "rule": 1}
    assert listed[1].said == {"student": "yes", "teacher": "no"}


def published(folder: Path, *judges: str) -> tuple[list[str], str]:
    """The terminal's lines and the page of these judges."""
    passes = {name: [PASSES[name]] for name in judges}
    page = judge_audit.publish_audit(config(), folder, "demo.yaml", CASES, passes)
    return (folder / "judge_audit.txt").read_text().splitlines(), page.read_text()


def test_a_judges_own_figures_and_of_a_rule_nothing_that_was_not_measured(tmp_path: Path) -> None:
    found = judge_audit.judge_figures("student", CASES, PASSES["student"], AGAIN)
    assert (found.answers, found.unjudged, found.seconds_per_answer) == (6, 1, 2.0)
    assert found.right == {"teacher": 1.0, "student": pytest.approx(1 / 3)}
    assert found.consistency == pytest.approx(5 / 6)
    lines, page = published(tmp_path, "rule")
    assert lines[1].split() == ["rule", "6", "0.0%", "–", "–"]
    numbers = "".join(f'<td class="number">{told}</td>' for told in ("6", "0.0 %", "–", "–"))
    assert f"<td>rule</td>{numbers}" in page and "All judges said the same" in page


def test_an_audit_leaves_no_answer_out(tmp_path: Path) -> None:
    audit = config(f"run.dir={tmp_path}", "judge.reasoning=true", questions=30)
    assert (audit.judge.of_teacher, audit.judge.of_student, audit.data.train.rows) == ("rule", "rule", 30)
    assert audit.judges == {"rule"}
    assert configuration.violations(audit) == []


def test_table_and_page_show_judges_pairs_and_disagreements(tmp_path: Path) -> None:
    lines, page = published(tmp_path, *PASSES)
    assert len(lines) == 1 + 3 + 1 + 9
    assert "unreadable" in page and "&lt;b&gt;" in page and "All judges said the same" not in page
    assert len((tmp_path / "disagreements.jsonl").read_text().splitlines()) == 2


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
    return [
        JudgedText(
            choices=(),
            position=question,
            kind=KINDS[question % 2],
            question="?",
            label="red",
            source=source,
            text="red",
            accuracy=int(source == "teacher" and (question % 2 == 1 or question < right * questions)),
            verdict="said",
            reasoning=None if reasoning is None else int(source == "teacher") * reasoning,
        )
        for question in range(questions)
        for source in ("teacher", "teacher", "student", "student")
    ]


def made(ratio: float) -> StageOutcome:
    return stage_outcome(ratio=ratio, teacher_written=1000, teacher_cut=round(500 * ratio))


def scanned(reasoning: int | None = None, **levels: float) -> list[Scanned]:
    """Of a ratio in percent → the level of its divergences; r40=0.2: at ratio 0.4."""
    ratios = [float(name.removeprefix("r")) / 100 for name in levels]
    return mask_scan.scanned(
        [made(ratio) for ratio in ratios],
        [rows(level) for level in levels.values()],
        [judged(1 - ratio, reasoning) for ratio in ratios],
    )


def shown(folder: Path, found: list[Scanned]) -> tuple[list[str], str]:
    """The terminal's lines and the page."""
    config = mask_scan.scan_config(configuration.load(DEMO), [one.ratio for one in found], 40)
    page = mask_scan.publish_scan(config, folder, str(DEMO), found)
    *lines, advice = (folder / "mask_scan.txt").read_text().splitlines()
    assert advice == advise(found).text
    return lines, page.read_text()


def test_means_are_over_questions_and_comparisons_are_paired() -> None:
    strong, best, _ = scanned(r40=0.2, r20=0.1, r0=0.15)
    assert best.jsd.value == pytest.approx(0.1 + sum(0.01 * (q % 7) for q in range(40)) / 40 + 0.01)
    assert best.jsd_by_source["student"].value - best.jsd_by_source["teacher"].value == pytest.approx(0.02)
    assert set(best.jsd_by_kind) == set(KINDS)
    assert strong.against_best.value == pytest.approx(0.1)
    assert strong.against_best.high - strong.against_best.low < 1e-9, "the questions' own spread is gone"
    assert best.against_best.value == 0


@pytest.mark.parametrize(
    ("found", "ratio", "overmasked", "told"),
    [
        (scanned(r40=0.2, r20=0.1, r0=0.15), 0.2, [0.4], "schedule.max_ratio=0.2 schedule.step=0.05. Over-masked: 0.4"),
        (scanned(r40=0.1, r20=0.2, r0=0.3), 0.4, [], "scan larger ones"),
        (scanned(r40=0.3, r20=0.2, r0=0.1), 0.0, [0.2, 0.4], "No mask brings the teacher nearer"),
    ],
)
def test_the_ratio_of_the_lowest_divergence_is_advised(
    found: list[Scanned], ratio: float, overmasked: list[float], told: str
) -> None:
    advice = advise(found)
    assert (advice.max_ratio, advice.overmasked, advice.equal) == (ratio, overmasked, [])
    assert told in advice.text


def test_what_cannot_be_told_apart_is_said() -> None:
    noisy = rows(0.1)
    noisy = [*noisy[:40], *(Divergence(**vars(one) | {"nats": one.nats + 0.0001}) for one in noisy[40:])]
    other = [Divergence(**vars(one) | {"nats": one.nats + (0.05 if one.position % 2 else -0.045)}) for one in noisy]
    advice = advise(mask_scan.scanned([made(0.2), made(0.0)], [noisy, other], [[], []]))
    assert (advice.max_ratio, advice.equal, advice.overmasked) == (0.2, [0.0], [])
    assert "cannot tell it from 0" in advice.text


def test_ratios_that_are_none_are_refused() -> None:
    for text in ("0.2,x", "1.0", "-0.1,0", ""):
        with pytest.raises(ConfigError, match="--ratios"):
            mask_scan.parse_ratios(text)
    assert mask_scan.parse_ratios("0,0.2,0.2,.4") == [0.4, 0.2, 0.0]


def test_a_scan_says_first_what_asking_at_every_ratio_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(mask_scan, "say", said.append)
    monkeypatch.setattr(mask_scan.run, "generate", lambda *_, **__: pytest.fail("generated"))
    scan = mask_scan.scan_config(configuration.load(DEMO, [f"run.dir={tmp_path}"]), [0.2, 0.0], 50)
    assert [stage.ratio for stage in scan.schedule.stages] == [0.2, 0.0]
    assert (scan.schedule.stage_data, scan.data.train.rows) == ("all", 50)
    assert scan.run.dir == str(tmp_path / "mask-scan-50")
    assert configuration.violations(scan) == []
    with pytest.raises(pytest.fail.Exception, match="generated"):
        mask_scan.scan(scan, RunDirectory(scan), str(DEMO))
    assert said == [
        "50 questions at 2 mask ratios: 400 answers of masked teachers and 200 of the student are written and judged, "
        "800 are scored by teacher and student"
    ]


def test_the_masked_teachers_rewards_are_over_its_own_answers_with_intervals_over_questions() -> None:
    strong, none = scanned(r40=0.2, r0=0.1, reasoning=1)
    assert strong.teacher_right is not None and none.teacher_right is not None
    assert strong.teacher_right.value == pytest.approx(0.8), "12 of 20 about colour, 20 of 20 about shape"
    assert strong.teacher_right.n == 40, "two answers to one question are no two observations"
    assert strong.teacher_right.low < 0.8 < strong.teacher_right.high
    assert strong.teacher_right_by_kind["colour"].value == pytest.approx(0.6)
    assert (none.teacher_right.value, none.teacher_right.high) == (1.0, 1.0)
    assert none.teacher_right.low == pytest.approx(0.912, abs=1e-3), "40 of 40 is not certain"
    assert strong.teacher_reasoning is not None and strong.teacher_reasoning.value == 1.0, "the student's do not count"


def test_table_and_page_show_every_ratio_and_the_rewards_that_were_asked_for(tmp_path: Path) -> None:
    for reasoning, last in ((None, "80.0%"), (1, "100.0%")):
        lines, page = shown(tmp_path, scanned(r40=0.2, r0=0.1, reasoning=reasoning))
        assert ("R_rea" in lines[0]) == ("R_rea" in page) == bool(reasoning)
        assert (lines[1].split()[5], lines[1].split()[-1]) == ("20.0%", last) and ">cut</th>" in page
    [wrote_nothing] = mask_scan.scanned([made(0.0)], [rows(0.1)], [[]])
    assert (wrote_nothing.teacher_right, wrote_nothing.teacher_right_by_kind) == (None, {})
    assert wrote_nothing.teacher_reasoning is None
    lines, page = shown(tmp_path, [wrote_nothing])
    assert lines[1].split()[-1] == "–" and "The teacher wrote no answers" in page
    found = scanned(r40=0.2, r20=0.1, r0=0.15)
    lines, page = shown(tmp_path, found)
    assert [line.split()[0] for line in lines[1:]] == ["0.4", "0.2", "0"]
    assert page.count("<svg") == 2
    assert "40.0 %" in page and "Over-masked: 0.4" in page
    colour = found[0].teacher_right_by_kind["colour"]
    assert f'<td class="number">60.0 % ({100 * colour.low:.1f}–{100 * colour.high:.1f})</td>' in page
