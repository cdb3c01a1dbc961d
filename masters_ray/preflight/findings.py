"""What a check found, and what each check is for (templates/checks.yaml)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from masters_ray.errors import CheckError

Verdict = Literal["passed", "failed", "not done"]


class About(NamedTuple):
    what: str  # what it looks at, after "expected that"
    why: str  # why that matters
    remedy: str = ""


_FILE = Path(__file__).parent / "templates" / "checks.yaml"
ABOUT = {name: About(**told) for name, told in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()}
"""Name of a check → what it is for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    name: str
    verdict: Verdict
    figure: str  # what was measured, in words
    remedy: str = ""


def passed(name: str, figure: str) -> Finding:
    return Finding(name=name, verdict="passed", figure=figure)


def judged(name: str, good: bool, figure: str, remedy: str = "") -> Finding:
    """Returns a Finding that passed or failed; the remedy, by default the check's usual one, is for the latter."""
    if good:
        return passed(name, figure)
    return Finding(name=name, verdict="failed", figure=figure, remedy=remedy or ABOUT[name].remedy)


def refuse_failed(findings: Sequence[Finding]) -> None:
    """Raises CheckError with every failed check: what it looks at, what it found, why it matters, the remedy."""
    failed = [one for one in findings if one.verdict == "failed"]
    if failed:
        told = [f"{one.name}: expected that {ABOUT[one.name].what}. {one.figure}. {one.remedy}" for one in failed]
        skip = " ".join(f"--skip {one.name}" for one in failed)
        raise CheckError("\n  ".join([f"{len(failed)} checks of this pair failed ({skip} goes on without):", *told]))
