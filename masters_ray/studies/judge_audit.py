"""How far the judges can be trusted (appendix F.7): student, teacher and rule on the same answers.

teacher and student answer a sample of the data, the rule marks ─► store
each model judges every answer twice, in another order ─► verdicts
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray import store
from masters_ray.actors import deployments
from masters_ray.actors.judge import Verdict
from masters_ray.actors.pool import Pool
from masters_ray.actors.replicas import Replicas
from masters_ray.config import Config, JudgedBy, Schedule, ScheduledStage, joined
from masters_ray.errors import DataError
from masters_ray.files import read_json, write_json, write_text
from masters_ray.marking import RULES
from masters_ray.pipeline import run
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.pipeline.judging import JUDGES
from masters_ray.pipeline.parallel import batches, in_parallel
from masters_ray.progress import say, track
from masters_ray.records import Problem
from masters_ray.studies import judge_audit_page
from masters_ray.studies.statistics import Agreement, agreement, as_json

RESULT = "judge_audit.json"
PAGE = "judge_audit.html"
DISAGREEMENTS = "disagreements.jsonl"


@dataclass(frozen=True, kw_only=True)
class Case:
    """An answer that every judge looks at."""

    position: int
    problem: Problem
    source: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One judge."""

    name: str
    """student, teacher or rule."""
    answers: int
    unjudged: int
    """Answers on which neither of its calls could be read."""
    right: dict[str, float]
    """Source of the answers → share of the readable verdicts that say right."""
    consistency: float | None
    """Share of answers with the same verdict when they are asked again in another order; unreadable counts as one.
    None: a rule is not asked again."""
    seconds_per_answer: float | None
    """Wall time of the first pass over all its replicas, per answer; None: a rule needs none."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two judges on the answers that both could judge."""

    first: str
    second: str
    of: str
    """all, teacher or student: whose answers."""
    agreement: Agreement


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
    verdicts: dict[str, list[int | None]] = {}
    said: dict[str, list[str]] = {}
    judged = []
    for judge in JUDGES:
        first, again = _asked(config, verdicts_of, judge, cases)
        verdicts[judge], said[judge] = first["accuracy"], first["said"]
        consistency = _consistency(first["accuracy"], again["accuracy"])
        judged.append(_judged(judge, cases, first["accuracy"], consistency, first["seconds"] / len(cases)))
    rule = RULES[config.judge.rule]
    verdicts["rule"] = [int(rule(case.text, case.problem)) for case in cases]
    judged.append(_judged("rule", cases, verdicts["rule"]))
    compared = pairs(cases, verdicts)
    differing = disagreements(cases, verdicts, said)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in differing)
    write_text(directory.file(DISAGREEMENTS), lines)
    result = {
        "answers": len(cases),
        "rule": config.judge.rule,
        "judges": [as_json(one) for one in judged],
        "pairs": [as_json(one) for one in compared],
        "disagreements": len(differing),
        "config_file": config_file,
    }
    write_json(directory.file(RESULT), result)
    for line in table(judged, compared):
        say(line)
    return judge_audit_page.write(directory.file(PAGE), config, judged, compared, differing)


def pairs(cases: Sequence[Case], verdicts: Mapping[str, Sequence[int | None]]) -> list[Pair]:
    """Every two judges, over all answers and by their source, as far as both judged any."""
    found = []
    for first, second in itertools.combinations(verdicts, 2):
        for of in ("all", "teacher", "student"):
            both = [
                (one, other, case.position)
                for case, one, other in zip(cases, verdicts[first], verdicts[second], strict=True)
                if one is not None and other is not None and of in ("all", case.source)
            ]
            if both:
                found.append(Pair(first=first, second=second, of=of, agreement=agreement(*zip(*both, strict=True))))
    return found


def disagreements(
    cases: Sequence[Case], verdicts: Mapping[str, Sequence[int | None]], said: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """The answers on which the judges do not all say the same, with what the models wrote; each case once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for index, case in enumerate(cases):
        words = {name: one[index] for name, one in verdicts.items()}
        if len(set(words.values())) > 1:
            row = {
                "id": case.problem.id,
                "question": case.problem.question,
                "label": case.problem.label,
                "source": case.source,
                "answer": case.text,
                "verdicts": words,
                "said": {name: one[index] for name, one in said.items()},
            }
            found.setdefault((case.problem.id, case.text), row)
    return list(found.values())


def table(judged: Sequence[Judged], compared: Sequence[Pair]) -> list[str]:
    """For a terminal."""
    lines = [f"{'judge':<10}{'answers':>9}{'unjudged':>10}{'consistent':>12}{'s / answer':>12}"]
    for one in judged:
        unjudged = one.unjudged / one.answers
        consistency = "–" if one.consistency is None else f"{one.consistency:.1%}"
        seconds = "–" if one.seconds_per_answer is None else f"{one.seconds_per_answer:.3f}"
        lines.append(f"{one.name:<10}{one.answers:>9}{unjudged:>10.1%}{consistency:>12}{seconds:>12}")
    lines.append(f"{'judges':<20}{'answers of':<12}{'same':>8}{'κ, 95 %':>26}")
    for pair in compared:
        kappa = pair.agreement.kappa
        told = f"{kappa.value:.3f} ({kappa.low:.3f} to {kappa.high:.3f})" if math.isfinite(kappa.value) else "–"
        lines.append(f"{f'{pair.first}, {pair.second}':<20}{pair.of:<12}{pair.agreement.share:>8.1%}{told:>26}")
    return lines


def _cases(folder: store.Folder) -> list[Case]:
    found = [
        Case(
            position=row.position,
            problem=dataclasses.replace(row.problem, pictures=()),  # a judge sees none
            source=answer.judged.answer.source,
            text=answer.judged.answer.text,
        )
        for row in store.read(folder)
        for answer in row.answers
    ]
    if not found:
        raise DataError(f"{folder}: no answers, so nothing to judge. Look at its account with masters-ray store.")
    return found


def _asked(
    config: Config, folder: Path, judge: JudgedBy, cases: Sequence[Case]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One judge's verdicts on all cases, in their order, of both passes; kept in ``folder`` once they are there."""
    order = list(range(len(cases)))
    orders = {"first": order, "again": order[::2][::-1] + order[1::2]}
    files = {name: folder / f"{judge}-{name}.json" for name in orders}
    if not all(file.exists() for file in files.values()):
        with Replicas([deployments.judging(config, judge)]) as replicas:
            for name, file in files.items():
                if not file.exists():
                    pool = replicas.pools[JUDGES[judge]]
                    write_json(file, _pass(pool, cases, orders[name], config.rollout.batch_rows, judge))
    return read_json(files["first"]), read_json(files["again"])


def _pass(pool: Pool, cases: Sequence[Case], order: Sequence[int], size: int, judge: str) -> dict[str, Any]:
    """Verdicts of all cases, asked in this order."""

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
    return {
        "seconds": time.monotonic() - began,
        "accuracy": [verdicts[index].accuracy for index in range(len(cases))],
        "said": [verdicts[index].text for index in range(len(cases))],
    }


def _consistency(first: Sequence[int | None], again: Sequence[int | None]) -> float:
    return sum(a == b for a, b in zip(first, again, strict=True)) / len(first)


def _judged(
    name: str,
    cases: Sequence[Case],
    verdicts: Sequence[int | None],
    consistency: float | None = None,
    seconds_per_answer: float | None = None,
) -> Judged:
    right = {}
    for source in ("teacher", "student"):
        words = [word for case, word in zip(cases, verdicts, strict=True) if case.source == source and word is not None]
        if words:
            right[source] = sum(words) / len(words)
    return Judged(
        name=name,
        answers=len(cases),
        unjudged=sum(word is None for word in verdicts),
        right=right,
        consistency=consistency,
        seconds_per_answer=seconds_per_answer,
    )
