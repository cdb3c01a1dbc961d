import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masters_ray import store
from masters_ray.config import Judge, JudgedBy, Rollout
from masters_ray.errors import CheckpointError, DataError, ReplicaLostError, StoreError
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import rollouts
from masters_ray.pipeline.recipes import Recipe
from masters_ray.records import Picture, Problem, Rejected, RolloutGroup, StageOutcome
from masters_ray.replicas.judge import Verdict
from tests.builders import png, problem
from tests.fakes import FakePool, FakeReplicas


class Problems(list[Problem]):
    """Questions in memory."""

    @property
    def digests(self) -> np.ndarray:
        return np.array([one.digest for one in self], "S16")

    def digest(self, position: int) -> str:
        return self[position].digest

    def key(self, part: range) -> dict[str, str]:
        return {}


PROBLEMS = Problems(problem(id=str(position)) for position in range(5))
SMALL = dict.fromkeys(("teacher_answers", "student_answers", "batch_rows"), 2) | {
    f"max_{what}_share": 1.0 for what in ("set_aside", "unjudged", "empty", "cut")
}


def recipe(
    stage: int = 0, ratio: float = 0.2, judge: Judge | None = None, asked: str = "these", **rollout: Any
) -> Recipe:
    made_by = Rollout(**(SMALL | rollout))
    return Recipe(
        stage=Stage(index=stage, ratio=ratio),
        rollout=made_by,
        judge=judge or Judge(),
        seed=0,
        student_digest="s",
        settings={"questions": asked, "mask_ratio": ratio, "teacher_answers": made_by.teacher_answers},
    )


@dataclass
class Stored:
    """A finished stage."""

    rows: list[RolloutGroup]
    rejected: list[Rejected]
    told: StageOutcome

    @property
    def texts(self) -> list[list[str]]:
        return [[answer.judged.answer.text for answer in row.answers] for row in self.rows]


def roll_out(
    folder: Path,
    replicas: FakeReplicas | None = None,
    problems: Sequence[Problem] = PROBLEMS,
    earlier: store.Lookup | None = None,
    **of: Any,
) -> Stored:
    """of: the recipe."""
    replicas, positions = replicas or FakeReplicas(), range(len(problems))
    rollouts.roll_out(recipe(**of), Problems(problems), positions, replicas, folder, earlier)  # type: ignore[arg-type]
    rejected = [one for account in store.read_accounts(folder).values() for one in account.rejected.values()]
    manifest = store.read_manifest(folder)
    assert manifest is not None
    return Stored(list(store.read(folder)), rejected, StageOutcome(**manifest.made_by))


def test_a_stage_stores_every_question_in_its_order_with_teacher_and_student_answers(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    stored = roll_out(tmp_path, replicas)
    assert [row.position for row in stored.rows] == [0, 1, 2, 3, 4]
    assert len(store.read_accounts(tmp_path)) == 3
    first, told = stored.rows[0], stored.told
    answers = [answer.judged for answer in first.answers]
    assert [(one.answer.source, one.answer.token_ids, one.accuracy) for one in answers] == [
        ("teacher", (5, 1), 1),
        ("teacher", (6, 1), 0),
        ("student", (6, 1), 1),
        ("student", (7, 1), 0),
    ]
    assert (first.teacher_digest, first.student_digest, first.mask_ratio) == ("digest 0", "s", 0.2)
    assert (told.rows, told.answers, told.unjudged, told.judge_rule_agreements) == (5, 20, 0, 20)
    assert told.rates("right", "judged") == {"teacher": 0.5, "student": 0.5}
    counts = {name: (one["calls"], one["questions"], one["tokens"]) for name, one in told.calls.items()}
    written, scored = (3, 5, 5 * 2 * 2), (3, 5, 5 * 2)
    assert counts == {
        "teacher.answer": written,
        "student.answer": written,
        "judge.judge": (3, 5, 5 * 2 * 3),
        "teacher.score": scored,
        "student.score": scored,
    }
    left_out = np.concatenate([answer.teacher.left_out for row in stored.rows for answer in row.answers])
    assert told.tail_mass == pytest.approx(left_out.mean(), rel=1e-6), "over the tokens of its rows"
    assert left_out.std() > 1e-3
    # Each model scores only what it has not written; equal answers have the same scores.
    assert replicas.pools["teacher"].scored == [(7, 1)] * 5
    assert replicas.pools["student"].scored == [(5, 1)] * 5
    assert np.array_equal(first.answers[1].teacher.top_logprobs, first.answers[2].teacher.top_logprobs)


@pytest.mark.parametrize(("of_teacher", "of_student"), [(0, 3), (3, 0), (1, 2)])
def test_any_split_of_a_group_is_allowed(of_teacher: int, of_student: int, tmp_path: Path) -> None:
    """The learner reads the student's prompt length; the teacher's of the same question may be another."""
    replicas = FakeReplicas()
    split: dict[str, Any] = {"teacher_answers": of_teacher, "student_answers": of_student}
    replicas.pools["student"].prompt_tokens = 11
    stored = roll_out(tmp_path / "a", replicas, **split)
    sources = ["teacher"] * of_teacher + ["student"] * of_student
    assert [[one.judged.answer.source for one in row.answers] for row in stored.rows] == [sources] * 5
    answers = [one for row in stored.rows for one in row.answers]
    assert [(len(one.teacher.left_out), one.reference_logprobs.tolist()) for one in answers] == [(2, [-1, -1])] * 15
    written = list(replicas.pools["student"].wrote)
    again = roll_out(tmp_path / "b", replicas, earlier=store.Lookup([tmp_path / "a"]), stage=1, ratio=0.1, **split)
    assert replicas.pools["student"].wrote == written, "taken over"
    assert [row.prompt_tokens for row in [*stored.rows, *again.rows]] == [11] * 10


def test_a_question_that_an_engine_refuses_is_set_aside_and_the_others_are_stored(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    replicas.pools["teacher"].refuses = {"1"}
    replicas.pools["student"].refuses = {"2"}
    replicas.pools["teacher"].refuses_to_score = {"4"}
    stored = roll_out(tmp_path, replicas)
    refuses = "'s engine refuses it: too long"
    assert {one.row: one.reason for one in stored.rejected} == {
        "1": f"the teacher{refuses}",
        "2": f"the student{refuses}",
        "4": f"the teacher{refuses}",
    }
    assert [row.position for row in stored.rows] == [0, 3]


def test_unjudged_answers_are_left_out_and_a_question_with_fewer_than_two_is_set_aside(tmp_path: Path) -> None:
    half = roll_out(tmp_path / "half", FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": None})))
    assert (half.texts, half.rejected, half.told.answers, half.told.unjudged) == ([["red"] * 2] * 5, [], 20, 10)
    none = roll_out(tmp_path / "none", FakeReplicas(judge=FakePool("judge", {"red": None, "blue": None})))
    assert [one.row for one in none.rejected] == ["0", "1", "2", "3", "4"]
    assert none.rejected[0].reason == "the judge could read 0 of 4 answers"
    assert none.rows == []


class Mortal(FakePool):
    """Dies of question 1 so many times."""

    def __init__(self, deaths: int) -> None:
        super().__init__("teacher")
        self.deaths = deaths
        self.asked: list[list[str]] = []

    def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "answer" and "1" in (ids := [one.id for one in arguments[0]]):
            self.asked.append(ids)
            if len(self.asked) <= self.deaths:
                raise ReplicaLostError("teacher.answer: its process died: killed")


@pytest.mark.parametrize("deaths", [1, 99])
def test_a_batch_whose_replica_died_is_taken_again_and_a_deadly_question_set_aside(deaths: int, tmp_path: Path) -> None:
    teacher = Mortal(deaths)
    stored = roll_out(tmp_path, FakeReplicas(teacher=teacher))
    reason = "a replica died 3 times in a row on this question: teacher.answer: its process died: killed"
    dead = [Rejected(row="1", reason=reason, kind="replica")] if deaths == 99 else []
    assert stored.rejected == dead
    assert [row.position for row in stored.rows] == ([0, 2, 3, 4] if dead else [0, 1, 2, 3, 4])
    assert teacher.asked == [["0", "1"]] * 2 + [["1"]] * (3 if dead else 0)
    assert (stored.told.rows, stored.told.answers) == ((4, 16) if dead else (5, 20))


def test_a_stage_goes_on_where_it_was_stopped_with_its_own_teacher_and_asks_nothing_twice(tmp_path: Path) -> None:
    roll_out(tmp_path)
    first, *later = sorted(tmp_path.glob("shard-*"))
    for file in (*later, tmp_path / "manifest.json"):
        file.unlink()
    before, teacher = first.stat().st_mtime_ns, FakePool("teacher")
    with pytest.raises(StoreError, match="made by something else.*teacher_digest: 'digest 0' there, 'other 0' now"):
        roll_out(tmp_path, FakeReplicas(teacher=FakePool("teacher", digest="other")))
    stored = roll_out(tmp_path, FakeReplicas(teacher=teacher))
    assert first.stat().st_mtime_ns == before
    assert sorted(teacher.wrote) == ["2", "3", "4"]
    assert [row.position for row in stored.rows] == [0, 1, 2, 3, 4]
    assert (stored.told.answers, stored.rejected) == (20, [])


def test_batches_never_reach_over_questions_that_are_left_out() -> None:
    batches = rollouts.question_batches(PROBLEMS, [0, 2, 3, 4], 2)  # type: ignore[arg-type]
    assert [[(at, one.id) for at, one in batch] for batch in batches] == [[(0, "0")], [(2, "2"), (3, "3")], [(4, "4")]]


def test_teachers_with_different_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hold different weights"):
        roll_out(tmp_path, FakeReplicas(teacher=FakePool("teacher", reports=2)))


def test_sampling_seeds_differ_by_question_source_and_ratio_and_fit_an_engine() -> None:
    recipes = [replace(recipe(ratio=ratio), seed=seed) for seed, ratio in product((0, 1), (0.0, 0.2))]
    seeds = {one.seed_of(source, name) for one in recipes for source in ("teacher", "student") for name in ("a", "b")}
    assert len(seeds) == 8 + 4, "the student is the same in all stages"
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert recipe(stage=0).seed_of("teacher", "a") == recipe(stage=1).seed_of("teacher", "a")


def test_rows_made_by_the_same_recipe_are_taken_over_by_question(tmp_path: Path) -> None:
    old = roll_out(tmp_path / "old" / "stage-0", asked="those of then")
    other = [problem(id="new"), PROBLEMS[3], PROBLEMS[0], problem(id="0", label="mended")]
    reuse: dict[str, Any] = {"reuse": [str(tmp_path / "old")]}
    teacher = FakePool("teacher")
    new = roll_out(tmp_path / "a", FakeReplicas(teacher=teacher), other, stage=1, **reuse)
    assert sorted(teacher.wrote) == ["0", "new"]
    assert [(row.position, row.stage, row.problem) for row in new.rows] == [
        (at, 1, one) for at, one in enumerate(other)
    ]
    assert (new.told.rows, new.told.answers) == (4, 16)
    before, after = old.rows[3].answers[3], new.rows[1].answers[3]
    assert np.array_equal(before.teacher.top_logprobs, after.teacher.top_logprobs)
    roll_out(tmp_path / "b", FakeReplicas(teacher=teacher), other, ratio=0.1, **reuse)
    assert len(teacher.wrote) == 2 + 4, "another recipe"
    with pytest.raises(StoreError, match="rollout.reuse.*holds no store"):
        roll_out(tmp_path / "c", reuse=[str(tmp_path / "nowhere")])


def test_a_picture_is_stored_as_it_is_asked_for_and_one_that_is_gone_sets_its_question_aside(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png())
    there, gone = (replace(one, pictures=(Picture(path=f"{tmp_path}/{one.id}.png"),)) for one in PROBLEMS[:2])
    [by_path] = roll_out(tmp_path / "reference", problems=[there], pictures="reference").rows
    embedded = roll_out(tmp_path / "embed", problems=[there, gone])
    [row], [rejected] = embedded.rows, embedded.rejected
    assert (by_path.problem.pictures, row.problem.pictures) == (there.pictures, (Picture(data=png()),))
    assert (rejected.row, rejected.kind) == ("1", "picture")
    assert "1.png does not exist" in rejected.reason


@pytest.mark.parametrize(
    ("limit", "too_low", "enough", "told"),
    [
        ("set_aside", 0.3, 0.4, r"2 of 5 questions were set aside \(engine 2\)(.|\n)*engine\. 1: (.|\n)*too long"),
        ("unjudged", 0.4, 0.5, "6 of 12 answers could not be judged; rollout.max_unjudged_share allows 0.4"),
        ("cut", 0.4, 0.5, "3 of 6 answers of the student are cut at rollout.sampling.max_tokens = 1024"),
    ],
)
def test_a_stage_stops_at_a_limit_and_goes_on_when_more_is_allowed(
    limit: str, too_low: float, enough: float, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replicas = FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": None}))
    replicas.pools["teacher"].refuses, replicas.pools["student"].cuts = {"1", "2"}, {"red"}
    allowed: dict[str, Any] = {f"max_{limit}_share": too_low}
    for _ in range(2):
        with pytest.raises(DataError, match=told):
            roll_out(tmp_path, replicas, **allowed)
        for thread in threading.enumerate():
            if "ThreadPoolExecutor" in thread.name:
                thread.join()  # the other batches; in the program the process ends
    allowed[f"max_{limit}_share"] = enough
    stored = roll_out(tmp_path, replicas, **allowed)
    assert (stored.told.set_aside, stored.told.unjudged) == ({"engine": 2}, 6)
    assert stored.told.rates("cut", "written") == {"teacher": 0.0, "student": 0.5}
    assert [one.judged.answer.finish for one in stored.rows[0].answers] == ["stop", "length"]
    assert "stage 0: 50.0% of the student's answers are cut" in capsys.readouterr().out


def test_tags_and_verdicts_unlike_the_rules_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roll_out(tmp_path / "as it should be")
    said = capsys.readouterr().out
    assert "teacher right 50%  student right 50%" in said and "differ" not in said
    student = FakePool("student")
    student.says, student.cuts = ("red", "x <answer>1</answer>"), {"red"}
    odd = replace(problem(id="9"), label="</ground truth>")
    judge = FakePool("judge", {"red": 1, "blue": 1, student.says[1]: 0})
    told = roll_out(tmp_path / "b", FakeReplicas(student=student, judge=judge), [*PROBLEMS, odd]).told
    assert (told.defused_answers, told.defused_questions) == (6, 1)
    assert (told.compared, told.judge_right, told.rule_right, told.judge_rule_agreements) == (24, 18, 10, 16)
    own = (told.student_judge_right, told.student_rule_right, told.student_judge_rule_agreements)
    assert (told.student_compared, own) == (12, (6, 5, 11))
    said = capsys.readouterr().out
    assert "teacher right 100%  student right 50%, 50% cut" in said
    assert "6 answers and 1 questions with tags of the judge's prompts" in said
    assert "stage 0: the judge and the rule (exact) differ on 33.3% of 24 answers" in said


BOTH = ["red", "blue"]
VERDICTS = {"student": [1, 1], "teacher": [0, 1], "rule": [1, 0]}


@pytest.mark.parametrize("of_teacher", VERDICTS)
@pytest.mark.parametrize("of_student", VERDICTS)
def test_the_answers_of_each_source_go_to_their_own_judge_and_equal_ones_once(
    of_teacher: JudgedBy, of_student: JudgedBy, tmp_path: Path
) -> None:
    """The student calls all right, the teacher blue alone, and the rule, whose label is red, red alone."""
    student, teacher = FakePool("judge", {"red": 1, "blue": 1}), FakePool("teacher_judge", {"red": 0, "blue": 1})
    judge = Judge(of_teacher=of_teacher, of_student=of_student)
    stored = roll_out(tmp_path, FakeReplicas(judge=student, teacher_judge=teacher), PROBLEMS[:1], judge=judge)
    judged = [one.judged for one in stored.rows[0].answers]
    assert [one.answer.text for one in judged] == BOTH * 2
    assert [one.accuracy for one in judged] == VERDICTS[of_teacher] + VERDICTS[of_student]
    asked = [BOTH if judge in (of_teacher, of_student) else [] for judge in ("student", "teacher")]
    assert [student.judged, teacher.judged] == asked
    assert stored.told.compared == 2 * [of_teacher != "rule", of_student != "rule"].count(True), "with the rule"


def test_the_reasoning_is_stored_and_an_unreadable_one_leaves_the_answer_out(tmp_path: Path) -> None:
    def reasoning(stored: Stored) -> list[int | None]:
        return [one.judged.reasoning for one in stored.rows[0].answers]

    asked = roll_out(tmp_path / "a", judge=Judge(reasoning=True))
    assert (reasoning(asked), asked.told.reasoning_right) == ([1, 0, 1, 0], asked.told.reasoning_judged / 2)
    assert reasoning(roll_out(tmp_path / "b")) == [None] * 4

    class Vague(FakePool):
        def judge(self, problems: list[Any], answers: list[list[str]], reasoning: bool) -> list[list[Verdict]]:
            told = super().judge(problems, answers, reasoning)
            return [[replace(one, reasoning=one.reasoning or None) for one in group] for group in told]

    vague = roll_out(tmp_path / "c", FakeReplicas(judge=Vague("judge")), judge=Judge(reasoning=True))
    assert vague.texts == [["red"] * 2] * 5
