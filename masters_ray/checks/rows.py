"""Checks of the data: its rows and kinds, what would be set aside, and whether the questions fill every stage."""

import itertools
from collections import Counter
from typing import Literal

from masters_ray import data
from masters_ray.checks.context import CheckContext
from masters_ray.config import keys_of
from masters_ray.data import places
from masters_ray.method import schedule
from masters_ray.pipeline import inputs
from masters_ray.progress import say

FIRST = 200  # rows of a source that are read without ``all_rows``


def files(context: CheckContext) -> None:
    """Checks that every source has tables that can be read."""
    for name in ("train", "held_out"):
        sources = getattr(context.config.data, name)
        for key, source in zip(keys_of(f"data.{name}", sources), sources, strict=True):
            with context.guarded(f"{key}.path", "rows"):
                if source.path:
                    places.tables(source)


def source(context: CheckContext, name: Literal["train", "held_out"]) -> None:
    """Reads the first or all rows of ``name``'s sources as a run does; checks that not too many are set aside, and that
    every stage has questions, if their number is known: all rows were read or its most is set."""
    config, sources, where = context.config, getattr(context.config.data, name), f"data.{name}"
    most = getattr(config.data, f"{name}_rows")
    spool, models = context.scratch / f"{name}.spool", list(context.folders.values())
    loaded = inputs.load_source(config, name, models, spool, 1.0, None if context.all_rows else FIRST)
    more = any(one.more for one in loaded.sources)
    context.loaded[name] = loaded
    kinds = Counter(problem.kind for problem in loaded)
    if name == "train" and not more:
        context.digest = inputs.digest_of(loaded)
    for one in loaded.sources:
        read = one.taken + one.set_aside
        looked = f"the first {FIRST} questions" if one.more else f"all {read} questions"
        say(f"{where}  {looked} of {one.path}: {one.taken} can be used")
    if len(kinds) > 1:
        say(f"  most frequent kinds: {', '.join(f'{kind} {count}' for kind, count in kinds.most_common(8))}")
    aside = [f"set aside: {told}" for told in data.reasons(loaded.rejected)]
    for told in (*loaded.mended, *loaded.remarks, *aside):
        say(f"  {told}")
    if more:
        context.not_checked.append(f"rows after the first {FIRST} of each source in {where} were not looked at (--all)")
    elif (asked := most or sum(one.rows or 0 for one in sources)) > loaded.accepted:
        say(f"  {asked} questions are asked for in {where}: all {loaded.accepted} are taken")
    data.refuse_too_many(loaded, config.data.max_quarantined_share)
    questions = most or (sources[0].rows if len(sources) == 1 else None) if more else len(loaded)
    if name == "train" and questions is not None:
        with context.guarded("schedule", "questions for every stage"):
            inputs.plan(config, questions)
    if name == "train" and (fraction := config.rollout.online_fraction):
        online = itertools.islice((n for n in itertools.count(1) if schedule.is_online(n, fraction)), 12)
        say(f"online iterations: {', '.join(map(str, online))}, … ({fraction:.1%} of all)")
    if name == "held_out" and "train" in context.loaded:
        inputs.report_overlap(context.loaded["train"], loaded)
