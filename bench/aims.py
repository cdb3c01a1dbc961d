"""What a figure is, and what it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Run = Callable[..., dict[str, Any]]
"""run(part, *arguments): what the function of that name in ``parts`` returns, from a process of its own."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Between ``least`` and ``most``; nothing is asked where both are missing."""

    least: float | None = None
    most: float | None = None
    of: str = ""
    """Which of the numbers beside the value is asked about; none: the value itself."""

    def __str__(self) -> str:
        about = f"{self.of.replace('_', ' ')} " if self.of else ""
        if self.least is not None and self.most is not None:
            return f"{about}{self.least:g} to {self.most:g}"
        if self.least is not None:
            return f"{about}at least {self.least:g}"
        return f"{about}at most {self.most:g}" if self.most is not None else ""

    def met(self, outcome: Outcome) -> bool | None:
        """None: nothing is asked."""
        if self.least is None and self.most is None:
            return None
        value = outcome.also[self.of] if self.of else outcome.value
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One key of the result."""

    says: str
    """What the number is, for people."""
    aim: Aim
    take: Callable[[Run, int], Outcome]
    """take(run, repeats)"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    value: float
    rows: list[dict[str, Any]]
    """What people read: one dictionary per line of the table."""
    raw: Any
    """Every repeat's figures."""
    also: dict[str, float] = field(default_factory=dict)
    """Numbers beside the value that are worth a place of their own."""


def entry(
    says: str, value: float, aim: Aim, rows: list[dict[str, Any]], also: dict[str, float] | None = None
) -> dict[str, Any]:
    """A figure as a result holds it."""
    outcome = Outcome(value=value, rows=rows, raw=None, also=also or {})
    return {"says": says, "value": value, "aim": str(aim), "met": aim.met(outcome), "also": outcome.also, "rows": rows}
