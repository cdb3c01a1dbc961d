from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.learner.measure import Divergence
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.records import JudgedText, Source, StageOutcome
from masters_ray.studies import mask_scan
from masters_ray.studies.mask_scan import Scanned, advise
from tests.builders import stage_outcome
from tests.conftest import ROOT

DEMO = ROOT / "conf" / "demo.yaml"
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
def test_the_ratio_of_the_lowest_divergence_is_advised_and_stronger_masks_are_warned_of(
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


@pytest.mark.parametrize("text", ["0.2,x", "1.0", "-0.1,0", ""])
def test_ratios_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ratios"):
        mask_scan.parse_ratios(text)
    assert mask_scan.parse_ratios("0,0.2,0.2,.4") == [0.4, 0.2, 0.0]


def test_a_scan_asks_the_same_questions_at_every_ratio_and_says_what_it_costs_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def generate(*arguments: Any, **settings: Any) -> None:
        happened.append("generated")
        raise RuntimeError("stopped")

    monkeypatch.setattr(mask_scan, "say", happened.append)
    monkeypatch.setattr(mask_scan.run, "generate", generate)
    scan = mask_scan.scan_config(configuration.load(DEMO, [f"run.dir={tmp_path}"]), [0.2, 0.0], 50)
    assert [stage.ratio for stage in scan.schedule.stages] == [0.2, 0.0]
    assert (scan.schedule.stage_data, scan.data.train.rows) == ("all", 50)
    assert scan.run.dir == str(tmp_path / "mask-scan-50")
    assert configuration.violations(scan) == []
    with pytest.raises(RuntimeError, match="stopped"):
        mask_scan.scan(scan, RunDirectory(scan), str(DEMO))
    assert happened == [
        "50 questions at 2 mask ratios: 400 answers of masked teachers and 200 of the student are written and judged, "
        "800 are scored by teacher and student",
        "generated",
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


@pytest.mark.parametrize(("reasoning", "told"), [(None, False), (1, True)])
def test_a_reward_that_nobody_asked_for_is_in_no_table(reasoning: int | None, told: bool, tmp_path: Path) -> None:
    lines, page = shown(tmp_path, scanned(r40=0.2, r0=0.1, reasoning=reasoning))
    assert ("R_rea" in lines[0], "R_rea" in page) == (told, told)
    assert lines[1].split()[5] == "20.0%" and ">cut</th>" in page
    assert lines[1].split()[-1] == ("100.0%" if told else "80.0%")


def test_a_teacher_that_wrote_nothing_has_no_rewards(tmp_path: Path) -> None:
    [found] = mask_scan.scanned([made(0.0)], [rows(0.1)], [[]])
    assert (found.teacher_right, found.teacher_right_by_kind, found.teacher_reasoning) == (None, {}, None)
    lines, page = shown(tmp_path, [found])
    assert lines[1].split()[-1] == "–"
    assert "The teacher wrote no answers" in page


def test_table_and_page_show_every_ratio(tmp_path: Path) -> None:
    found = scanned(r40=0.2, r20=0.1, r0=0.15)
    lines, page = shown(tmp_path, found)
    assert [line.split()[0] for line in lines[1:]] == ["0.4", "0.2", "0"]
    assert page.count("<svg") == 2
    assert "40.0 %" in page and "Over-masked: 0.4" in page
    colour = found[0].teacher_right_by_kind["colour"]
    assert f'<td class="number">60.0 % ({100 * colour.low:.1f}–{100 * colour.high:.1f})</td>' in page
