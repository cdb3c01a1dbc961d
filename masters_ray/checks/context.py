"""CheckContext: what a check reads, and where it leaves what it found."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from masters_ray.config import Config
from masters_ray.data import Problems
from masters_ray.errors import Complaint, ConfigError, MastersError
from masters_ray.pipeline.run_dir import RunDirectory


@dataclass(kw_only=True)
class CheckContext:
    """A configuration, what is said of it, and findings that earlier checks leave for later ones."""

    config: Config
    complaints: list[Complaint]
    not_checked: list[str] = field(default_factory=list)  # what checks left out, and why
    all_rows: bool = False  # read all rows of the data, not only the first 200
    scratch: Path = Path()
    folders: dict[str, Path] = field(default_factory=dict)
    """Key of ``config.models`` → directory of its checkpoint, if that is complete and on this machine."""
    directory: RunDirectory | None = None  # the run's directory, if it can be opened
    loaded: dict[str, Problems] = field(default_factory=dict)
    """Source ("train", "held_out") → its rows, if they could be read."""
    digest: str | None = None  # digest of the training questions; None: not all rows were read

    def complain(self, where: str, expected: str, found: str, remedy: str = "") -> None:
        """Adds a complaint, unless there is one about this key or a key in this section: then it is a consequence."""
        if not any(one.where.startswith(where) for one in self.complaints):
            self.complaints.append(Complaint(where, expected, found, remedy))

    @contextmanager
    def guarded(self, where: str, expected: str, *others: type[Exception]) -> Iterator[None]:
        """Ends the block at a MastersError, an OSError or an exception of ``others``, which becomes a complaint about
        ``where``, and at a missing package, which is noted in ``not_checked``."""
        caught: tuple[type[Exception], ...] = (MastersError, OSError, *others)
        try:
            yield
        except ConfigError as error:
            for one in error.complaints:
                self.complain(**vars(one))
        except ImportError as error:
            package = str(error.name).partition(".")[0]
            self.not_checked.append(f"{where}: not looked at, since {package} is not installed here")
        except caught as error:
            said = str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"
            self.complain(where, expected, said.rstrip("."))
