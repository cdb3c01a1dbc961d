"""Held-out accuracy with 95 % intervals: per kind of question, and the mean over kinds."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from masters_ray.files import Measured
from masters_ray.records import Finish, Refused, Rejected

_Z = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured value with its two-sided 95 % interval. NaN: not measured, or bounds of a single observation."""

    value: Measured
    low: Measured
    high: Measured
    n: int  # number of independent observations: questions or seeds

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Accuracy(Interval):
    """The unweighted mean over kinds of questions; fractions."""

    by_kind: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Change(Interval):
    """Accuracy after minus before on the same questions, the unweighted mean over kinds; fractions."""

    improved: int  # questions that were wrong before and are right after
    regressed: int  # questions that were right before and are wrong after


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A held-out question with a model's greedy answer and its mark."""

    id: str
    kind: str
    label: str
    answer: str
    finish: Finish | None  # none, with the answer "", for a refused question
    correct: bool
    dataset: str = ""  # name of the data source
    refused: Refused | None = None  # why the model was not asked; the question then counts in no accuracy
    by_rule: bool | None = None  # the rule's mark where a judge decided ``correct``; else None


def cut_share(marked: Sequence[Marked]) -> float:
    """Returns the fraction of the answers that were cut; 0 without answers."""
    answered = [one.finish == "length" for one in marked if not one.refused]
    return sum(answered) / len(answered) if answered else 0.0


def refusals(marked: Iterable[Marked]) -> list[Rejected]:
    """Returns the refused questions, each once."""
    refused = {one.id: one.refused for one in marked if one.refused}
    return [Rejected(row=f"held-out question {id}", **vars(why)) for id, why in refused.items()]


def answered_by_all(marks: Mapping[str, Sequence[Marked]]) -> dict[str, list[Marked]]:
    """Returns each model's marks of the questions that no model refused, so that accuracies can be compared."""
    aside = {one.id for marked in marks.values() for one in marked if one.refused}
    return {name: [one for one in marked if one.id not in aside] for name, marked in marks.items()}


def wilson(correct: float, n: int) -> Interval:
    """Returns correct / n with Wilson's 95 % interval; n is at least 1. Example: 8 of 10 gives 0.8, 0.490 … 0.943."""
    value = correct / n
    spread = 1 + _Z**2 / n
    centre = (value + _Z**2 / (2 * n)) / spread
    half = _Z * math.sqrt(value * (1 - value) / n + _Z**2 / (4 * n**2)) / spread
    low = centre - half if correct else 0.0  # rounding could put the bound on the wrong side of the value
    high = centre + half if correct < n else 1.0
    return Interval(value=value, low=low, high=high, n=n)


def normal(value: float, error: float, n: int) -> Interval:
    """Returns a fraction with the normal distribution's 95 % interval, cut at 0 and 1. error: its standard error."""
    return Interval(value=value, low=max(0.0, value - _Z * error), high=min(1.0, value + _Z * error), n=n)


def accuracy(marked: Sequence[Marked]) -> Accuracy:
    """Returns accuracy per kind and their unweighted mean, whatever the kinds' frequencies; NaN without questions.
    The mean's 95 % interval adds up the kinds' binomial variances. Each kind gets two more successes and two more
    failures (Agresti and Coull), so that its variance is above 0 even without errors."""
    if not marked:
        return Accuracy(value=math.nan, low=math.nan, high=math.nan, n=0, by_kind={})
    asked = Counter(one.kind for one in marked)
    right = Counter(one.kind for one in marked if one.correct)
    by_kind = {kind: wilson(right[kind], asked[kind]) for kind in sorted(asked)}
    value = sum(rate.value for rate in by_kind.values()) / len(by_kind)
    widened = [((right[kind] + 2) / (n + 4), n + 4) for kind, n in asked.items()]
    half = _Z * math.sqrt(sum(p * (1 - p) / n for p, n in widened)) / len(by_kind)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Accuracy(value=value, low=low, high=high, n=len(marked), by_kind=by_kind)


def change(before: Sequence[Marked], after: Sequence[Marked]) -> Change:
    """Returns the paired difference of two models on the same questions; NaN without questions. The 95 % interval adds
    up the kinds' paired variances. Each kind gets half a question more in each of the four cells (right or wrong before
    × after; Agresti and Min), so that its variance is above 0 even if no question changed.

    Example: of 10 questions 4 improved, 1 regressed: 0.3, −0.074 … 0.674."""
    if not after:
        return Change(value=math.nan, low=math.nan, high=math.nan, n=0, improved=0, regressed=0)
    earlier = {one.id: one.correct for one in before}
    changes: dict[str, list[int]] = {}
    for one in after:
        changes.setdefault(one.kind, []).append(one.correct - earlier[one.id])
    up, down = (Counter({kind: found.count(sign) for kind, found in changes.items()}) for sign in (1, -1))
    asked = {kind: len(found) for kind, found in changes.items()}
    value = sum((up[kind] - down[kind]) / n for kind, n in asked.items()) / len(asked)
    widened = [((up[kind] + 0.5) / (n + 2), (down[kind] + 0.5) / (n + 2), n + 2) for kind, n in asked.items()]
    half = _Z * math.sqrt(sum((p + q - (p - q) ** 2) / n for p, q, n in widened)) / len(asked)
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Change(value=value, low=low, high=high, n=len(after), improved=up.total(), regressed=down.total())


def kappa(answers: float, first: float, second: float, same: float) -> float:
    """Returns Cohen's κ of two judges: agreement beyond chance at their own rates of "right". NaN without answers, or
    when chance agreement is 1. answers: number of answers; first, second: answers that each judge calls right; same:
    answers on which both agree."""
    if not answers:
        return math.nan
    one, other = first / answers, second / answers
    chance = one * other + (1 - one) * (1 - other)
    return (same / answers - chance) / (1 - chance) if chance < 1 else math.nan
