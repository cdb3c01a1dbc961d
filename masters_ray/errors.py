"""The tree of errors that masters_ray raises on purpose: one class per boundary. All of them pickle (Ray carries them
between processes), keep their cause, and say what was expected and the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SECRETS = (
    # user:password@, with slashes in the password if need be; host:8080/ is none.
    r"([a-z][a-z0-9+.-]*://)[^\s'\"<>/?#:]*:(?!\d*[/?#])(?:[^\s'\"<>/?#]*|[^\s'\"<>?#]*)(?=@)",
    # Under these schemes, a user without a password may be a token or a key.
    r"((?:https?|s3|ftp|gs|gcs)://)(?!anonymous@)[^\s'\"<>/?#]+(?=@)",
    r"([?&;](?:sig|sas|[^\s?&;=]*(?:signature|token|secret|passw|credential|key|auth)[^\s?&;=]*)=)[^\s'\"<>?&;#]+",
)
"""Patterns of credentials in an address, each after a group that is shown."""


def without_secrets(text: str) -> str:
    """Returns the text with … in place of the credentials in its addresses: user, password, tokens, signatures."""
    for secret in _SECRETS:
        text = re.sub(secret, r"\1…", text, flags=re.IGNORECASE)
    return text


class MastersError(Exception):
    """Base of every error that masters_ray raises on purpose."""


@dataclass(frozen=True)
class Complaint:
    """A violated rule of a configuration. where: its key, or a file's name."""

    where: str
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
        head = f"{len(self.complaints)} complaint{'s' if len(self.complaints) > 1 else ''} about the configuration:"
        return "\n".join([head, *(f"  * {complaint}" for complaint in self.complaints)])


class DataError(MastersError):
    """A data source cannot be read, or too many of its rows were set aside."""


class CheckpointError(MastersError):
    """Model weights, tokenizer or processor cannot be used."""


class CheckError(MastersError):
    """A pair of models failed a check that is made before anything is spent on it."""


class StoreError(MastersError):
    """A rollout store, or another file of a run, is missing, incomplete, unusable or made by other settings."""


class DamagedError(StoreError):
    """The content of a rollout store's file differs from what was written."""


class ReplicaError(MastersError):
    """A replica died, failed a call, or could not load its model."""


class ReplicaLostError(ReplicaError):
    """A replica's process died or its engine broke; Ray starts another process in its place."""


class WeightSyncError(ReplicaError):
    """A replica's weights differ from those that the learner sent."""


class WeightsGoneError(ReplicaError):
    """The learner that held a version of the student is gone; a restarted learner publishes new versions."""


class LearnerError(MastersError):
    """Training stopped before its end."""


class UnreadableRowError(LearnerError):
    """The learner cannot make a training sequence of a stored row."""


class SubmitError(MastersError):
    """A Ray job could not be submitted."""


class ClusterError(MastersError):
    """Ray cannot be started on this machine."""


class HarnessError(MastersError):
    """lmms-eval, or its judge, cannot be called, or did not measure what was asked for."""


@contextmanager
def writing(
    what: object, kind: type[MastersError] = StoreError, *others: type[Exception], done: str = "written"
) -> Iterator[None]:
    """Raises ``kind``, naming the file ``what``, for an OSError inside the block (a full disk, for example). others:
    exceptions that libraries raise in place of OSError. done: participle for the message."""
    caught: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except caught as error:
        remedy = "Make room or mend the directory, and call again: what is finished stays."
        raise kind(f"{what}: cannot be {done} ({error}). {remedy}") from error
