"""What checks look at, and what they may say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from masters_ray.config import Config
from masters_ray.data import Loaded
from masters_ray.errors import Complaint


class Unseen(str):
    """What was not looked at, and why: told beside the result."""


Findings = Iterator[Complaint | str]
"""Complaints, remarks, and what is Unseen."""


@dataclass(kw_only=True)
class Look:
    """A configuration, and what checks found that later ones use."""

    config: Config
    whole: bool = False
    """At all rows, not the first ones alone."""
    complaints: list[Complaint] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    """Keys that the first complaints are about."""
    scratch: Path = Path()
    """A directory for this look."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Key of ``config.models`` → the directory of a checkpoint that is here and whole."""
    loaded: dict[str, Loaded] = field(default_factory=dict)
    """"train" and "held_out", if their rows were looked at."""
    more: set[str] = field(default_factory=set)
    """Those that have rows that were not."""

    @property
    def models(self) -> dict[str, Path]:
        """``folders`` without the checkpoints that were complained of."""
        return {name: folder for name, folder in self.folders.items() if f"{name}.checkpoint" not in self.wrong}

    @property
    def questions(self) -> int | None:
        """How many training questions the run would have; None when that is not known."""
        if "train" not in self.loaded:
            return None
        return self.config.data.train.rows if "train" in self.more else len(self.loaded["train"].problems)

    def keys(self) -> set[str]:
        """Those that were complained of."""
        return {complaint.where.split(" (")[0] for complaint in self.complaints}

    def sound(self, *beginnings: str) -> bool:
        return not any(key.startswith(beginnings) for key in self.wrong)


def told(where: str, expected: str, error: Exception, remedy: str = "") -> Complaint:
    """An error's words as a complaint."""
    return Complaint(where, expected, str(error).rstrip("."), remedy)
