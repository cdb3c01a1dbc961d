"""What the schema says of a field beside its default: its bounds, and what a change of its value leaves valid."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WrapValidator
from pydantic_core import PydanticCustomError

from masters_ray.errors import without_secrets

MISSING = "???"
"""Default of a text that must be given."""


class Written(str):
    """A text from elsewhere (``${oc.env:…}``): used as it is there, shown as the configuration has it."""

    written: str

    def __new__(cls, text: str, written: str) -> Written:
        found = super().__new__(cls, text)
        found.written = written
        return found

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.written

    def __repr__(self) -> str:
        return repr(self.written)


def as_written(value: Any) -> Any:
    """A value, or mappings and lists of values, with what was written in place of what that stands for."""
    if isinstance(value, dict):
        return {key: as_written(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_written(one) for one in value]
    return value.written if isinstance(value, Written) else value


def joined(folder: str, name: str) -> str:
    """A path in a directory, which may be ``Written``."""
    path = str(Path(folder) / name)
    return Written(path, f"{folder.written}/{name}") if isinstance(folder, Written) else path


class KeyScope(Enum):
    """What a key decides, and so what stays valid when it changes. A section's holds for all keys in it."""

    RESUMABLE = auto()
    """Where and how work is done, not what it is: may change between two calls of the same run."""
    LEARNING = auto()
    """How the student learns; no rollout depends on it: may change until the learner has taken a step."""
    LATER = auto()
    """What happens once training has begun: rows made before do not depend on it."""


class ConfigSection:
    """Base of the schema's dataclasses: how pydantic checks them."""

    __pydantic_config__: ClassVar = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_default=True, revalidate_instances="always"
    )


def refusal(expected: str, remedy: str = "") -> PydanticCustomError:
    """For a validator to raise: the complaint says these words."""
    return PydanticCustomError("refused", "{expected}", {"expected": expected, "remedy": remedy})


def only(holds: Callable[[Any], bool], expected: str, remedy: str = "") -> AfterValidator:
    """Refuses a value that ``holds`` denies, in these words."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise refusal(expected, remedy)
        return value

    return AfterValidator(check)


def _whole(value: Any) -> Any:
    """1e5, 2.0 and 0x10 are whole numbers too; 010, which YAML takes for 8, is none."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if set(".eE") & set(value) else int(value, 0)
    except ValueError as error:
        raise refusal("a whole number") from error


Int = Annotated[int, BeforeValidator(_whole)]
NonNegativeInt = Annotated[Int, Field(ge=0)]
PositiveInt = Annotated[Int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction of a whole."""
MaskRatio = Annotated[float, Field(ge=0, lt=1)]
"""A fraction of each masked matrix."""

_ONE_SLASH = re.compile("(s3|gs|gcs|abfss?|hdfs|file|https?):/(?!/)", re.IGNORECASE)
_ENVIRONMENT = "Leave them to the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY …) or to the machine's role."
Text = Annotated[
    str,
    WrapValidator(lambda value, check: value if isinstance(value, Written) else check(value)),
    only(lambda text: text != MISSING, "a value"),
    only(lambda text: without_secrets(text) == text, "an address without credentials", _ENVIRONMENT),
]
"""It is written to the run's files, so that no address may give access by itself."""
Place = Annotated[
    Text,
    only(lambda place: not place.startswith("~"), "a path without ~", "Write the whole path, or $HOME."),
    only(lambda place: not _ONE_SLASH.match(place), "an address with two slashes, or a path", "Write ://."),
]
"""A path or an address. Nobody but a shell knows what ~ is, and an address with one slash is a directory's name."""
_NO_PATTERN = ("a path without *, ? and [, which vLLM reads as a pattern", "Choose or link another directory.")
Directory = Annotated[Place, only(lambda path: not set("*?[") & set(str(Path(path).absolute())), *_NO_PATTERN)]
Checkpoint = Annotated[
    Place,
    only(
        lambda name: not set("*?[") & set(str(Path(name).absolute()) if os.path.lexists(name) else name), *_NO_PATTERN
    ),
]
"""A directory with weights, or a name on the Hub where there is no such directory."""
