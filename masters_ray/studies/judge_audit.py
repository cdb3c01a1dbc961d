"""The judge audit (appendix F.7): compares student, teacher and rule as judges of the same answers.

teacher and student answer a sample of the data, the rule marks ─► store
each model judges every answer twice, the second time in another order ─► verdicts
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from masters_ray import store
from masters_ray.config import Config, JudgedBy
from masters_ray.errors import DataError
from masters_ray.evaluate import Interval, kappa, wilson
from masters_ray.files import read_record, write_json, write_lines
from masters_ray.pipeline import run
from masters_ray.pipeline.examples import seen
from masters_ray.pipeline.groups import JUDGES
from masters_ray.pipeline.parallel import batches, map_unordered
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.plan.rates import Rates
from masters_ray.progress import say, track
from masters_ray.records import JudgedText
from masters_ray.replicas import processes
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import specs
from masters_ray.studies import publish, sample, sample_seconds, told_time
from masters_ray.studies.statistics import alike_needed, questions_needed, resampled, resampled_share

LIMITS = {"more right": (-0.05, 0.05), "κ": (0.6, math.inf), "consistency": (0.9, math.inf)}
"""Measure of a judge → bounds within which it is fit to train on; the page says why."""


@dataclass(frozen=True, kw_only=True)
class JudgePass:
    """A judge's verdicts in the order of the cases."""

    seconds: float | None  # wall time; None for the rule
    verdicts: list[Verdict]


@dataclass(frozen=True, kw_only=True)
class JudgeFigures:
    name: str
    unjudged: int  # answers for which neither call was readable
    right: dict[str, float]  # source of the answers → fraction of the readable verdicts that say right
    more_right: dict[str, Interval]  # source → that minus the rule's of the same answers; resamples whole questions
    consistency: Interval  # share of answers with equal verdicts in both passes, unreadable ones too; NaN for the rule
    seconds_per_answer: float | None  # wall seconds of the first pass per answer; None for the rule


@dataclass(frozen=True, kw_only=True)
class JudgePair:
    """The agreement of two judges on the answers that both could judge."""

    first: str
    second: str
    of: str  # source of the answers: all, teacher or student
    both_right: int
    right_wrong: int  # answers that the first judge calls right and the second wrong
    wrong_right: int
    both_wrong: int
    share: float  # fraction of the answers on which both agree
    kappa: Interval  # Cohen's κ; resamples whole questions, which n counts, as their answers depend on each other


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An answer with different verdicts: a line of disagreements.jsonl."""

    case: JudgedText
    verdicts: dict[str, int | None]  # judge → 1 right, 0 wrong, None unreadable
    said: dict[str, str]  # judging model → its reply

    @property
    def judges(self) -> list[str]:
        """The models whose verdict is not the rule's."""
        return [name for name in self.said if self.verdicts[name] != self.verdicts["rule"]]

    @property
    def pattern(self) -> tuple[int, str]:
        """0: a model says right of what the rule calls wrong, which training would reinforce; 1: wrong of what is
        right; 2: unreadable verdicts alone. With the source of the answer."""
        rule, said = self.verdicts["rule"], {self.verdicts[name] for name in self.judges}
        return (2 if said == {None} else int(rule == 1)), self.case.source


def audit_config(config: Config, questions: int, ratio: float) -> Config:
    """Returns the configuration of an audit's rollouts: judged by the rule, so that no answer is left out."""
    return replace(
        sample(config, "judge-audit", questions, [ratio]),
        judge=replace(config.judge, of_teacher="rule", of_student="rule", reasoning=False),
        evaluation=replace(config.evaluation, marked_by="rule"),
        reward=replace(config.reward, rho=0.0),
    )


def audit(config: Config, directory: RunDirectory, config_file: str) -> Path:
    """Makes the missing parts of an audit, then figures, disagreements, table and page; Ray must be started. config:
    from ``audit_config``. Returns the page's path. Raises DataError when there are no answers."""
    questions, answers = config.data.train_rows or 0, config.group_size
    time = told_time([directory.root.parent], lambda rates: sample_seconds(config, rates) + _judging(config, rates))
    say(
        f"{questions * answers:,} answers to {questions} questions are written; two models judge each of them twice, "
        f"which makes {4 * questions * answers:,} judgements: {time}"
    )
    [folder] = run.generate(config, directory, config_file, measure=False)
    cases = list(store.read_judged(folder))
    if not cases:
        raise DataError(f"{folder}: no answers to judge. Look at its account with masters-ray store inspect.")
    kept = directory.root / "verdicts" / store.digest_of([asdict(case) for case in cases])[:16]
    passes: dict[str, list[JudgePass]] = {name: _asked(config, kept, name, cases) for name in JUDGES}
    by_rule = [Verdict(accuracy=case.accuracy, text="") for case in cases]
    passes["rule"] = [JudgePass(seconds=None, verdicts=by_rule)]
    first = {name: of[0].verdicts for name, of in passes.items()}
    differing = disagreements(cases, first)
    write_lines(directory.root / "disagreements.jsonl", differing)
    judges, agreements = [judge_figures(name, cases, *of) for name, of in passes.items()], list(pairs(cases, first))
    kappas = {one.first: one.kappa for one in agreements if (one.second, one.of) == ("rule", "all")}
    figures = {
        "questions": len({case.position for case in cases}),
        "answers": len(cases),
        "rule": config.judge.rule,
        "judges": judges,
        "kappas": kappas,
        "fitness": {one.name: fitness(one, kappas.get(one.name)) for one in judges if one.name != "rule"},
        "needed": {one.name: needed(one, kappas.get(one.name)) for one in judges if one.name != "rule"},
        "pairs": agreements,
        "disagreements": len(differing),
    }
    pictures = {row.position: row.problem.pictures for row in store.read(folder)}
    drawn = {"name": directory.root.parent.name, "differing": differing, "limits": LIMITS}
    return publish(directory.root, "judge_audit", config, figures, **drawn, pictures=pictures, seen=seen)


def fitness(judge: JudgeFigures, kappa: Interval | None) -> dict[str, Literal["fit", "unfit", "open"]]:
    """Returns measure → whether its interval lies inside its limits, outside, or neither: κ with the rule, consistency,
    and more right of each source's answers. A judge is unfit by one that is outside, and fit if all are inside."""
    said: dict[str, Literal["fit", "unfit", "open"]] = {}
    for name, (one, low, high) in _measures(judge, kappa).items():
        inside, outside = low <= one.low and one.high <= high, one.high < low or one.low > high
        said[name] = "fit" if inside else "unfit" if outside else "open"
    return said


def needed(judge: JudgeFigures, kappa: Interval | None) -> float:
    """Returns how many questions would in four of five samples tell each measure from its limits, if ``fitness`` leaves
    one open and they are as measured; 0 if it leaves none open, NaN if one has no value or is at a limit."""
    most = [0.0]
    if "open" in fitness(judge, kappa).values():
        for one, *limits in _measures(judge, kappa).values():
            distance = min(abs(one.value - limit) for limit in limits)
            alike = one.n and math.isclose(max(one.high - one.value, one.value - one.low), wilson(0, one.n).high)
            most.append(alike_needed(distance) if alike else questions_needed(replace(one, value=distance)))
    return max(most) if all(map(math.isfinite, most)) else math.nan


def _measures(judge: JudgeFigures, kappa: Interval | None) -> dict[str, tuple[Interval, float, float]]:
    """Returns measure → its interval and its limits."""
    found = {f"more right, {source}": change for source, change in judge.more_right.items()}
    found |= {"κ": kappa or resampled_share([], []), "consistency": judge.consistency}
    return {name: (one, *LIMITS[name.partition(",")[0]]) for name, one in found.items()}


def _judging(config: Config, rates: Rates) -> float:
    """Returns the seconds of two models that judge twice, as a run's judge takes (if a rule judged, as answering)."""
    calls = rates.calls.get("judge") or rates.calls["answer"]
    once = (config.data.train_rows or 0) * max(calls.values()) / config.judge.replicas
    return 2 * (rates.engines_seconds + 2 * once)


def judge_figures(name: str, cases: Sequence[JudgedText], first: JudgePass, *again: JudgePass) -> JudgeFigures:
    """again: further passes of the same judge."""
    said = [one.accuracy for one in first.verdicts]
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for case, word in zip(cases, said, strict=True):
        if word is not None:
            rows.setdefault(case.source, []).append((word, word - case.accuracy, case.position))
    read = {source: tuple(zip(*of, strict=True)) for source, of in rows.items()}
    same = [int(one == other.accuracy) for later in again for one, other in zip(said, later.verdicts, strict=True)]
    return JudgeFigures(
        name=name,
        unjudged=said.count(None),
        right={source: sum(words) / len(words) for source, (words, _, _) in read.items()},
        more_right={source: resampled_share(changes, asked, -1.0) for source, (_, changes, asked) in read.items()},
        consistency=resampled_share(same, [case.position for case in cases] * len(again)),
        seconds_per_answer=None if first.seconds is None else first.seconds / len(cases),
    )


def pairs(cases: Sequence[JudgedText], verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[JudgePair]:
    """Yields the agreement of every two judges, over all answers and per source; leaves out pairs without a case."""
    for first, second in itertools.combinations(verdicts, 2):
        for of in ("all", "teacher", "student"):
            both = [
                (one.accuracy, other.accuracy, case.position)
                for case, one, other in zip(cases, verdicts[first], verdicts[second], strict=True)
                if one.accuracy is not None and other.accuracy is not None and of in ("all", case.source)
            ]
            if not both:
                continue
            counts = Counter((one, other) for one, other, _ in both)
            columns = np.array([(1, one, other, one == other) for one, other, _ in both], float)
            yield JudgePair(
                first=first,
                second=second,
                of=of,
                both_right=counts[1, 1],
                right_wrong=counts[1, 0],
                wrong_right=counts[0, 1],
                both_wrong=counts[0, 0],
                share=(counts[1, 1] + counts[0, 0]) / len(both),
                kappa=resampled(columns, [question for *_, question in both], lambda sums: kappa(*sums)),
            )


def disagreements(cases: Sequence[JudgedText], verdicts: Mapping[str, Sequence[Verdict]]) -> list[Disagreement]:
    """Returns the answers with different verdicts; equal answers of a model to a question once."""
    found: dict[tuple[int, str, str], Disagreement] = {}
    for index, case in enumerate(cases):
        own = {name: of[index].accuracy for name, of in verdicts.items()}
        if len(set(own.values())) > 1:
            said = {name: of[index].text for name, of in verdicts.items() if name != "rule"}
            place = (case.position, case.source, case.text)
            found.setdefault(place, Disagreement(case=case, verdicts=own, said=said))
    return list(found.values())


def _asked(config: Config, folder: Path, judge: JudgedBy, cases: Sequence[JudgedText]) -> list[JudgePass]:
    """Returns both passes of a judge, in different orders; makes them if ``folder`` does not have them."""
    file, order = folder / f"{judge}.json", list(range(len(cases)))
    if not file.exists():
        with Replicas(specs(config, [processes.for_judging(config, judge)])) as replicas:
            pool, size = replicas.pools[JUDGES[judge]], config.rollout.batch_rows
            made = [_pass(pool, cases, one, size, judge) for one in (order, order[::2][::-1] + order[1::2])]
        write_json(file, made)
    return read_record(file, list[JudgePass])


def _pass(pool: Pool, cases: Sequence[JudgedText], order: Sequence[int], size: int, judge: str) -> JudgePass:

    def ask(indices: Sequence[int]) -> list[list[Verdict]]:
        asked = [cases[index] for index in indices]
        told: list[list[Verdict]] = pool.call_again("judge", asked, [[case.text] for case in asked], False)
        return told

    verdicts: dict[int, Verdict] = {}
    began = time.monotonic()
    with track(f"{judge} judges", len(cases)) as advance:
        for indices, told in map_unordered(ask, batches(order, size), pool.most_calls_at_once):
            verdicts |= {index: verdict for index, (verdict,) in zip(indices, told, strict=True)}
            advance(len(indices))
    return JudgePass(seconds=time.monotonic() - began, verdicts=[verdicts[index] for index in range(len(cases))])
