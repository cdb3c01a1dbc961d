"""The data: rows, kinds, what would be set aside, and the stages that the questions fill."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from masters_ray import data, schedule
from masters_ray.checks.context import CheckContext, Findings, NotChecked, from_error
from masters_ray.config import DataSource
from masters_ray.data import sources
from masters_ray.data.texts import cut
from masters_ray.errors import DataError
from masters_ray.pipeline import inputs
from masters_ray.records import Problem, Rejected

FIRST = 200
"""Rows of a source that are looked at unless all are."""
_REASONS = 6
"""Reasons that are shown."""
_KINDS = 8
_REASON = 300
"""Characters of a reason."""
_ITERATIONS = 12


def train(context: CheckContext) -> Findings:
    """Rows of data.train give questions, and not too many are set aside."""
    return _source(context, "train", context.config.data.train)


def held_out(context: CheckContext) -> Findings:
    """Rows of data.held_out give questions, and not too many are set aside."""
    return _source(context, "held_out", context.config.data.held_out)


def overlap(context: CheckContext) -> Findings:
    """What training and held-out questions have in common."""
    if len(context.loaded) == 2:
        inputs.told_overlap(context.loaded["train"], context.loaded["held_out"])
    yield from ()


def stages(context: CheckContext) -> Findings:
    """Every stage has questions; how many there are is known once all rows were looked at, or as conf says."""
    if context.questions is not None:
        try:
            inputs.plan(context.config, context.questions)
        except DataError as error:
            yield from_error("schedule", "questions for every stage", error)


def online_iterations(context: CheckContext) -> Findings:
    """Which iterations are online."""
    if fraction := context.config.rollout.online_fraction:
        numbers = (str(number) for number in itertools.count(1) if schedule.is_online(number, fraction))
        yield f"online iterations: {', '.join(itertools.islice(numbers, _ITERATIONS))}, … ({fraction:.1%} of all)"


def _source(context: CheckContext, name: str, source: DataSource) -> Findings:
    """Reads it as a run does, its first rows or all."""
    where, allowed = f"data.{name}", context.config.data.max_quarantined_share
    try:
        more = not context.all_rows and _has_more(source)
        first, spool = FIRST if more else None, context.scratch / f"{name}.sqlite"
        loaded = inputs.load_source(context.config, source, list(context.models.values()), spool, 1.0, first)
    except DataError as error:
        yield from_error(where, "questions", error)
        return
    context.loaded[name] = loaded
    if more:
        context.partial.add(name)
        yield NotChecked(f"rows after the first {FIRST} of {where} were not looked at (--all)")
    accepted = loaded.accepted
    looked = f"the first {FIRST} rows" if more else f"all {accepted + len(loaded.rejected)} rows"
    yield f"{where}  {looked} of {source.path}: {accepted} questions{_kinds(loaded.problems)}"
    yield from (f"  pictures: {count} {change}" for change, count in sorted(loaded.changes.items()))
    yield from (f"  {remark}" for remark in loaded.remarks)
    yield from (f"  set aside: {line}" for line in _reasons(loaded.rejected))
    if not more and source.rows is not None and source.rows > accepted:
        yield f"  {where}.rows asks for {source.rows}: all {accepted} are taken"
    try:
        data.refuse_too_many(source, loaded, allowed)
    except DataError as error:
        yield from_error(where, "questions", error, "masters-ray validate --all looks at every row." if more else "")


def _has_more(source: DataSource) -> bool:
    """Whether there are more than the first rows."""
    return next(itertools.islice(sources.rows(source), FIRST, None), None) is not None


def _kinds(problems: Sequence[Problem]) -> str:
    counts = Counter(problem.kind for problem in problems)
    if len(counts) == 1:
        return ""
    shown = [f"{kind} {count}" for kind, count in counts.most_common(_KINDS)]
    return f" ({', '.join(shown)}{', …' if len(counts) > _KINDS else ''})"


def _reasons(rejected: Sequence[Rejected]) -> list[str]:
    """How many rows there are of each reason, with the first of them; reasons that differ in names and numbers alone
    are one."""
    alike: dict[str, list[Rejected]] = defaultdict(list)
    for one in rejected:
        alike[re.sub(r"/\S+|'[^']*'|\d+", "…", one.reason)].append(one)
    ordered = sorted(alike.values(), key=len, reverse=True)
    lines = [f"{len(those)} × {cut(those[0].reason, _REASON)} ({those[0].row})" for those in ordered[:_REASONS]]
    rest = sum(len(those) for those in ordered[_REASONS:])
    return [*lines, f"{rest} × for other reasons"] if rest else lines
