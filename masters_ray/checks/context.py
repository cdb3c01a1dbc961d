"""The input and output of checks: CheckContext, Findings, NotChecked."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from masters_ray.config import Config
from masters_ray.data import Problems
from masters_ray.errors import Complaint, ConfigError, MastersError
from masters_ray.pipeline.run_dir import RunDirectory


class NotChecked(str):
    """What a check left out, and why; ``validate`` returns it."""


Findings = Iterator[Complaint | str]
"""Complaints; texts are remarks, or NotChecked."""


@dataclass(kw_only=True)
class CheckContext:
    """A configuration, and findings that earlier checks leave for later ones."""

    config: Config
    complaints: list[Complaint]
    not_checked: list[str] = field(default_factory=list)
    all_rows: bool = False
    """Read all rows of the data, not only the first 200."""
    scratch: Path = Path()
    """Directory for temporary files."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Key of ``config.models`` → directory of its checkpoint, if that is complete and on this machine."""
    directory: RunDirectory | None = None
    """The run's directory, if it can be opened."""
    loaded: dict[str, Problems] = field(default_factory=dict)
    """Source ("train", "held_out") → its rows, if they could be read."""
    questions: int | None = None
    """Number of training questions of the run; None: not known."""
    digest: str | None = None
    """Digest of the training questions; None: not all rows were read."""


def guarded(where: str, expected: str, findings: Findings, *others: type[Exception]) -> Findings:
    """Yields the findings. Turns a MastersError, an OSError, or an exception of ``others``, into a complaint about
    ``where``, and a missing package into NotChecked."""
    caught: tuple[type[Exception], ...] = (MastersError, OSError, *others)
    try:
        yield from findings
    except ConfigError as error:
        yield from error.complaints
    except ImportError as error:
        yield NotChecked(f"{where}: not looked at, since {str(error.name).partition('.')[0]} is not installed here")
    except caught as error:
        said = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
        yield Complaint(where, expected, said.rstrip("."))
