"""What a run's parts take, measured in the run's directory or given by hand in a file (``rates.json``)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from masters_ray.errors import StoreError
from masters_ray.files import read_lines, write_json
from masters_ray.records import OnlineStep, StepMetrics

T = TypeVar("T")

_BY_HAND = "Mend the file; the fields of Rates in masters_ray/plan/rates.py are its keys."
_ANEW = "Name a run with rollout.online_fraction above 0, or a rates.json (--rates)."

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
_CallName = Annotated[str, Field(pattern=r"^(teacher|student|judge|reference)\.\w+$")]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Costs of a run's parts; a ``rates.json`` has these names as keys."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    learner_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    """Median of an optimizer step, without waiting."""
    publish_seconds: _Seconds
    """That the learner spends on handing out a version of its weights: median over the versions."""
    load_seconds: _Seconds
    """Until all replicas of the student hold a version: median over the versions."""
    start_seconds: _Seconds | None
    """What the learner's phase takes beside steps, waiting and publishing; None: not known, it still lasts."""
    calls: Annotated[dict[_CallName, _Seconds], Field(min_length=1)]
    """Pool and method ("teacher.answer") → seconds of a replica for each question, in the order in which a batch makes
    the calls; those of one method that follow one another are made at once."""
    overlap: Annotated[float, Field(ge=0, le=1)] | None = None
    """Fraction of the measured rollouts' seconds in which the learner did not wait for them; None: not known."""

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Of a rates.json, or as ``measured``. Raises StoreError, which names file and key."""
        return _read(Rates, path, _BY_HAND) if path.suffix == ".json" else measured(path)

    def save(self, path: Path) -> None:
        """Whole or not at all; an existing file is replaced."""
        write_json(path, dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class _JournalPart:
    phases: dict[str, float]


def measured(run_dir: Path) -> Rates:
    """The rates of a run that has ended or goes on. Raises StoreError, which names file and remedy, when a file or one
    of its fields is missing, when no iteration was online, and when there is no step but the first, which warms up and
    does not count.

    A call's seconds are the wall's while it was under way: what its cores did beside it is in them, and so are calls
    that shared its replica, which a forecast counts anew. Measure with one batch under way, or the rates are too high.
    """
    # A step that was taken again after a restart counts once, as it was taken last.
    online = {line.step: line for line in _read_rows(OnlineStep, run_dir / "online.jsonl")}
    steps = {line.step: line for line in _read_rows(StepMetrics, run_dir / "metrics.jsonl")}
    calls, questions = Counter[str](), Counter[str]()
    for line in online.values():
        calls.update({name: sums["seconds"] for name, sums in line.calls.items()})
        questions.update({name: sums["questions"] for name, sums in line.calls.items()})
    if not any(questions.values()):
        raise StoreError(f"{run_dir / 'online.jsonl'}: expected an online iteration with calls, found none. {_ANEW}")
    if len(steps) < 2:
        expected = "at least two optimizer steps, the first of which warms up"
        raise StoreError(f"{run_dir / 'metrics.jsonl'}: expected {expected}, found {len(steps)}. Let the run go on.")
    phases = _read(_JournalPart, run_dir / "journal.json", _ANEW).phases
    # Version 0 is what the engines start with: its costs count only when there is no other.
    handed_out = [line for line in online.values() if line.version > 0] or list(online.values())
    publishing = {line.version: line.publish_seconds for line in online.values()}
    spent = sum(line.seconds + line.waited for line in steps.values()) + sum(publishing.values())
    taken = online.keys() & steps.keys()
    made, waited = sum(online[number].seconds for number in taken), sum(steps[number].waited for number in taken)
    return Rates(
        learner_seconds=median(steps[number].seconds for number in sorted(steps)[1:]),
        publish_seconds=median(line.publish_seconds for line in handed_out),
        load_seconds=median(line.load_seconds for line in handed_out),
        start_seconds=max(0.0, phases["learner"] - spent) if "learner" in phases else None,
        calls={name: calls[name] / count for name, count in questions.items() if count},
        overlap=max(0.0, 1 - waited / made) if made else None,
    )


def _read(kind: type[T], file: Path, remedy: str) -> T:
    return _checked(TypeAdapter(kind).validate_json, file.read_bytes(), str(file), remedy)


def _read_rows(kind: type[T], file: Path) -> list[T]:
    check = TypeAdapter(kind).validate_python
    return [_checked(check, row, f"{file}: line {number}", _ANEW) for number, row in enumerate(read_lines(file), 1)]


def _checked(check: Callable[[Any], T], content: Any, place: str, remedy: str) -> T:
    try:
        return check(content)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r:.80}" for one in error.errors())
        raise StoreError(f"{place}: {'; '.join(told)}. {remedy}") from error
