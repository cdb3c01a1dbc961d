"""What a person should know about a stage's answers: sentences for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray import evaluate
from masters_ray.evaluate import Marked, wilson
from masters_ray.records import AnswerTally

_MANY_CUT = 0.05
"""From this share of cut answers on a person is told."""
_CHANCE = 0.1
"""Share of answers on which a judge and a rule that both fit the labels may differ."""


def of(where: str, counts: AnswerTally, rule: str) -> list[str]:
    """All that there is to say. where: what the answers are of, for instance "stage 0"."""
    found = (cut(where, counts), defused(where, counts), disagreement(where, counts, rule))
    return [one for one in found if one]


def cut(where: str, counts: AnswerTally) -> str:
    """Which answers were cut, if they are more than a few."""
    many = [f"{share:.1%} of the {source}'s" for source, share in counts.cut_by_source.items() if share > _MANY_CUT]
    if not many:
        return ""
    return (
        f"{where}: {' and '.join(many)} answers are cut at rollout.sampling.max_tokens; reward.cut_answers says what "
        "they get. If they need more room, raise rollout.sampling.max_tokens in another run.dir."
    )


def held_out_cut(share: float, longest: int) -> str:
    """The same of held-out answers. longest: the tokens at which they are cut."""
    if share <= _MANY_CUT:
        return ""
    return (
        f"{share:.1%} of the held-out answers are cut at {longest} tokens and are marked as they stand: the accuracy "
        "may be too low. evaluation.max_tokens gives them more room."
    )


def defused(where: str, counts: AnswerTally) -> str:
    """Answers and questions that hold tags of a judge's prompts."""
    if not counts.defused_answers + counts.defused_questions:
        return ""
    return (
        f"{where}: {counts.defused_answers} answers and {counts.defused_questions} questions hold tags of the judge's "
        "prompts, such as <answer>; the judge was shown them without their brackets. A student that is rewarded by a "
        "judge may learn to write its own verdict: read some of them."
    )


def kappa(counts: AnswerTally) -> float:
    """Cohen's κ of judge and rule."""
    return evaluate.kappa(counts.compared, counts.judge_right, counts.rule_right, counts.judge_rule_agreements)


def disagreement(where: str, counts: AnswerTally, rule: str) -> str:
    """Whether judge and rule differ on more answers than can be: the 95 % interval of the share lies above 10 %."""
    n = counts.compared
    if not n or (differ := wilson(n - counts.judge_rule_agreements, n)).low <= _CHANCE:
        return ""
    return (
        f"{where}: the judge and the rule ({rule}) differ on {differ.value:.1%} of {n} answers (95 % interval "
        f"{differ.low:.1%} to {differ.high:.1%}): the judge calls {counts.judge_right / n:.1%} right, the rule "
        f"{counts.rule_right / n:.1%}. One of the two does not fit these labels. Read what they differ on with "
        "masters-ray judge-audit; judge.rule chooses another rule, judge.of_teacher, judge.of_student and "
        "evaluation.marked_by who judges."
    )


def held_out_disagreement(where: str, marked: Sequence[Marked], rule: str) -> str:
    """The same of held-out answers that the judge marked: the accuracy is what the judge says of them."""
    both = [one for one in marked if one.by_rule is not None]
    counts = AnswerTally(
        compared=len(both),
        judge_right=sum(one.correct for one in both),
        rule_right=sum(bool(one.by_rule) for one in both),
        judge_rule_agreements=sum(one.correct == one.by_rule for one in both),
    )
    return disagreement(where, counts, rule)
