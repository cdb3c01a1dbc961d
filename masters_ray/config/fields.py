"""Types of the schema's fields: bounds, forms of paths, and ``KeyScope``: what stays valid when a value changes."""

import os
import re
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WrapValidator

from masters_ray.errors import without_secrets

MISSING = "???"
"""Default of a required key."""


class Written(str):
    """A resolved interpolation, such as ``/home/me``; ``written`` and ``repr`` keep the source ``${oc.env:HOME}``."""

    written: str

    def __new__(cls, text: str, written: str = "") -> Self:  # pickle sets ``written`` afterwards
        found = super().__new__(cls, text)
        found.written = written
        return found

    def __repr__(self) -> str:
        return repr(self.written)


def as_written(value: Any) -> Any:
    """Returns a value, or nested mappings and lists, with ``written`` in place of each ``Written`` text."""
    if isinstance(value, dict):
        return {key: as_written(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_written(one) for one in value]
    return value.written if isinstance(value, Written) else value


class KeyScope(Enum):
    """When a key may change in a run that has begun. A section's scope holds for all keys in it."""

    RESUMABLE = auto()
    """Decides where and how work is done, not its result: may change between two calls of the same run."""
    LEARNING = auto()
    """Decides how the student learns; no rollout depends on it: may change until the learner has taken a step."""
    LATER = auto()
    """Decides what happens once training has begun; rows made before training do not depend on it."""


class ConfigSection:
    """Base of the schema's dataclasses: forbids unknown keys and non-finite numbers, checks defaults too."""

    __pydantic_config__: ClassVar = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_default=True, revalidate_instances="always"
    )


def only(holds: Callable[[Any], bool], expected: str) -> AfterValidator:
    """Returns a validator that refuses a value for which ``holds`` is false, in these words."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]


def seconds_of(duration: str) -> int:
    """Returns the seconds of a text such as 60s, 90m or 11h30m; 0 for any other text."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", duration)
    return sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0


Duration = Annotated[str, only(lambda text: seconds_of(text) > 0, "a duration such as 60s, 90m or 11h30m")]
Every = Annotated[str, only(lambda text: bool(re.fullmatch("stage|0*[1-9][0-9]*", text)), "steps such as 50, or stage")]
ONE_OR_MORE = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
"""Marks a list that may be written as its only element."""

_ONE_SLASH = re.compile("(s3|gs|gcs|abfss?|hdfs|file|https?):/(?!/)", re.IGNORECASE)
Place = Annotated[
    str,
    WrapValidator(lambda value, check: value if isinstance(value, Written) else check(value)),
    only(lambda place: place != MISSING, "a value"),
    only(lambda place: without_secrets(place) == place, "an address without credentials (the environment has them)"),
    only(lambda place: not place.startswith("~"), "a path without ~, which only a shell expands (or write $HOME)"),
    only(lambda place: not _ONE_SLASH.match(place), "an address with two slashes, or a path"),
]
"""A path or an address, without credentials, since it is written to the run's files."""
_NO_PATTERN = "a path without *, ? and [, which vLLM reads as a pattern"
Directory = Annotated[Place, only(lambda path: not set("*?[") & set(path and str(Path(path).absolute())), _NO_PATTERN)]
Checkpoint = Annotated[
    Place,
    only(lambda name: not set("*?[") & set(str(Path(name).absolute()) if os.path.lexists(name) else name), _NO_PATTERN),
]
"""A directory with weights, or a model id of the Hub if there is no directory of that name."""
