"""A look at a run's data: rows, kinds, and what would be set aside."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masters_ray import data
from masters_ray.config import Config, DataSource
from masters_ray.data import sources
from masters_ray.data.scalars import cut
from masters_ray.errors import Complaint, DataError
from masters_ray.pipeline import inputs
from masters_ray.progress import say
from masters_ray.records import Problem, Rejected

FIRST = 200
"""Rows of a source that are looked at unless all are."""
_REASONS = 6
"""Reasons that are shown."""
_KINDS = 8
_REASON = 300
"""Characters of a reason."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A source whose rows were looked at."""

    name: str
    """"train" or "held_out"."""
    source: DataSource
    loaded: data.Loaded
    more: bool
    """It has rows that were not looked at."""

    @property
    def problems(self) -> Sequence[Problem]:
        return self.loaded.problems

    @property
    def questions(self) -> int | None:
        """How many the run would have; None when that is not known."""
        return self.source.rows if self.more else len(self.problems)


def look(
    config: Config, name: str, models: Sequence[Path], scratch: Path, *, whole: bool
) -> tuple[Seen | None, list[Complaint]]:
    """Read a source as a run does, its first rows or all, and say what it holds. Complains when none can be used or
    more are set aside than conf allows."""
    source: DataSource = getattr(config.data, name)
    try:
        more = not whole and _has_more(source)
        loaded = inputs.load_source(config, source, models, scratch / f"{name}.arrow", 1.0, FIRST if more else None)
    except DataError as error:
        return None, [_complaint(name, error)]
    seen = Seen(name=name, source=source, loaded=loaded, more=more)
    accepted = loaded.problems.note.accepted
    looked = f"the first {FIRST} rows" if more else f"all {accepted + len(loaded.rejected)} rows"
    say(f"data.{name}  {looked} of {source.path}: {accepted} questions{_kinds(loaded.problems)}")
    for change, count in sorted(loaded.changes.items()):
        say(f"  pictures: {count} {data.CHANGES[change]}")
    for remark in loaded.remarks:
        say(f"  {remark}")
    for line in _reasons(loaded.rejected):
        say(f"  set aside: {line}")
    if not more and source.rows is not None and source.rows > accepted:
        say(f"  data.{name}.rows asks for {source.rows}: all {accepted} are taken")
    try:
        data.refuse_too_many(source, loaded.rejected, accepted, config.data.max_quarantined_share, loaded.unused)
    except DataError as error:
        return seen, [_complaint(name, error, "masters-ray validate --all looks at every row." if more else "")]
    return seen, []


def _has_more(source: DataSource) -> bool:
    """Whether there are more than the first rows."""
    return next(itertools.islice(sources.rows(source), FIRST, None), None) is not None


def _complaint(name: str, error: DataError, remedy: str = "") -> Complaint:
    return Complaint(where=f"data.{name}", expected="questions", found=str(error).rstrip("."), remedy=remedy)


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
