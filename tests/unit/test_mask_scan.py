from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.learner.measure import Divergence
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.records import JudgedText, StageOutcome
from masters_ray.studies import mask_scan
from tests.builders import stage_outcome
from tests.conftest import ROOT

DEMO = ROOT / "conf" / "demo.yaml"


def rows(level: float, questions: int = 40) -> list[Divergence]:
    """Two answers to each question; questions differ more than ratios do."""
    return [
        Divergence(
            position=question,
            kind=("colour", "shape")[question % 2],
            source=source,  # type: ignore[arg-type]
            nats=level + 0.01 * (question % 7) + apart,
        )
        for question in range(questions)
        for source, apart in (("teacher", 0.0), ("student", 0.02))
    ]


def judged(right: float, reasoning: int | None = None, questions: int = 40) -> list[JudgedText]:
    """Two answers of each source; of the teacher's, that share of the questions about colour is answered right, and all
    about shape are; the student's are wrong."""
    return [
        JudgedText(
            choices=(),
            position=question,
            kind=kind,
            question="?",
            label="red",
            source=source,
            text="red",
            accuracy=int(source == "teacher" and (kind == "shape" or question < right * questions)),
            verdict="said",
            reasoning=None if reasoning is None else int(source == "teacher") * reasoning,
        )
        for question, kind in ((question, ("colour", "shape")[question % 2]) for question in range(questions))
        for source in ("teacher", "teacher", "student", "student")
    ]


def made(ratio: float) -> StageOutcome:
    return stage_outcome(ratio=ratio, cut_by_source={"teacher": ratio / 2})


def scanned(reasoning: int | None = None, **levels: float) -> list[mask_scan.Scanned]:
    ratios = [float(name.removeprefix("r")) / 100 for name in levels]
    return mask_scan.scanned(
        [made(ratio) for ratio in ratios],
        [rows(level) for level in levels.values()],
        [judged(1 - ratio, reasoning) for ratio in ratios],
    )


def test_means_are_over_questions_and_comparisons_are_paired() -> None:
    found = scanned(r40=0.2, r20=0.1, r0=0.15)
    assert found[1].jsd.value == pytest.approx(0.1 + sum(0.01 * (q % 7) for q in range(40)) / 40 + 0.01)
    assert found[1].jsd_by_source["student"].value - found[1].jsd_by_source["teacher"].value == pytest.approx(0.02)
    assert set(found[1].jsd_by_kind) == {"colour", "shape"}
    assert found[0].against_best.value == pytest.approx(0.1)
    assert found[0].against_best.high - found[0].against_best.low < 1e-9, "the questions' own spread is gone"
    assert found[1].against_best.value == 0


def test_the_ratio_of_the_lowest_divergence_is_advised_and_stronger_masks_are_warned_of() -> None:
    advice = mask_scan.advise(scanned(r40=0.2, r20=0.1, r0=0.15))
    assert (advice.max_ratio, advice.overmasked, advice.equal) == (0.2, [0.4], [])
    assert "schedule.max_ratio=0.2 schedule.step=0.05" in advice.text
    assert "Over-masked: 0.4" in advice.text


def test_what_cannot_be_told_apart_is_said() -> None:
    noisy = rows(0.1)
    noisy = [*noisy[:40], *(Divergence(**vars(one) | {"nats": one.nats + 0.0001}) for one in noisy[40:])]
    other = [Divergence(**vars(one) | {"nats": one.nats + (0.05 if one.position % 2 else -0.045)}) for one in noisy]
    found = mask_scan.scanned([made(0.2), made(0.0)], [noisy, other], [[], []])
    advice = mask_scan.advise(found)
    assert (advice.max_ratio, advice.equal, advice.overmasked) == (0.2, [0.0], [])
    assert "cannot tell it from 0" in advice.text


def test_a_minimum_at_an_end_is_named_as_such() -> None:
    assert "scan larger ones" in mask_scan.advise(scanned(r40=0.1, r20=0.2, r0=0.3)).text
    unmasked = mask_scan.advise(scanned(r40=0.3, r20=0.2, r0=0.1))
    assert unmasked.text.startswith("No mask brings the teacher nearer")
    assert unmasked.overmasked == [0.2, 0.4]


def test_a_scan_asks_the_same_questions_at_every_ratio_and_says_what_it_costs(tmp_path: Path) -> None:
    config = configuration.load(DEMO, [f"run.dir={tmp_path}"])
    scan = mask_scan.scan_config(config, [0.4, 0.2, 0.0], 50)
    assert [stage.ratio for stage in scan.schedule.stages] == [0.4, 0.2, 0.0]
    assert (scan.schedule.stage_data, scan.data.train.rows) == ("all", 50)
    assert scan.run.dir == str(tmp_path / "mask-scan-50")
    assert "600 answers of masked teachers and 200 of the student" in mask_scan.cost(scan)
    assert configuration.violations(scan) == []


@pytest.mark.parametrize("text", ["0.2,x", "1.0", "-0.1,0", ""])
def test_ratios_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ratios"):
        mask_scan.parse_ratios(text)
    assert mask_scan.parse_ratios("0,0.2,0.2,.4") == [0.4, 0.2, 0.0]


def test_what_a_scan_costs_is_said_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def generate(*arguments: Any, **settings: Any) -> None:
        happened.append("generated")
        raise RuntimeError("stopped")

    monkeypatch.setattr(mask_scan, "say", happened.append)
    monkeypatch.setattr(mask_scan.driver, "generate", generate)
    scan = mask_scan.scan_config(configuration.load(DEMO, [f"run.dir={tmp_path}"]), [0.2, 0.0], 50)
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


def test_a_reward_that_nobody_asked_for_is_in_no_table() -> None:
    config = mask_scan.scan_config(configuration.load(DEMO), [0.4, 0.0], 40)
    for reasoning, told in ((None, False), (1, True)):
        found = scanned(r40=0.2, r0=0.1, reasoning=reasoning)
        lines = mask_scan.table(found).splitlines()
        page = mask_scan.page(config, found, mask_scan.advise(found))
        assert ("R_rea" in lines[0], "R_rea" in page) == (told, told)
        assert lines[1].split()[5] == "20.0%" and ">cut</th>" in page
        assert lines[1].split()[-1] == ("100.0%" if told else "80.0%")


def test_a_teacher_that_wrote_nothing_has_no_rewards() -> None:
    found = mask_scan.scanned([made(0.0)], [rows(0.1)], [[]])
    assert (found[0].teacher_right, found[0].teacher_right_by_kind, found[0].teacher_reasoning) == (None, {}, None)
    assert mask_scan.table(found).splitlines()[1].split()[-1] == "–"
    config = mask_scan.scan_config(configuration.load(DEMO), [0.0], 40)
    page = mask_scan.page(config, found, mask_scan.advise(found))
    assert "The teacher wrote no answers" in page


def test_table_and_page_show_every_ratio() -> None:
    found = scanned(r40=0.2, r20=0.1, r0=0.15)
    lines = mask_scan.table(found).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0.4", "0.2", "0"]
    config = mask_scan.scan_config(configuration.load(DEMO), [0.4, 0.2, 0.0], 40)
    page = mask_scan.page(config, found, mask_scan.advise(found))
    assert page.count("<svg") == 2
    assert "40.0 %" in page and "Over-masked: 0.4" in page
    [colour] = [one.teacher_right_by_kind["colour"] for one in found if one.ratio == 0.4]
    assert f'<td class="number">60.0 % ({100 * colour.low:.1f}–{100 * colour.high:.1f})</td>' in page
