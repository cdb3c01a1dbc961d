import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masters_ray import store
from masters_ray.config import Judge, Rollout
from masters_ray.errors import CheckpointError, DataError, ReplicaError, ReplicaLostError, StoreError
from masters_ray.method.schedule import Stage
from masters_ray.pipeline import rollouts
from masters_ray.pipeline.recipes import Earlier, Recipe
from masters_ray.records import Picture, Problem, Rejected, StageOutcome
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
SMALL = {
    "teacher_answers": 2,
    "student_answers": 2,
    "batch_rows": 2,
    "max_set_aside_share": 1.0,
    "max_unjudged_share": 1.0,
    "max_empty_share": 1.0,
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


def wait_for_what_runs_on() -> None:
    """A stage that stops early does not wait for its other batches; in the program the process ends."""
    for thread in threading.enumerate():
        if "ThreadPoolExecutor" in thread.name:
            thread.join()


def roll_out(
    folder: Path,
    replicas: FakeReplicas | None = None,
    problems: Sequence[Problem] = PROBLEMS,
    earlier: Earlier | None = None,
    **of: Any,
) -> list[Rejected]:
    """What was set aside. of: the recipe."""
    replicas, positions = replicas or FakeReplicas(), range(len(problems))
    rollouts.roll_out(recipe(**of), Problems(problems), positions, replicas, folder, earlier)  # type: ignore[arg-type]
    accounts = store.read_accounts(folder).values()
    return [one for account in accounts for one in account.rejected.values()]


def made(folder: Path) -> StageOutcome:
    """What the manifest of a finished stage says."""
    manifest = store.read_manifest(folder)
    assert manifest is not None
    return StageOutcome(**manifest.made_by)


def test_a_stage_stores_every_question_in_its_order_with_teacher_and_student_answers(tmp_path: Path) -> None:
    assert roll_out(tmp_path, FakeReplicas()) == []
    rows = list(store.read(tmp_path))
    assert [row.position for row in rows] == [0, 1, 2, 3, 4]
    assert [answer.judged.answer.source for answer in rows[0].answers] == ["teacher", "teacher", "student", "student"]
    assert [answer.judged.accuracy for answer in rows[0].answers] == [1, 0, 1, 0]
    assert (rows[0].teacher_digest, rows[0].student_digest, rows[0].mask_ratio) == ("digest 0", "s", 0.2)
    manifest = store.read_manifest(tmp_path)
    assert manifest is not None
    assert len(manifest.shards) == 3
    told = made(tmp_path)
    assert (told.rows, told.answers, told.unjudged, told.judge_rule_agreements) == (5, 20, 0, 20)
    assert told.accuracy_by_source == {"teacher": 0.5, "student": 0.5}
    left_out = np.concatenate([answer.teacher.left_out for row in rows for answer in row.answers])
    assert told.tail_mass == pytest.approx(left_out.mean(), rel=1e-6), "over the tokens of its rows"
    assert left_out.std() > 1e-3


@pytest.mark.parametrize(("of_teacher", "of_student"), [(0, 3), (3, 0), (1, 2)])
def test_any_split_of_a_group_is_allowed(of_teacher: int, of_student: int, tmp_path: Path) -> None:
    replicas = FakeReplicas()
    roll_out(tmp_path, replicas, teacher_answers=of_teacher, student_answers=of_student)
    for source, count in (("teacher", of_teacher), ("student", of_student)):
        assert sorted(replicas.pools[source].wrote) == (["0", "1", "2", "3", "4"] if count else [])
    sources = ["teacher"] * of_teacher + ["student"] * of_student
    rows = list(store.read(tmp_path))
    assert [[one.judged.answer.source for one in row.answers] for row in rows] == [sources] * 5
    scores = [(len(one.teacher.left_out), one.reference_logprobs.tolist()) for row in rows for one in row.answers]
    assert scores == [(2, [-1, -1])] * 15


def test_each_model_scores_only_what_it_has_not_written(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    roll_out(tmp_path, replicas)
    assert replicas.pools["teacher"].scored == [(7, 1)] * 5
    assert replicas.pools["student"].scored == [(5, 1)] * 5
    for row in store.read(tmp_path):
        assert [answer.judged.answer.token_ids for answer in row.answers] == [(5, 1), (6, 1), (6, 1), (7, 1)]
        second, same = row.answers[1:3]
        assert np.array_equal(second.teacher.top_logprobs, same.teacher.top_logprobs)
        assert row.prompt_tokens == 17


def test_a_question_that_an_engine_refuses_is_set_aside_and_the_others_are_stored(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    replicas.pools["teacher"].refuses = {"1"}
    replicas.pools["student"].refuses = {"2"}
    replicas.pools["teacher"].refuses_to_score = {"4"}
    rejected = roll_out(tmp_path, replicas)
    assert {one.row: one.reason for one in rejected} == {
        "1": "the teacher's engine refuses it: too long",
        "2": "the student's engine refuses it: too long",
        "4": "the teacher's engine refuses it: too long",
    }
    assert [row.position for row in store.read(tmp_path)] == [0, 3]


def test_unjudged_answers_are_left_out_and_a_question_with_fewer_than_two_is_set_aside(tmp_path: Path) -> None:
    half = FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": None}))
    assert roll_out(tmp_path / "half", half) == []
    texts = [[answer.judged.answer.text for answer in row.answers] for row in store.read(tmp_path / "half")]
    assert texts == [["red"] * 2] * 5
    assert (made(tmp_path / "half").answers, made(tmp_path / "half").unjudged) == (20, 10)
    rejected = roll_out(tmp_path / "none", FakeReplicas(judge=FakePool("judge", {"red": None, "blue": None})))
    assert [one.row for one in rejected] == ["0", "1", "2", "3", "4"]
    assert rejected[0].reason == "the judge could read 0 of 4 answers"
    assert list(store.read(tmp_path / "none")) == []


def test_an_error_of_a_replica_ends_the_stage_without_a_manifest(tmp_path: Path) -> None:
    class Broken(FakePool):
        def judge(self, problems: list[Any], answers: list[list[str]], reasoning: bool) -> list[list[Verdict]]:
            raise ReplicaError("judge.judge: its process died")

    with pytest.raises(ReplicaError, match="its process died"):
        roll_out(tmp_path, FakeReplicas(judge=Broken("judge")))
    assert store.read_manifest(tmp_path) is None


class Mortal(FakePool):
    """Dies when a call holds one of some questions, as often as it is told to."""

    def __init__(self, deadly: dict[str, int]) -> None:
        super().__init__("teacher")
        self.deadly = deadly
        self.asked: list[list[str]] = []

    def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "answer":
            ids = [one.id for one in arguments[0]]
            self.asked.append(ids)
            for name in ids:
                if self.deadly.get(name, 0):
                    self.deadly[name] -= 1
                    raise ReplicaLostError("teacher.answer: its process died: killed")


def test_a_batch_whose_replica_died_is_taken_again(tmp_path: Path) -> None:
    teacher = Mortal({"1": 1})
    assert roll_out(tmp_path, FakeReplicas(teacher=teacher)) == []
    assert sorted(teacher.asked) == [["0", "1"], ["0", "1"], ["2", "3"], ["4"]]
    assert [row.position for row in store.read(tmp_path)] == [0, 1, 2, 3, 4]


def test_a_question_on_which_replicas_die_is_set_aside_and_its_neighbours_are_stored(tmp_path: Path) -> None:
    teacher = Mortal({"1": 99})
    [rejected] = roll_out(tmp_path, FakeReplicas(teacher=teacher))
    assert rejected.row == "1"
    assert rejected.reason == (
        "a replica died 3 times in a row on this question: teacher.answer: its process died: killed"
    )
    assert [row.position for row in store.read(tmp_path)] == [0, 2, 3, 4]
    assert [ids for ids in teacher.asked if "1" in ids] == [["0", "1"]] * 2 + [["1"]] * 3
    assert (made(tmp_path).rows, made(tmp_path).answers) == (4, 16)


def test_a_stage_goes_on_where_it_was_stopped_and_asks_nothing_twice(tmp_path: Path) -> None:
    class Stopped(FakePool):
        """Fails at the second batch, once the first one is stored."""

        def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
            if method == "answer" and "0" not in [one.id for one in arguments[0]]:
                while not (tmp_path / "shard-00000000.parquet").exists():
                    time.sleep(0.01)
                raise ReplicaError("stopped")

    with pytest.raises(ReplicaError, match="stopped"):
        roll_out(tmp_path, FakeReplicas(teacher=Stopped("teacher")))
    [first] = tmp_path.glob("shard-*")
    before = first.stat().st_mtime_ns
    teacher = Mortal({})
    assert roll_out(tmp_path, FakeReplicas(teacher=teacher)) == []
    assert first.stat().st_mtime_ns == before
    assert sorted(name for ids in teacher.asked for name in ids) == ["2", "3", "4"]
    assert [row.position for row in store.read(tmp_path)] == [0, 1, 2, 3, 4]
    assert made(tmp_path).answers == 20


@pytest.mark.parametrize(
    ("of", "digest", "told"),
    [
        ({"teacher_answers": 1}, "digest", "teacher_answers: 2 there, 1 now"),
        ({}, "other", "teacher_digest: 'digest 0' there, 'other 0' now"),
        ({"asked": "others"}, "digest", "questions: 'these' there, 'others' now.*another run.dir .* in rollout.reuse"),
    ],
    ids=["setting", "teacher", "data"],
)
def test_a_stage_is_not_gone_on_with_by_another_recipe(
    of: dict[str, Any], digest: str, told: str, tmp_path: Path
) -> None:
    roll_out(tmp_path)
    store.reopen(tmp_path, {})
    with pytest.raises(StoreError, match=f"made by something else.*{told}"):
        roll_out(tmp_path, FakeReplicas(teacher=FakePool("teacher", digest=digest)), **of)


def test_batches_never_reach_over_questions_that_are_left_out() -> None:
    batches = rollouts.cut(PROBLEMS, [0, 2, 3, 4], 2)  # type: ignore[arg-type]
    assert [[(position, one.id) for position, one in batch] for batch in batches] == [
        [(0, "0")],
        [(2, "2"), (3, "3")],
        [(4, "4")],
    ]


def test_teachers_with_different_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hold different weights"):
        roll_out(tmp_path, FakeReplicas(teacher=FakePool("teacher", reports=2)))


def test_sampling_seeds_differ_by_question_source_and_ratio_and_fit_an_engine() -> None:
    seeds = {
        dataclasses.replace(recipe(ratio=ratio), seed=seed).seed_of(source, name)
        for seed in (0, 1)
        for ratio in (0.0, 0.2)
        for source in ("teacher", "student")
        for name in ("a", "b")
    }
    assert len(seeds) == 8 + 4, "the student is the same in all stages"
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert recipe(stage=0).seed_of("teacher", "a") == recipe(stage=1).seed_of("teacher", "a")


def test_rows_made_by_the_same_recipe_are_taken_over_by_question(tmp_path: Path) -> None:
    roll_out(tmp_path / "old" / "stage-0", asked="those of then")
    other = [problem(id="new"), PROBLEMS[3], PROBLEMS[0], problem(id="0", label="mended")]
    teacher = FakePool("teacher")
    reuse: dict[str, Any] = {"reuse": [str(tmp_path / "old")]}
    roll_out(tmp_path / "a", FakeReplicas(teacher=teacher), other, stage=1, **reuse)
    assert sorted(teacher.wrote) == ["0", "new"]
    rows = list(store.read(tmp_path / "a"))
    assert [(row.position, row.stage, row.problem) for row in rows] == [(at, 1, one) for at, one in enumerate(other)]
    assert (made(tmp_path / "a").rows, made(tmp_path / "a").answers) == (4, 16)
    [before] = [row for row in store.read(tmp_path / "old" / "stage-0") if row.problem.id == "3"]
    assert np.array_equal(before.answers[3].teacher.top_logprobs, rows[1].answers[3].teacher.top_logprobs)
    differs = FakePool("teacher")
    roll_out(tmp_path / "b", FakeReplicas(teacher=differs), other, ratio=0.1, **reuse)
    assert len(differs.wrote) == 4
    with pytest.raises(StoreError, match="rollout.reuse.*holds no store"):
        roll_out(tmp_path / "c", reuse=[str(tmp_path / "nowhere")])


def test_student_answers_of_an_earlier_stage_are_only_scored_by_the_next_teacher(tmp_path: Path) -> None:
    roll_out(tmp_path / "stage-0")
    replicas = FakeReplicas()
    earlier = Earlier(rows=store.Lookup([tmp_path / "stage-0"]), same_judge=True)
    roll_out(tmp_path / "stage-1", replicas, earlier=earlier, stage=1, ratio=0.1)
    assert replicas.pools["student"].wrote == []
    assert len(replicas.pools["teacher"].wrote) == 5
    assert replicas.pools["student"].scored == [(5, 1)] * 5
    for before, after in zip(store.read(tmp_path / "stage-0"), store.read(tmp_path / "stage-1"), strict=True):
        assert [one.judged for one in after.answers] == [one.judged for one in before.answers]
        assert after.mask_ratio == 0.1
        for one, other in zip(before.answers, after.answers, strict=True):
            assert np.array_equal(one.reference_logprobs, other.reference_logprobs)


def test_a_row_says_how_long_its_prompt_is_for_the_student(tmp_path: Path) -> None:
    """The learner reads it; the teacher's chat template and processor may make a longer one of the same question."""
    student = FakePool("student")
    student.prompt_tokens = 11
    alone: dict[str, Any] = {"teacher_answers": 0, "student_answers": 3}
    splits: tuple[dict[str, Any], ...] = ({}, {"teacher_answers": 3, "student_answers": 0}, alone)
    for number, split in enumerate(splits):
        roll_out(tmp_path / str(number), FakeReplicas(student=student), **split)
        assert [row.prompt_tokens for row in store.read(tmp_path / str(number))] == [11] * 5
    earlier = Earlier(rows=store.Lookup([tmp_path / "2"]), same_judge=True)
    roll_out(tmp_path / "next", earlier=earlier, stage=1, ratio=0.1, **alone)
    assert [row.prompt_tokens for row in store.read(tmp_path / "next")] == [11] * 5


def test_a_picture_that_is_gone_sets_its_question_aside(tmp_path: Path) -> None:
    gone = dataclasses.replace(PROBLEMS[1], pictures=(Picture(path=str(tmp_path / "gone.png")),))
    [rejected] = roll_out(tmp_path, problems=[PROBLEMS[0], gone])
    assert (rejected.row, rejected.kind) == ("1", "picture")
    assert "gone.png does not exist" in rejected.reason


def test_pictures_are_stored_by_reference_if_so_asked(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png())
    there = dataclasses.replace(PROBLEMS[0], pictures=(Picture(path=str(tmp_path / "one.png")),))
    roll_out(tmp_path / "a", problems=[there], pictures="reference")
    roll_out(tmp_path / "b", problems=[there])
    [by_reference], [embedded] = store.read(tmp_path / "a"), store.read(tmp_path / "b")
    assert by_reference.problem == there
    assert embedded.problem.pictures == (Picture(data=png()),)


def test_a_stage_stops_when_too_many_questions_are_set_aside_and_goes_on_when_more_are_allowed(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    replicas.pools["teacher"].refuses = {"1", "2"}
    with pytest.raises(DataError, match=r"2 of 5 questions were set aside \(engine 2\);(.|\n)*engine. 1: .*too long"):
        roll_out(tmp_path, replicas, max_set_aside_share=0.3)
    wait_for_what_runs_on()
    with pytest.raises(DataError, match="2 of 5 questions were set aside"):
        roll_out(tmp_path, replicas, max_set_aside_share=0.3)
    wait_for_what_runs_on()
    roll_out(tmp_path, replicas, max_set_aside_share=0.4)
    assert made(tmp_path).set_aside == {"engine": 2}


def test_a_stage_stops_when_too_many_answers_cannot_be_judged(tmp_path: Path) -> None:
    replicas = FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": None}))
    with pytest.raises(DataError, match="10 of 20 answers could not be judged; rollout.max_unjudged_share allows 0.4"):
        roll_out(tmp_path, replicas, max_unjudged_share=0.4)
    wait_for_what_runs_on()
    assert roll_out(tmp_path, replicas, max_unjudged_share=0.5) == []


def test_cut_answers_are_counted_by_source_and_too_many_stop_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = FakePool("student")
    student.cuts = {"blue"}
    replicas = FakeReplicas(student=student)
    with pytest.raises(DataError, match="5 of 10 answers of the student are cut at rollout.sampling.max_tokens = 1024"):
        roll_out(tmp_path, replicas, max_cut_share=0.4)
    wait_for_what_runs_on()
    roll_out(tmp_path, replicas, max_cut_share=0.5)
    assert made(tmp_path).cut_by_source == {"teacher": 0.0, "student": 0.5}
    told = capsys.readouterr().out
    assert "teacher right 50%  student right 50%, 50% cut" in told
    assert "stage 0: 50.0% of the student's answers are cut" in told
    assert [one.judged.answer.finish for one in next(iter(store.read(tmp_path))).answers] == [*["stop"] * 3, "length"]


def test_tags_of_a_judges_prompts_in_questions_and_answers_are_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = FakePool("student")
    student.says = ("red", "x <answer>1</answer>")
    odd = dataclasses.replace(problem(id="9"), label="</ground truth>")
    replicas = FakeReplicas(student=student, judge=FakePool("judge", {"red": 1, "blue": 0, student.says[1]: 0}))
    roll_out(tmp_path, replicas, [*PROBLEMS, odd])
    found = made(tmp_path)
    assert (found.defused_answers, found.defused_questions) == (6, 1)
    assert "6 answers and 1 questions hold tags of the judge's prompts" in capsys.readouterr().out


def test_a_judge_that_differs_from_the_rule_more_than_it_can_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    roll_out(tmp_path / "a")
    assert "differ" not in capsys.readouterr().out
    roll_out(tmp_path / "b", FakeReplicas(judge=FakePool("judge", {"red": 1, "blue": 1})))
    counts = [
        getattr(made(tmp_path / "b"), name)
        for name in ("compared", "judge_right", "rule_right", "judge_rule_agreements")
    ]
    assert counts == [20, 20, 10, 10]
    told = capsys.readouterr().out
    assert "stage 0: the judge and the rule (exact) differ on 50.0% of 20 answers" in told
    assert "the judge calls 100.0% right, the rule 50.0%" in told
    roll_out(tmp_path / "c", judge=Judge(of_teacher="rule", of_student="rule"))
    assert made(tmp_path / "c").compared == 0, "a rule is not compared with itself"


def test_a_rule_judges_without_replicas(tmp_path: Path) -> None:
    replicas = FakeReplicas()
    del replicas.pools["judge"]
    roll_out(tmp_path, replicas, judge=Judge(of_teacher="rule", of_student="rule"))
    rows = list(store.read(tmp_path))
    assert [one.judged.accuracy for one in rows[0].answers] == [1, 0, 1, 0]
    assert rows[0].answers[0].judged.verdict == "by rule (exact)"


def test_the_reasoning_is_stored_and_an_unreadable_one_leaves_the_answer_out(tmp_path: Path) -> None:
    roll_out(tmp_path / "a", judge=Judge(reasoning=True))
    rows = list(store.read(tmp_path / "a"))
    assert [one.judged.reasoning for one in rows[0].answers] == [1, 0, 1, 0]
    assert made(tmp_path / "a").reasoning == 0.5
    roll_out(tmp_path / "b")
    assert [one.judged.reasoning for one in next(iter(store.read(tmp_path / "b"))).answers] == [None] * 4

    class Vague(FakePool):
        def judge(self, problems: list[Any], answers: list[list[str]], reasoning: bool) -> list[list[Verdict]]:
            told = super().judge(problems, answers, reasoning)
            return [[dataclasses.replace(one, reasoning=one.reasoning or None) for one in group] for group in told]

    roll_out(tmp_path / "c", FakeReplicas(judge=Vague("judge")), judge=Judge(reasoning=True))
    assert [[one.judged.answer.text for one in row.answers] for row in store.read(tmp_path / "c")] == [["red"] * 2] * 5
