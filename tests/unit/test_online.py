"""Rollouts of online iterations with stand-ins for the replicas, and a real broker in this process."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from masters_ray import config as configuration
from masters_ray import store
from masters_ray.config import Config
from masters_ray.errors import LearnerError, WeightsGoneError, WeightSyncError
from masters_ray.files import read_lines
from masters_ray.method import schedule
from masters_ray.pipeline import context, online
from masters_ray.pipeline.context import ReplicaOwner
from masters_ray.pipeline.online import OnlineRollouts
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.replicas.placement import Turns
from masters_ray.weight_sync.broker import RolloutBroker
from masters_ray.weight_sync.student_weights import StudentWeights
from tests.builders import problem
from tests.conftest import PAIR, ROOT
from tests.fakes import FakePool, FakeReplicas, Near
from tests.unit.test_rollouts import Problems

QUESTIONS = Problems(problem(id=str(position)) for position in range(8))
"""Two stages of two iterations, two questions each."""


@pytest.fixture(autouse=True)
def _answers_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online.ray, "get", lambda answer: answer)


def settings(folder: Path, *words: str) -> Config:
    usual = [
        f"run.dir={folder}",
        f"teacher.checkpoint={PAIR / 'teacher'}",
        f"student.checkpoint={PAIR / 'student'}",
        *("schedule.max_ratio=0.2", "schedule.step=0.2", "learner.groups_per_step=2"),
        *("rollout.online_fraction=1", "rollout.max_staleness=1", "rollout.batch_rows=1"),
        "rollout.max_wait_seconds=20",
        *("rollout.teacher_answers=2", "rollout.student_answers=2"),
        *(f"rollout.max_{what}_share=1" for what in ("set_aside", "unjudged", "empty")),
    ]
    return configuration.load(ROOT / "conf" / "demo.yaml", [*usual, *words])


Learner = Sequence[StudentWeights]


def weights(version: int, digest: str = "") -> StudentWeights:
    return StudentWeights(version=version, digests={"w": digest or f"of {version}"}, pieces=(), seconds=0.5)


class Course:
    """A run's online rollouts, and what the learner sees of them."""

    def __init__(self, config: Config, pools: dict[str, FakePool], learner: Learner, turns: Turns | None) -> None:
        """learner: the students that it was; it goes on as the last one. In turns it has one worker, and the student
        writes one step late."""
        self.pools = pools
        plan = schedule.plan(config.schedules, len(QUESTIONS))
        iterations = schedule.iterations(plan, config.learner.groups_per_step, config.rollout.online_fraction)
        numbers, wait = [one.number for one in iterations], config.rollout.max_wait_seconds
        self.broker = RolloutBroker(numbers, config.rollout.max_staleness, wait, 1 if turns else None)
        asked = {"plan": plan, "stages": [stage for stage, _ in plan], "iterations": iterations, "questions": QUESTIONS}
        asked |= {"refreshes": False, "reference": "the student before training"}
        run: Any = SimpleNamespace(
            config=config, directory=RunDirectory(config), owner=ReplicaOwner(config, turns), **asked
        )
        self._rollouts = OnlineRollouts(run, Near(self.broker))
        learned = {one.version: one.digest for one in learner}
        self.broker.begin(max(learned, default=0), learned)
        self._rollouts.__enter__()
        self._open = True

    def close(self, error: Exception | None = None) -> None:
        """As the learner's end or its error does."""
        if self._open:
            self._open = False
            try:
                self._rollouts.__exit__(None, error)
            finally:
                assert not any(one.name == "online rollouts" and one.is_alive() for one in threading.enumerate())

    def publish(self, *versions: int) -> None:
        for version in versions:
            self.broker.publish(weights(version))

    def take(self, iteration: int) -> pa.Table:
        rows = self.broker.take(iteration)
        assert rows is not None
        return rows


Run = Callable[..., Course]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Begins a course with stand-ins for the replicas, which may be started once."""
    open_ones: list[Course] = []

    def begun(*words: str, learner: Learner = (), turns: bool = False, **pools: FakePool) -> Course:
        left = [FakeReplicas(**{"reference": FakePool("reference")} | pools)]
        config, among = settings(tmp_path, *words), left[0].pools
        monkeypatch.setattr(context, "Replicas", lambda _: left.pop())
        open_ones.append(Course(config, among, learner, Turns(gpus=0) if turns else None))
        return open_ones[-1]

    yield begun
    for one in open_ones:
        one.close()


def test_iterations_are_answered_by_their_versions_under_the_mask_of_their_stage(run: Run, tmp_path: Path) -> None:
    """At most one step behind: iterations 1 to 4 are written by versions 0, 0, 1 and 2."""
    course = run()
    course.publish(0, 1, 2)
    tables = [course.take(iteration) for iteration in (1, 2, 3, 4)]
    assert [table["position"].to_pylist() for table in tables] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [table["version"].to_pylist() for table in tables] == [[0, 0], [0, 0], [1, 1], [2, 2]]
    assert [table["mask_ratio"].to_pylist()[0] for table in tables] == [0.2, 0.2, 0.0, 0.0]
    digests = [set(table["student_digest"].to_pylist()) for table in tables]
    assert digests == [{weights(version).digest} for version in (0, 0, 1, 2)]
    assert [course.pools[role].held for role in ("student", "reference")] == [[0, 0, 1, 2], []]
    assert course.pools["student"].asleep == 0, "learner and rollouts work side by side"
    noted = read_lines(tmp_path / "online.jsonl")
    told = [(one["step"], one["stage"], one["version"], one["ages"]) for one in noted]
    assert told == [(1, 0, 0, [0, 0]), (2, 0, 0, [1, 1]), (3, 1, 1, [1, 1]), (4, 1, 2, [1, 1])]
    assert noted[0]["publish_seconds"] == 0.5
    calls = {name: (one["calls"], one["questions"]) for name, one in noted[0]["calls"].items()}
    assert calls["teacher.answer"] == calls["student.answer"] == calls["judge.judge"] == (2, 2)


def test_the_writer_scores_all_answers_of_a_fresh_group_and_so_does_the_student_before_training(run: Run) -> None:
    course = run()
    course.publish(0)
    [first, _] = store.groups(course.take(1))
    assert [len(one.behaviour_logprobs) for one in first.answers] == [2] * 4  # type: ignore[arg-type]
    assert sorted(set(course.pools["reference"].scored)) == [(5, 1), (6, 1), (7, 1)]
    assert set(course.pools["student"].scored) == {(5, 1)}, "what the teacher alone has written"


def test_a_judge_that_follows_the_student_holds_its_weights_and_judges_anew(run: Run) -> None:
    course = run("judge.follows_student=true")
    course.publish(0, 1)
    for iteration in (1, 2, 3):
        course.take(iteration)
    assert course.pools["judge"].held == [0, 0, 1]
    assert course.pools["judge"].judged.count("red") == 6, "once for each question"


OTHERWISE = weights(1, "another")
"""Version 1 of a learner that began again and came out otherwise."""


@pytest.mark.parametrize(
    ("learner", "published", "writer", "made_again"),
    [
        ([weights(0), weights(1), weights(2)], [weights(2)], weights(1), []),
        ([], [weights(0), OTHERWISE], OTHERWISE, ["4", "5"]),
        ([weights(0), OTHERWISE, weights(2)], [weights(2)], weights(2), ["4", "5"]),
    ],
)
def test_rows_of_a_call_that_was_killed_are_kept_if_a_student_that_this_learner_was_wrote_them(
    learner: Learner, published: Learner, writer: StudentWeights, made_again: list[str], run: Run
) -> None:
    first = run()
    first.publish(0, 1)
    before = first.take(3)
    first.close()
    again = run(learner=learner)
    for one in published:
        again.broker.publish(one)
    after = again.take(3)
    assert set(after["student_digest"].to_pylist()) == {writer.digest}
    assert after.equals(before) == (not made_again)
    of_the_last = {"6", "7"}  # nobody has asked for them before
    assert sorted({*again.pools["student"].wrote} - of_the_last) == made_again


def test_weights_that_are_not_those_that_were_sent_stop_the_learner_with_the_replicas_words(run: Run) -> None:
    class Damaged(FakePool):
        def hold(self, weights: StudentWeights) -> None:
            raise WeightSyncError("version 0 arrived with other weights: a instead of b")

    course = run(student=Damaged("student"))
    course.publish(0)
    with pytest.raises(LearnerError, match="rollouts of online iterations stopped: version 0 arrived with other"):
        course.broker.take(1)
    with pytest.raises(WeightSyncError, match="arrived with other weights"):
        course.close(LearnerError("rollouts stopped"))


def test_an_iteration_whose_writer_is_gone_with_its_learner_is_answered_for_the_one_that_goes_on(run: Run) -> None:
    class Gone(FakePool):
        def hold(self, weights: StudentWeights) -> None:
            super().hold(weights)
            if len(self.held) == 2:
                again.wait(10)
                raise WeightsGoneError("version 1 is gone with the learner that had it")

    again = threading.Event()
    student = Gone("student")
    course = run(student=student)
    course.publish(0, 1)
    course.take(1)
    course.broker.begin(1, {})
    course.broker.publish(weights(1, "another"))
    again.set()
    assert set(course.take(2)["version"].to_pylist()) == {1}
    assert student.held == [0, 0, 1]


def test_in_turns_replicas_work_while_the_learner_waits_and_sleep_before_it_goes_on(run: Run) -> None:
    course = run(turns=True)
    course.publish(0, 1, 2)
    time.sleep(0.1)
    assert course.pools["student"].wrote == [], "nobody waits, though the weights are there"
    for iteration in (1, 2, 3, 4):
        assert course.take(iteration)["version"].to_pylist() == [max(0, iteration - 2)] * 2, "as without turns"
        assert [pool.asleep for pool in course.pools.values()] == [iteration] * 4
        assert len(course.pools["student"].wrote) == 2 * iteration


def test_in_turns_an_order_whose_time_is_over_is_left_between_two_batches(run: Run) -> None:
    class Slow(FakePool):
        """Its first answers take longer than the learner waits; nothing else is under way meanwhile."""

        def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
            if method == "answer" and not self.wrote:
                time.sleep(1.3)

    slow = {role: Slow(role) for role in ("teacher", "student", "reference", "judge")}
    for role, pool in slow.items():
        pool.most_calls_at_once = int(role == "teacher")
    course = run("rollout.max_wait_seconds=1", turns=True, **slow)
    course.publish(0)
    assert course.broker.take(1) is None
    student = slow["student"]
    assert (student.wrote, student.asleep) == (["0"], 1), "the second batch is not begun"
    assert course.take(2)["position"].to_pylist() == [2, 3]


def test_replicas_are_kept_until_another_teachers_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[FakeReplicas] = []

    def start(_: object) -> FakeReplicas:
        started.append(FakeReplicas())
        return started[-1]

    monkeypatch.setattr(context, "Replicas", start)
    config = settings(tmp_path, f"growth=[{{teacher: {{checkpoint: {PAIR}/student}}}}]")
    with closing(ReplicaOwner(config, Turns(gpus=0))) as owned:
        owned.give_way()
        assert owned.online(0, 0.2) is owned.online(0, 0.0) is started[0]
        assert owned.online(1, 0.0) is started[1]
        assert [one.closed for one in started] == [True, False]
    assert started[1].closed
