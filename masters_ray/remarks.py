"""Warnings about a stage's or the held-out answers, as sentences for the terminal and the report; "" for none. where:
name of the answers in the sentence, such as "stage 0"."""

from collections.abc import Sequence

from masters_ray.evaluate import Marked, wilson
from masters_ray.records import AnswerTally

_MANY_CUT = 0.05  # a warning appears above this fraction of cut answers


def of(where: str, counts: AnswerTally, rule: str) -> list[str]:
    return list(filter(None, (cut(where, counts), defused(where, counts), disagreement(where, counts, rule))))


def cut(where: str, counts: AnswerTally) -> str:
    rates = counts.rates("cut", "written").items()
    if not (many := [f"{share:.1%} of the {source}'s" for source, share in rates if share > _MANY_CUT]):
        return ""
    return (
        f"{where}: {' and '.join(many)} answers are cut; reward.cut_answers says what they get, and "
        "a larger rollout.sampling.max_tokens gives more room, in another run.dir."
    )


def held_out_cut(share: float, longest: int) -> str:
    if share <= _MANY_CUT:
        return ""
    return (
        f"{share:.1%} of the held-out answers are cut at {longest} tokens and are marked as they stand: the accuracy "
        "may be too low. evaluation.max_tokens gives them more room."
    )


def defused(where: str, counts: AnswerTally) -> str:
    found = {"answers": counts.defused_answers, "questions": counts.defused_questions}
    if not (parts := [f"{count} {name}" for name, count in found.items() if count]):
        return ""
    return (
        f"{where}: {' and '.join(parts)} with tags of the judge's prompts, such as <answer>, which the judge was shown "
        "without their brackets. Read some of them in the store's shards (docs/STORE.md): a student may learn to write "
        "its own verdict."
    )


def disagreement(where: str, counts: AnswerTally, rule: str) -> str:
    """Warns when judge and rule differ too often: the 95 % interval of the fraction lies above 10 %, since they
    may differ on some although both fit the labels."""
    n = counts.compared
    if not n or (differ := wilson(n - counts.judge_rule_agreements, n)).low <= 0.1:
        return ""
    return (
        f"{where}: the judge and the rule ({rule}) differ on {differ.value:.1%} of {n} answers (95 % interval "
        f"{differ.low:.1%} to {differ.high:.1%}): the judge calls {counts.judge_right / n:.1%} right, the rule "
        f"{counts.rule_right / n:.1%}. Read what they differ on with masters-ray judge-audit. judge.rule chooses "
        "another rule, judge.of_teacher, judge.of_student and evaluation.marked_by who judges."
    )


def held_out_disagreement(where: str, marked: Sequence[Marked], rule: str) -> str:
    """Warns of ``disagreement`` on held-out answers that a judge marked, whose marks are the accuracy."""
    both = [one for one in marked if one.by_rule is not None]
    counts = AnswerTally(
        compared=len(both),
        judge_right=sum(one.correct for one in both),
        rule_right=sum(bool(one.by_rule) for one in both),
        judge_rule_agreements=sum(one.correct == one.by_rule for one in both),
    )
    return disagreement(where, counts, rule)
