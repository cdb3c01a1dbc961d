from __future__ import annotations

from pathlib import Path

import pytest

from masters_ray import config as configuration
from masters_ray.config import Config
from masters_ray.studies import judge_audit
from masters_ray.studies.judge_audit import AuditCase, JudgePass, disagreements, pairs
from tests.builders import problem
from tests.conftest import ROOT

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
    assert set(found) == {
        (first, second, of)
        for first, second in (("student", "teacher"), ("student", "rule"), ("teacher", "rule"))
        for of in ("all", "teacher", "student")
    }


def test_every_answer_on_which_not_all_say_the_same_is_listed_once() -> None:
    found = disagreements(CASES, PASSES)
    assert [(one.problem.id, one.text) for one in found] == [("1", "<b>"), ("2", "red")]
    assert found[1].verdicts == {"student": None, "teacher": 1, "rule": 1}
    assert found[1].said == {"student": "yes", "teacher": "no"}


def test_a_judges_own_figures() -> None:
    found = judge_audit.judge_figures("student", CASES, PASSES["student"], AGAIN)
    assert (found.answers, found.unjudged, found.seconds_per_answer) == (6, 1, 2.0)
    assert found.right == {"teacher": 1.0, "student": pytest.approx(1 / 3)}
    assert found.consistency == pytest.approx(5 / 6)


def published(folder: Path, *judges: str) -> tuple[list[str], str]:
    """The terminal's lines and the page of these judges."""
    passes = {name: [PASSES[name]] for name in judges}
    page = judge_audit.publish_audit(config(), folder, "demo.yaml", CASES, passes)
    return (folder / "judge_audit.txt").read_text().splitlines(), page.read_text()


def test_of_a_rule_nothing_is_told_that_was_not_measured(tmp_path: Path) -> None:
    lines, page = published(tmp_path, "rule")
    assert lines[1].split() == ["rule", "6", "0.0%", "–", "–"]
    numbers = "".join(f'<td class="number">{told}</td>' for told in ("6", "0.0 %", "–", "–"))
    assert f"<td>rule</td>{numbers}" in page
    assert "All judges said the same" in page


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
