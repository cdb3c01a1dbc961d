"""Rules that are broken, collected."""

from __future__ import annotations

from typing import Any

from masters_ray.errors import Complaint


class Rules:
    """Collects those that are broken."""

    def __init__(self) -> None:
        self.broken: list[Complaint] = []

    def rule(self, holds: bool, key: str, expected: str, found: Any, remedy: str) -> None:
        if not holds:
            self.broken.append(Complaint(where=key, expected=expected, found=repr(found), remedy=remedy))

    def at_least(self, key: str, found: float, least: float) -> None:
        self.rule(found >= least, key, f"at least {least}", found, "Raise it.")
