"""Held-out accuracy over the optimizer steps (evaluation.every), and the step whose student is kept (learner.keep)."""

from collections.abc import Mapping, Sequence

from masters_ray.evaluate import Marked, accuracy
from masters_ray.pipeline.context import RunContext
from masters_ray.pipeline.held_out import read_marks
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.report.summary import CoursePoint, Kept


def measured(directory: RunDirectory) -> dict[int, list[Marked]]:
    """Returns the marks of the student at each step after which it was measured, without refused questions."""
    files = {int(file.stem.removeprefix("step-")): file for file in directory.students.glob("step-*.json")}
    return {step: [one for one in read_marks(files[step]) if not one.refused] for step in sorted(files)}


def best(marks: Mapping[int, Sequence[Marked]]) -> int:
    """Returns the step with the highest accuracy, the last of several. marks: as from ``measured``."""
    return max(marks, key=lambda step: (accuracy(marks[step]).value, step))


def facts(run: RunContext, marks: Mapping[str, Sequence[Marked]]) -> tuple[list[CoursePoint], Kept | None]:
    """Returns the accuracies from step 0 to the last, on the questions that all students were asked, and which student
    was kept; nothing where none was measured on the way. marks: of the models on all questions."""
    found = measured(run.directory)
    if not found:
        return [], None
    chooses = run.config.learner.keep == "best"
    before, after = marks["student_before"], marks["student_after"]
    by_step = {0: before} | found | ({} if chooses else {run.iterations[-1].number: after})
    asked = set.intersection(*({one.id for one in rows} for rows in by_step.values()))
    points = [
        CoursePoint(step=step, accuracy=accuracy([one for one in rows if one.id in asked]))
        for step, rows in by_step.items()
    ]
    choosing = {one.id for rows in found.values() for one in rows}
    others = [accuracy([one for one in rows if one.id not in choosing]) for rows in (before, after)]
    kept = Kept(step=best(found), questions=len(choosing), others_before=others[0], others_after=others[1])
    return points, kept if chooses else None
