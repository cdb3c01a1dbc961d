"""Changes of a configuration that make its run cheaper or faster."""

from collections.abc import Iterator
from dataclasses import dataclass

from masters_ray.config import Config


@dataclass(frozen=True, kw_only=True)
class Lever:
    name: str
    words: tuple[str, ...]  # ``key=value`` overrides that make the change
    costs: str  # what is given up


def levers(config: Config) -> Iterator[Lever]:
    """Yields the changes that this configuration leaves open."""
    judge, rollout, learner = config.judge, config.rollout, config.learner
    # Judges that share the student's processes are as many as its replicas, or the others would need processes.
    judges = 2 * judge.replicas if judge.share_process else judge.replicas
    for pool, count in (("teacher", config.teacher.replicas), ("student", config.student.replicas)):
        words = [f"{pool}.replicas={2 * count}"]
        words += [f"judge.replicas={judges}"] if pool == "student" else []
        yield Lever(name=f"twice the {pool}'s replicas", words=tuple(words), costs="devices")
    yield Lever(name="twice the workers", words=(f"learner.workers={2 * learner.workers}",), costs="devices")
    if rollout.online_fraction:
        half = (f"rollout.online_fraction={rollout.online_fraction / 2:g}",)
        lost = "fresh answers (appendix F.2: 0.3 points at most)"
        yield Lever(name="half the online share", words=half, costs=lost)
    if {judge.of_teacher, judge.of_student} != {"rule"}:
        rule = ("judge.of_teacher=rule", "judge.of_student=rule")
        yield Lever(name="a rule as judge", words=rule, costs="right answers in other words than the label's")
    if rollout.teacher_answers + rollout.student_answers >= 4:
        halves = (
            f"rollout.teacher_answers={rollout.teacher_answers // 2}",
            f"rollout.student_answers={rollout.student_answers // 2}",
        )
        yield Lever(name="half the answers", words=halves, costs="comparisons within a group")
    if config.teacher.top_k > 20 and learner.teacher == "stored":
        yield Lever(name="20 stored scores", words=("teacher.top_k=20",), costs="exactness of the divergence")
