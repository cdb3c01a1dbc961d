"""Every error that masters_ray raises on purpose, one class for each boundary at which something can go wrong.

All of them pickle (Ray carries them between processes), keep their cause, and say what was expected and how to mend it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)([^\s'\"<>]+)", re.IGNORECASE)
_SECRET = re.compile(
    r"([?&;](?:sig|sas|[^?&;=]*(?:signature|token|secret|passw|credential|key|auth)[^?&;=]*)=)[^?&;#]+", re.IGNORECASE
)
_NAMED_USERS = ("http://", "https://", "s3://", "ftp://", "gs://", "gcs://")
"""Where a user's name alone gives access."""


def without_secrets(text: str) -> str:
    """A text with … in place of what gives access in its addresses: user and password, tokens, signatures."""
    return _ADDRESS.sub(lambda found: found[1] + _without_secret(found[1].lower(), found[2]), text)


def _without_secret(scheme: str, rest: str) -> str:
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    _, colon, port = authority.partition(":")
    if at and user != "anonymous" and (":" in user or scheme in _NAMED_USERS):
        rest = "…@" + rest[len(user) + 1 :]
    elif not at and colon and not port.isdigit() and "@" in rest:  # a password with a slash
        rest = "…@" + rest.rpartition("@")[2]
    return _SECRET.sub(r"\1…", rest)


class MastersError(Exception):
    """Base of every error raised on purpose."""


@dataclass(frozen=True)
class Complaint:
    """One violated rule of a configuration."""

    where: str
    """Key of the configuration or name of a file."""
    expected: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return without_secrets(f"{self.where}: expected {self.expected}, found {self.found}. {self.remedy}".rstrip())


class ConfigError(MastersError):
    """A configuration that breaks one or more rules."""

    def __init__(self, complaints: list[Complaint]) -> None:
        super().__init__(complaints)
        self.complaints = complaints

    def __str__(self) -> str:
        count = len(self.complaints)
        head = f"{count} complaint{'s' if count > 1 else ''} about the configuration:"
        return "\n".join([head, *(f"  * {complaint}" for complaint in self.complaints)])


class DataError(MastersError):
    """A source that cannot be read, or too many rows set aside."""


class CheckpointError(MastersError):
    """Model weights, tokenizer or processor that cannot be used."""


class StoreError(MastersError):
    """A rollout store that is missing, incomplete or made by other settings."""


class DamagedError(StoreError):
    """A file of a rollout store that is not as it was written."""


class ReplicaError(MastersError):
    """An actor that died or answered wrongly."""


class ReplicaLostError(ReplicaError):
    """A process that is gone, or whose engine broke; another one takes its place."""


class WeightSyncError(ReplicaError):
    """A replica's weights are not those that the learner sent."""


class WeightsGoneError(ReplicaError):
    """The learner that had a version of the student is gone; one that goes on will hand out others."""


class LearnerError(MastersError):
    """Training that stopped before its end."""


class UnreadableRowError(LearnerError):
    """A stored row that no sequence can be made of."""

    def __init__(self, row: str, stage: int, position: int, reason: str) -> None:
        """row: its question's id."""
        super().__init__(row, stage, position, reason)
        self.row, self.stage, self.position, self.reason = row, stage, position, reason

    def __str__(self) -> str:
        return f"{self.row} (stage {self.stage}, position {self.position}): {self.reason}"


class SubmitError(MastersError):
    """A Ray job that could not be handed over."""


class ClusterError(MastersError):
    """A Ray that cannot be started on this machine."""


@contextmanager
def writing(
    what: object, kind: type[MastersError] = StoreError, *others: type[Exception], done: str = "written"
) -> Iterator[None]:
    """What the system says inside the block, of a full disk for one, becomes a ``kind`` that names the file. others:
    what libraries raise in place of OSError. done: what is done there."""
    caught: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except caught as error:
        raise kind(
            f"{what}: cannot be {done} ({error}). Make room or mend the directory, and call again: what is finished "
            "stays."
        ) from error
