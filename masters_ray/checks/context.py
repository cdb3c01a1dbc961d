"""What checks get, and what they yield."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from masters_ray.config import Config
from masters_ray.data import Loaded
from masters_ray.errors import Complaint


class NotChecked(str):
    """What a check could not look at, and why: part of ``validate``'s result."""


Findings = Iterator[Complaint | str]
"""Complaints, remarks, and NotChecked."""


@dataclass(kw_only=True)
class CheckContext:
    """A configuration, and what earlier checks found that later ones use."""

    config: Config
    all_rows: bool = False
    """Read all rows of the data, not the first ones."""
    complaints: list[Complaint] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    complained: set[str] = field(default_factory=set)
    """Keys of the complaints of the first table."""
    scratch: Path = Path()
    """A directory for temporary files."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Key of ``config.models`` → directory of its checkpoint, if that is on this machine and complete."""
    loaded: dict[str, Loaded] = field(default_factory=dict)
    """"train" and "held_out" → their rows, if they could be read."""
    partial: set[str] = field(default_factory=set)
    """Those of which only the first rows were read."""

    @property
    def models(self) -> dict[str, Path]:
        """``folders`` without the checkpoints that have complaints."""
        return {name: folder for name, folder in self.folders.items() if f"{name}.checkpoint" not in self.complained}

    @property
    def questions(self) -> int | None:
        """Training questions of the run; None when the number is not known."""
        if "train" not in self.loaded:
            return None
        return self.config.data.train.rows if "train" in self.partial else len(self.loaded["train"].problems)

    def keys(self) -> set[str]:
        """Keys that have complaints."""
        return {complaint.where.split(" (")[0] for complaint in self.complaints}

    def clean(self, *prefixes: str) -> bool:
        """Whether no key with such a prefix has complaints."""
        return not any(key.startswith(prefixes) for key in self.complained)


def from_error(where: str, expected: str, error: Exception, remedy: str = "") -> Complaint:
    """An error's words as a complaint."""
    return Complaint(where, expected, str(error).rstrip("."), remedy)
