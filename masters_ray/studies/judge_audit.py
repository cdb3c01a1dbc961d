"""How far the judges can be trusted (appendix F.7): student, teacher and rule on the same answers.

teacher and student answer a sample of the data, the rule marks ─► store
each model judges every answer twice, in another order ─► verdicts
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masters_ray import store
from masters_ray.config import Config, JudgedBy, Schedule, ScheduledStage, joined
from masters_ray.errors import DataError
from masters_ray.files import MADE_AGAIN, as_json, read_record, write_json, write_text
from masters_ray.marking import RULES
from masters_ray.pipeline import run
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.pipeline.judging import JUDGES
from masters_ray.pipeline.parallel import batches, in_parallel
from masters_ray.progress import say, track
from masters_ray.records import Problem
from masters_ray.replicas import processes
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import specs
from masters_ray.report.render import render
from masters_ray.studies.statistics import Agreement, agreement

RESULT = "judge_audit.json"
PAGE = "judge_audit.html"
DISAGREEMENTS = "disagreements.jsonl"


@dataclass(frozen=True, kw_only=True)
class AuditCase:
    """An answer that every judge looks at."""

    position: int
    problem: Problem
    source: str
    text: str


@dataclass(frozen=True, kw_only=True)
class JudgeFigures:
    """One judge."""

    name: str
    """student, teacher or rule."""
    answers: int
    unjudged: int
    """Answers on which neither of its calls could be read."""
    right: dict[str, float]
    """Source of the answers → share of the readable verdicts that say right."""
    consistency: float | None
    """Share of answers with the same verdict in both passes, unreadable counted as one; None: a rule has one pass."""
    seconds_per_answer: float | None
    """Wall time of the first pass, per answer; None: not worth measuring."""


@dataclass(frozen=True, kw_only=True)
class JudgePair:
    """Two judges on the answers that both could judge."""

    first: str
    second: str
    of: str
    """all, teacher or student: whose answers."""
    agreement: Agreement


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An answer on which the judges do not all say the same: a line of disagreements.jsonl."""

    id: str
    question: str
    label: str
    source: str
    answer: str
    verdicts: dict[str, int | None]
    """Judge → 1 right, 0 wrong, None unreadable."""
    said: dict[str, str]
    """Judge that is a model → what it wrote."""


@dataclass(frozen=True, kw_only=True)
class JudgePass:
    """One judge's verdicts on all cases, in their order."""

    seconds: float | None
    """Wall time over all its replicas; None: not measured."""
    accuracy: list[int | None]
    said: list[str]
    """What the model wrote; empty: of a rule."""


def audit_config(config: Config, questions: int, ratio: float) -> Config:
    """The configuration whose rollouts an audit looks at: one stage, marked by the rule, so that no answer is left
    out."""
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=joined(config.run.dir, f"judge-audit-{questions}")),
        data=dataclasses.replace(config.data, train=dataclasses.replace(config.data.train, rows=questions)),
        schedule=Schedule(stages=[ScheduledStage(ratio=ratio)]),
        rollout=dataclasses.replace(config.rollout, student_refresh="run", max_cut_share=1.0),
        judge=dataclasses.replace(config.judge, of_teacher="rule", of_student="rule", reasoning=False),
        evaluation=dataclasses.replace(config.evaluation, marked_by="rule"),
        reward=dataclasses.replace(config.reward, rho=0.0),
        growth=[],
    )


def audit(config: Config, directory: RunDirectory, config_file: str) -> Path:
    """Make what is missing of an audit; Ray must be started. config: of ``audit_config``. Returns the page's path."""
    questions, answers = config.data.train.rows or 0, config.group_size
    say(f"{questions * answers:,} answers to {questions} questions are written, and judged twice by two models")
    [folder] = run.generate(config, directory, config_file, measure=False)
    cases = _cases(folder)
    verdicts_of = directory.root / "verdicts" / store.digest_of([dataclasses.asdict(case) for case in cases])[:16]
    asked = {judge: _asked(config, verdicts_of, judge, cases) for judge in JUDGES} | {"rule": [_by_rule(config, cases)]}
    judged = [_judged(name, cases, *passes) for name, passes in asked.items()]
    first: dict[str, JudgePass] = {name: passes[0] for name, passes in asked.items()}
    compared, differing = pairs(cases, first), disagreements(cases, first)
    lines = "".join(json.dumps(as_json(one), ensure_ascii=False) + "\n" for one in differing)
    write_text(directory.file(DISAGREEMENTS), lines)
    result = {
        "answers": len(cases),
        "rule": config.judge.rule,
        "judges": judged,
        "pairs": compared,
        "disagreements": len(differing),
        "config_file": config_file,
    }
    write_json(directory.file(RESULT), as_json(result))
    say(table(judged, compared).removesuffix("\n"))
    write_text(directory.file(PAGE), page(config, judged, compared, differing))
    return directory.file(PAGE)


def pairs(cases: Sequence[AuditCase], passes: Mapping[str, JudgePass]) -> list[JudgePair]:
    """Every two judges, over all answers and by their source, as far as both judged any."""
    found = []
    for first, second in itertools.combinations(passes, 2):
        for of in ("all", "teacher", "student"):
            both = [
                (one, other, case.position)
                for case, one, other in zip(cases, passes[first].accuracy, passes[second].accuracy, strict=True)
                if one is not None and other is not None and of in ("all", case.source)
            ]
            if both:
                found.append(
                    JudgePair(first=first, second=second, of=of, agreement=agreement(*zip(*both, strict=True)))
                )
    return found


def disagreements(cases: Sequence[AuditCase], passes: Mapping[str, JudgePass]) -> list[Disagreement]:
    """The answers on which the judges do not all say the same; each answer to a question once."""
    found: dict[tuple[str, str], Disagreement] = {}
    for index, case in enumerate(cases):
        verdicts = {name: one.accuracy[index] for name, one in passes.items()}
        if len(set(verdicts.values())) > 1:
            differing = Disagreement(
                id=case.problem.id,
                question=case.problem.question,
                label=case.problem.label,
                source=case.source,
                answer=case.text,
                verdicts=verdicts,
                said={name: one.said[index] for name, one in passes.items() if one.said},
            )
            found.setdefault((case.problem.id, case.text), differing)
    return list(found.values())


def table(judged: Sequence[JudgeFigures], compared: Sequence[JudgePair]) -> str:
    """The audit for a terminal."""
    return render(__package__, "judge_audit.txt.jinja", judged=judged, compared=compared)


def page(
    config: Config, judged: Sequence[JudgeFigures], compared: Sequence[JudgePair], differing: Sequence[Disagreement]
) -> str:
    """The audit as an HTML document, for a reader who has seen neither code nor run."""
    return render(
        __package__,
        "judge_audit.html.jinja",
        name=Path(config.run.dir).parent.name,
        config=config,
        judged=judged,
        compared=compared,
        differing=differing,
    )


def _cases(folder: store.Folder) -> list[AuditCase]:
    found = []
    for row in store.read(folder):
        problem = dataclasses.replace(row.problem, pictures=())  # a judge sees none
        answers = [answer.judged.answer for answer in row.answers]
        found += [
            AuditCase(position=row.position, problem=problem, source=one.source, text=one.text) for one in answers
        ]
    if not found:
        raise DataError(f"{folder}: no answers, so nothing to judge. Look at its account with masters-ray store.")
    return found


def _asked(config: Config, folder: Path, judge: JudgedBy, cases: Sequence[AuditCase]) -> list[JudgePass]:
    """Both passes of one judge; kept in ``folder`` once they are there."""
    order = list(range(len(cases)))
    orders = {"first": order, "again": order[::2][::-1] + order[1::2]}
    files = {name: folder / f"{judge}-{name}.json" for name in orders}
    if not all(file.exists() for file in files.values()):
        with Replicas(specs(config, [processes.judging(config, judge)])) as replicas:
            for name, file in files.items():
                if not file.exists():
                    pool = replicas.pools[JUDGES[judge]]
                    write_json(file, as_json(_pass(pool, cases, orders[name], config.rollout.batch_rows, judge)))
    return [read_record(file, JudgePass, MADE_AGAIN) for file in files.values()]


def _pass(pool: Pool, cases: Sequence[AuditCase], order: Sequence[int], size: int, judge: str) -> JudgePass:
    """Asked in this order."""

    def ask(indices: Sequence[int]) -> list[list[Verdict]]:
        problems, texts = [cases[index].problem for index in indices], [[cases[index].text] for index in indices]
        told: list[list[Verdict]] = pool.call_again("judge", problems, texts, False)
        return told

    verdicts: dict[int, Verdict] = {}
    began = time.monotonic()
    with track(f"{judge} judges", len(cases)) as advance:
        for indices, told in in_parallel(ask, batches(order, size), pool.most_calls_at_once):
            verdicts |= {index: verdict for index, (verdict,) in zip(indices, told, strict=True)}
            advance(len(indices))
    return JudgePass(
        seconds=time.monotonic() - began,
        accuracy=[verdicts[index].accuracy for index in range(len(cases))],
        said=[verdicts[index].text for index in range(len(cases))],
    )


def _by_rule(config: Config, cases: Sequence[AuditCase]) -> JudgePass:
    rule = RULES[config.judge.rule]
    return JudgePass(seconds=None, accuracy=[int(rule(case.text, case.problem)) for case in cases], said=[])


def _judged(name: str, cases: Sequence[AuditCase], first: JudgePass, *again: JudgePass) -> JudgeFigures:
    right = {}
    for source in ("teacher", "student"):
        said = [word for case, word in zip(cases, first.accuracy, strict=True) if case.source == source]
        readable = [word for word in said if word is not None]
        if readable:
            right[source] = sum(readable) / len(readable)
    same = [one == other for later in again for one, other in zip(first.accuracy, later.accuracy, strict=True)]
    return JudgeFigures(
        name=name,
        answers=len(cases),
        unjudged=first.accuracy.count(None),
        right=right,
        consistency=sum(same) / len(same) if same else None,
        seconds_per_answer=None if first.seconds is None else first.seconds / len(cases),
    )
