"""What checks get, and what they yield."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from masters_ray.config import Config
from masters_ray.data import Loaded
from masters_ray.errors import Complaint, ConfigError, MastersError


class NotChecked(str):
    """What a check could not look at, and why: part of ``validate``'s result."""


Findings = Iterator[Complaint | str]
"""Complaints, remarks, and NotChecked."""


@dataclass(kw_only=True)
class CheckContext:
    """A configuration, and what earlier checks found that later ones use."""

    config: Config
    complaints: list[Complaint]
    not_checked: list[str] = field(default_factory=list)
    all_rows: bool = False
    """Read all rows of the data, not the first ones."""
    scratch: Path = Path()
    """A directory for temporary files."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Key of ``config.models`` → directory of its checkpoint, if that is on this machine and complete."""
    loaded: dict[str, Loaded] = field(default_factory=dict)
    """"train" and "held_out" → their rows, if they could be read."""
    questions: int | None = None
    """Training questions of the run; None when the number is not known."""


def guarded(where: str, expected: str, findings: Findings, *others: type[Exception]) -> Findings:
    """The findings; an error of masters_ray, or one of others, becomes a complaint about ``where``, and a package that
    is missing NotChecked."""
    try:
        yield from findings
    except ConfigError as error:
        yield from error.complaints
    except MastersError as error:
        yield Complaint(where, expected, str(error).rstrip("."))
    except ImportError as error:
        yield NotChecked(f"{where}: not looked at, since {str(error.name).partition('.')[0]} is not installed here")
    except others as error:
        yield Complaint(where, expected, f"{type(error).__name__}: {error}".rstrip("."))
