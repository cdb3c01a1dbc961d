"""Who judges what, and what a run remembers of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from masters_ray import store
from masters_ray.actors.judge import Verdict
from masters_ray.config import Judge, JudgedBy
from masters_ray.errors import ReplicaLostError
from masters_ray.pipeline import rollouts
from masters_ray.pipeline.groups import Recipe
from masters_ray.pipeline.verdicts import Judging, Verdicts
from masters_ray.records import Answer, JudgedText, Problem
from tests.builders import problem
from tests.fakes import FakePool, FakeReplicas
from tests.unit.test_rollouts import PROBLEMS, Problems, recipe

QUESTION = problem()


def judging(of_teacher: JudgedBy = "student", of_student: JudgedBy = "student", student: str = "s") -> Judging:
    return Judging(
        settings=Judge(of_teacher=of_teacher, of_student=of_student), models={"student": student, "teacher": "t"}
    )


def answers(*texts: str) -> list[Answer]:
    return [Answer(source="student", text=text, token_ids=(5, 1), finish="stop") for text in texts]


def of(verdicts: Verdicts, pool: FakePool, *texts: str, how: Judging | None = None) -> list[int | None]:
    """The verdicts on a student's answers to one question."""
    pools: Any = {"judge": pool}
    [found] = verdicts.of(how or judging(), pools, [QUESTION], [QUESTION], [answers(*texts)])
    return [one.accuracy for one in found]


def roll_out(
    made: Recipe,
    rows: int,
    replicas: FakeReplicas,
    folder: Path,
    verdicts: Verdicts | None = None,
    problems: Problems = PROBLEMS,
) -> None:
    rollouts.roll_out(made, problems, range(rows), replicas, folder, verdicts=verdicts)  # type: ignore[arg-type]


class Slow(FakePool):
    """Takes so long that everybody else has come to the same question."""

    def judge(self, problems: list[Problem], answers: list[list[str]], reasoning: bool) -> list[list[Verdict]]:
        time.sleep(0.2)
        return super().judge(problems, answers, reasoning)


def test_threads_that_need_the_same_verdict_at_the_same_time_have_it_of_one_call() -> None:
    verdicts, pool, together = Verdicts(), Slow("judge"), threading.Barrier(4)

    def work(_: int) -> list[int | None]:
        together.wait()
        return of(verdicts, pool, "red", "blue", "red")

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(work, range(4))) == [[1, 0, 1]] * 4
    assert pool.judged == ["red", "blue"]


def test_the_same_case_of_two_questions_is_asked_once() -> None:
    pool = FakePool("judge")
    pools: Any = {"judge": pool}
    two = [problem(id="a"), problem(id="b")]
    found = Verdicts().of(judging(), pools, two, two, [answers("red", "blue"), answers("blue", "red")])
    assert [[one.accuracy for one in group] for group in found] == [[1, 0], [0, 1]]
    assert pool.judged == ["red", "blue"]


def test_choices_decide_a_verdict_and_a_store_has_them(tmp_path: Path) -> None:
    chosen = [
        dataclasses.replace(problem(id=str(number)), choices=choices)
        for number, choices in enumerate(((), ("red", "blue"), ("blue", "red")))
    ]
    judge = FakePool("judge")
    roll_out(recipe(), 3, FakeReplicas(judge=judge), tmp_path, problems=Problems(chosen))
    assert judge.judged == ["red", "blue"] * 3
    verdicts, pool = Verdicts(), FakePool("judge")
    verdicts.fill(recipe().judging, tmp_path)
    pools: Any = {"judge": pool}
    verdicts.of(recipe().judging, pools, chosen, chosen, [answers("red")] * 3)
    assert pool.judged == []


def test_question_and_label_decide_a_verdict_and_so_does_who_judges() -> None:
    verdicts, pool = Verdicts(), FakePool("judge")
    pools: Any = {"judge": pool}
    others = [problem(), problem(label="blue")]
    verdicts.of(judging(), pools, others, others, [answers("red"), answers("red")])
    assert pool.judged == ["red"] * 2
    of(verdicts, pool, "red")
    assert pool.judged == ["red"] * 2
    of(verdicts, pool, "red", how=judging(student="another checkpoint"))
    assert pool.judged == ["red"] * 3
    with_reasoning = Judging(settings=Judge(reasoning=True), models={"student": "s"})
    of(verdicts, pool, "red", how=with_reasoning)
    assert pool.judged == ["red"] * 4


class Dying(FakePool):
    """The first call dies, once ``awaited`` others wait for what it was asked."""

    def __init__(self, awaited: threading.Barrier) -> None:
        super().__init__("judge")
        self.awaited = awaited
        self.lost: list[list[list[str]]] = []

    def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
        if not self.lost:
            self.lost.append(arguments[1])
            self.awaited.wait()
            time.sleep(0.2)
            raise ReplicaLostError("judge.judge: its process died")


def test_a_case_whose_replica_was_lost_is_asked_again_by_who_waits_for_it() -> None:
    verdicts, awaited = Verdicts(), threading.Barrier(2)
    pool = Dying(awaited)
    with ThreadPoolExecutor(2) as executor:
        lost = executor.submit(of, verdicts, pool, "red", "blue")
        awaited.wait()
        waits = executor.submit(of, verdicts, pool, "blue", "red")
        with pytest.raises(ReplicaLostError):
            lost.result(timeout=10)
        assert waits.result(timeout=10) == [0, 1]
    assert pool.lost == [[["red", "blue"]]]
    assert pool.judged == ["blue", "red"]
    assert of(verdicts, pool, "red") == [1]
    assert pool.judged == ["blue", "red"]


def test_the_last_cases_are_remembered_and_no_more() -> None:
    verdicts, pool = Verdicts(remembered=2), FakePool("judge", {"red": 1, "blue": 0, "green": 0})
    for text in ("red", "blue", "red", "green", "red", "blue"):
        of(verdicts, pool, text)
    assert pool.judged == ["red", "blue", "green", "blue"]


STUDENT_SAYS: dict[str, int | None] = {"red": 1, "blue": 1}
TEACHER_SAYS: dict[str, int | None] = {"red": 0, "blue": 1}
"""And the rule, whose label is red, calls red right and blue wrong."""


@pytest.mark.parametrize(
    ("of_teacher", "of_student", "verdicts", "student_asked", "teacher_asked"),
    [
        ("student", "student", [1, 1, 1, 1], ["red", "blue"], []),
        ("teacher", "teacher", [0, 1, 0, 1], [], ["red", "blue"]),
        ("teacher", "student", [0, 1, 1, 1], ["red", "blue"], ["red", "blue"]),
        ("student", "teacher", [1, 1, 0, 1], ["red", "blue"], ["red", "blue"]),
        ("rule", "student", [1, 0, 1, 1], ["red", "blue"], []),
    ],
)
def test_the_answers_of_each_source_go_to_their_own_judge_and_the_same_case_once(
    of_teacher: JudgedBy,
    of_student: JudgedBy,
    verdicts: list[int],
    student_asked: list[str],
    teacher_asked: list[str],
    tmp_path: Path,
) -> None:
    judge, teacher = FakePool("judge", STUDENT_SAYS), FakePool("teacher_judge", TEACHER_SAYS)
    replicas = FakeReplicas(judge=judge, teacher_judge=teacher)
    by = Judge(of_teacher=of_teacher, of_student=of_student)
    roll_out(recipe(judge=by), 5, replicas, tmp_path)
    assert [[one.judged.accuracy for one in row.answers] for row in store.read(tmp_path)] == [verdicts] * 5
    assert (judge.judged, teacher.judged) == (student_asked, teacher_asked), "all five questions are the same case"


def test_batches_under_way_at_the_same_time_ask_the_judge_each_case_once(tmp_path: Path) -> None:
    judge = Slow("judge")
    replicas = FakeReplicas(judge=judge)
    roll_out(recipe(batch_rows=1), 5, replicas, tmp_path)
    assert judge.judged == ["red", "blue"], "all five questions and their labels are the same"


def test_a_second_stage_adds_nothing(tmp_path: Path) -> None:
    verdicts = Verdicts()
    for stage, ratio in enumerate((0.2, 0.0)):
        judge = FakePool("judge")  # replicas may be others in every stage
        replicas = FakeReplicas(judge=judge)
        roll_out(recipe(stage, ratio), 5, replicas, tmp_path / str(stage), verdicts)
        assert judge.judged == [["red", "blue"], []][stage]


def test_a_stage_that_goes_on_asks_only_what_it_has_not_stored(tmp_path: Path) -> None:
    questions = Problems([*PROBLEMS[:2], problem(id="new", label="blue")])

    def asked(rows: int) -> list[str]:
        judge = FakePool("judge")
        roll_out(recipe(), rows, FakeReplicas(judge=judge), tmp_path, problems=questions)
        (tmp_path / store.MANIFEST).unlink()
        return judge.judged

    assert asked(1) == ["red", "blue"]
    assert asked(2) == [], "the second question, its label and answers are those of the first"
    assert asked(3) == ["red", "blue"], "another label"


def test_no_more_is_read_of_a_store_than_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roll_out(recipe(batch_rows=1), 5, FakeReplicas(), tmp_path)
    read: list[int] = []
    whole = store.read_judged

    def watched(folder: store.Where) -> Iterator[JudgedText]:
        for one in whole(folder):
            read.append(one.position)
            yield one

    monkeypatch.setattr(store, "read_judged", watched)
    Verdicts(remembered=6).fill(recipe().judging, tmp_path)
    assert read == [4] * 4 + [3] * 2, "the latest questions, though all are the same two cases"
    read.clear()
    Verdicts(remembered=1).fill(recipe(judge=Judge(of_teacher="rule", of_student="rule")).judging, tmp_path)
    assert read == [], "no model judges"


def test_what_a_rule_said_is_no_models_verdict(tmp_path: Path) -> None:
    made = recipe(judge=Judge(of_teacher="rule"), teacher_answers=2, student_answers=1)
    replicas = FakeReplicas()
    roll_out(made, 1, replicas, tmp_path)
    verdicts, pool = Verdicts(), FakePool("judge")
    verdicts.fill(made.judging, tmp_path)
    of(verdicts, pool, "red", "blue", how=made.judging)
    assert pool.judged == ["blue"], "only the teacher wrote it"


def test_stored_verdicts_come_back_as_they_were(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    roll_out(recipe(judge=Judge(reasoning=True)), 1, replicas, tmp_path)
    found = [(one.source, one.text, one.accuracy, one.verdict, one.reasoning) for one in store.read_judged(tmp_path)]
    assert found == [
        (source, text, right, "said", right)
        for source in ("teacher", "student")
        for text, right in (("red", 1), ("blue", 0))
    ]
    verdicts, pool = Verdicts(), FakePool("judge")
    verdicts.fill(recipe(judge=Judge(reasoning=True)).judging, tmp_path)
    pools: Any = {"judge": pool}
    how = recipe(judge=Judge(reasoning=True)).judging
    [[one]] = verdicts.of(how, pools, [PROBLEMS[0]], [PROBLEMS[0]], [answers("red")])
    assert one == Verdict(accuracy=1, text="said", reasoning=1)
    assert pool.judged == []


def test_a_damaged_shard_is_said_when_verdicts_are_read_and_costs_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replicas = FakeReplicas()
    roll_out(recipe(), 5, replicas, tmp_path)
    shard = tmp_path / "shard-00000002.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    Verdicts().fill(recipe().judging, tmp_path)
    assert "shard-00000002.parquet: a damaged shard" in capsys.readouterr().out
    assert {one.position for one in store.read_judged(tmp_path)} == {0, 1, 4}
