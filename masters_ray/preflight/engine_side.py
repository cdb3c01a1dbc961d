"""The engines' part of the checks: what replicas answer, beside the learner's Probe."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from masters_ray.config import Config
from masters_ray.errors import MastersError
from masters_ray.families import parts_in
from masters_ray.learner import agreement
from masters_ray.method import schedule
from masters_ray.method.marking import right
from masters_ray.method.masks import MaskReport
from masters_ray.models import weights
from masters_ray.preflight.findings import Finding, judged, passed
from masters_ray.preflight.learner_side import Logprobs, Probe, TokenIds
from masters_ray.records import Problem, Refused
from masters_ray.replicas.pool import Pool

_EXACT, _COARSE = 1e-4, 0.05  # largest difference of one forward pass from another, nats per token: float32, bfloat16
_JUDGE = 0.7  # least fraction of planted right answers, and of wrong ones, that a judge must tell


def ratios(config: Config) -> list[float]:
    """Returns the mask ratios of the (first) teacher's schedule."""
    return [ratio for ratio, _ in schedule.ratios(config.schedule)]


def packing(probe: Probe) -> Finding:
    bound = _EXACT if probe.dtype == "float32" else _COARSE
    gaps = _gaps(probe.together, probe.alone)
    worst = max(gaps, default=0.0) if probe.dtype == "float32" else float(np.mean(gaps))
    figure = f"{len(gaps)} tokens of {len(probe.problems)} questions differ by at most {max(gaps):.1e} nats"
    figure += f" in {probe.dtype} ({bound:g} is allowed)"
    return judged("packing", worst <= bound, figure)


def export(probe: Probe) -> Finding:
    good = "written and read back, bit by bit the same"
    return judged("export", not probe.export_fault, probe.export_fault or good)


def agreed(config: Config, probe: Probe, student: Pool, name: str) -> Finding:
    """Compares the student's engine with the learner, row by row. name: agreement compares questions without pictures,
    pictures those with some, reload all of them."""
    rows = [
        row
        for row in zip(probe.problems, probe.answers, probe.alone, strict=True)
        if name == "reload" or bool(row[0].pictures) == (name == "pictures")
    ]
    if not rows:
        return Finding(name=name, verdict="not done", figure="no question has pictures")
    problems, answers, expected = map(list, zip(*rows, strict=True))
    bound = agreement.largest_gap(config.learner, config.student.engine.dtype)
    return _compared(name, student, problems, answers, expected, bound)


def _compared(
    name: str,
    pool: Pool,
    problems: Sequence[Problem],
    answers: Sequence[Sequence[TokenIds]],
    expected: Logprobs,
    bound: float,
    of: str = "",
) -> Finding:
    found: list[list[np.ndarray] | Refused] = pool.call_again("own_logprobs", problems, answers)
    means = []
    for problem, own, theirs in zip(problems, found, expected, strict=True):
        if isinstance(own, Refused):
            return judged(name, False, f"the engine refuses {problem.id}: {own.reason}", "Mend that question.")
        means.append((float(np.mean(_gaps([own], [theirs]))), problem.id))
    worst, row = max(means)
    figure = f"{worst:.1e} nats per token on {row}, the furthest of {len(means)}{of} ({bound:g} is allowed)"
    return judged(name, worst <= bound, figure)


def teacher(config: Config, probe: Probe, pool: Pool, masked: Mapping[float, tuple[MaskReport, Logprobs]]) -> Finding:
    """Compares the teacher's engine with transformers at each ratio. masked: as ``masked_logprobs`` gives."""
    bound = agreement.largest_gap(config.learner, config.teacher.engine.dtype)
    found = []
    for ratio, (report, expected) in masked.items():
        digest = pool.mask(ratio)[0].digest
        if digest != report.digest:
            told = f"masked at {ratio:g} the engine loads other weights ({digest[:12]}) than the files have"
            return judged("teacher", False, f"{told} ({report.digest[:12]})")
        of = f" at ratio {ratio:g}"
        found.append(_compared("teacher", pool, probe.problems, probe.answers, expected, bound, of))
        if found[-1].verdict == "failed":
            return found[-1]
    return passed("teacher", "; ".join(one.figure.partition(" (")[0] for one in found))


def masks(config: Config, folder: Path, pool: Pool, ratio: float) -> Finding:
    """Compares the matrices that the engine masks with those that the family has."""
    report, architecture = pool.mask(ratio)[0], weights.architecture(folder)
    expected = architecture.expected()
    parts = [part for part in parts_in(config.teacher.mask) if part in expected]
    masked = dict.fromkeys(parts, 0)
    for name, count in report.masked.items():
        part = architecture.part_of(name.replace("*", "0"))
        if part in masked:
            masked[part] += count
    figure = ", ".join(f"{masked[part]} of {expected[part]} matrices of {part}" for part in parts)
    return judged("masks", all(masked[part] == expected[part] for part in parts), figure)


def remask(probe: Probe, teacher: Pool, first: float, other: float) -> Finding:
    """Masks the teacher at ``first``, at ``other`` and at ``first`` again. Raises what masking raises."""

    def at(ratio: float) -> tuple[str, list[np.ndarray]]:
        digest = teacher.mask(ratio)[0].digest
        said: list[list[np.ndarray] | Refused] = teacher.call_again("own_logprobs", probe.problems, probe.answers)
        return digest, [score for own in said if not isinstance(own, Refused) for score in own]

    try:
        (before, scores), (between, others), (after, again) = at(first), at(other), at(first)
    except MastersError as error:
        return judged("remask", False, f"masked at {first:g}, then at {other:g}: {error}")
    same = before == after and all(map(np.array_equal, scores, again))
    changed = first == other or (between != before and not all(map(np.array_equal, scores, others)))
    figure = f"{first:g}, {other:g}, {first:g}: "
    figure += "the first scores again, bit by bit" if same else "other scores than at first"
    figure += "" if changed else "; the mask changes nothing"
    return judged("remask", same and changed, figure)


def judge(config: Config, problems: Sequence[Problem], pool: Pool) -> Finding:
    """Asks for verdicts on planted answers: each question's label, and the label of a question with another one."""
    planted = {problem.id: _wrong(problem, problems, config) for problem in problems}
    asked = [problem for problem in problems if planted[problem.id] is not None]
    answers = [[problem.label, str(planted[problem.id])] for problem in asked]
    if not asked:
        return Finding(name="judge", verdict="not done", figure="all questions looked at have one label")
    verdicts = pool.call_again("judge", asked, answers, False)
    right = [own[0].accuracy == 1 for own in verdicts]
    wrong = [own[1].accuracy == 0 for own in verdicts]
    shares = [sum(one) / len(one) for one in (right, wrong)]
    figure = f"{sum(right)} of {len(right)} right answers and {sum(wrong)} of {len(wrong)} wrong ones told as such"
    return judged("judge", min(shares) >= _JUDGE, figure)


def _wrong(problem: Problem, problems: Sequence[Problem], config: Config) -> str | None:
    others = (one.label for one in problems if one.kind == problem.kind)
    return next((label for label in others if not right(label, problem, config.judge.rule)), None)


def _gaps(found: Logprobs, expected: Logprobs) -> list[float]:
    pairs = [
        (one, other)
        for own, theirs in zip(found, expected, strict=True)
        for one, other in zip(own, theirs, strict=True)
    ]
    return [float(gap) for one, other in pairs for gap in np.abs(one - other)]
