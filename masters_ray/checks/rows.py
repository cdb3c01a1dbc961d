"""Checks of the data: its rows and kinds, what would be set aside, and whether the questions fill every stage."""

import itertools
from collections import Counter

from masters_ray import data
from masters_ray.checks.context import CheckContext
from masters_ray.data import sources
from masters_ray.method import schedule
from masters_ray.pipeline import inputs
from masters_ray.progress import say

FIRST = 200
"""Rows of a source that are read without ``all_rows``."""


def files(context: CheckContext) -> None:
    """Checks that data files exist and have the format that their section names."""
    for name, source in (("train", context.config.data.train), ("held_out", context.config.data.held_out)):
        if source.path and (other := data.in_place_of(source)):
            found, _, remedy = other.partition(". ")
            context.complain(f"data.{name}.path", f"a {source.format} file", f"{source.path}: {found}", remedy)


def source(context: CheckContext, name: str) -> None:
    """Reads the first or all rows of a source as a run does; checks that not too many are set aside, and that every
    stage has questions, if their number is known: all rows were read or data.train.rows is set."""
    config, source, where = context.config, getattr(context.config.data, name), f"data.{name}"
    more = not context.all_rows and next(itertools.islice(sources.rows(source), FIRST, None), None) is not None
    first, spool = FIRST if more else None, context.scratch / f"{name}.spool"
    loaded = inputs.load_source(config, source, list(context.folders.values()), spool, 1.0, first)
    context.loaded[name] = loaded
    kinds = Counter(problem.kind for problem in loaded)
    if name == "train" and not more:
        context.digest = inputs.digest_of(loaded)
    looked = f"the first {FIRST} rows" if more else f"all {loaded.accepted + len(loaded.rejected)} rows"
    say(f"{where}  {looked} of {source.path}: {loaded.accepted} questions")
    if len(kinds) > 1:
        say(f"  most frequent kinds: {', '.join(f'{kind} {count}' for kind, count in kinds.most_common(8))}")
    changes = [f"pictures: {count} {change}" for change, count in sorted(loaded.changes.items())]
    aside = [f"set aside: {told}" for told in data.reasons(loaded.rejected)]
    for told in (*changes, *loaded.remarks, *aside):
        say(f"  {told}")
    if more:
        context.not_checked.append(f"rows after the first {FIRST} of {where} were not looked at (--all)")
    elif source.rows is not None and source.rows > loaded.accepted:
        say(f"  {where}.rows asks for {source.rows}: all {loaded.accepted} are taken")
    data.refuse_too_many(source, loaded, config.data.max_quarantined_share)
    questions = source.rows if more else len(loaded)
    if name == "train" and questions is not None:
        with context.guarded("schedule", "questions for every stage"):
            inputs.plan(config, questions)
    if name == "train" and (fraction := config.rollout.online_fraction):
        online = itertools.islice((n for n in itertools.count(1) if schedule.is_online(n, fraction)), 12)
        say(f"online iterations: {', '.join(map(str, online))}, … ({fraction:.1%} of all)")
    if name == "held_out" and "train" in context.loaded:
        inputs.report_overlap(context.loaded["train"], loaded)
