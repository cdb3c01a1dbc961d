"""The directory of a run: the path of each file, and the check that its content belongs to this configuration."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from masters_ray.config import Config, KeyScope, plain, scopes, to_yaml
from masters_ray.errors import Complaint, ConfigError, StoreError, writing
from masters_ray.files import read_record, write_json, write_text
from masters_ray.progress import log_to
from masters_ray.store import Folder

_OTHER_RUN = "Choose another run.dir, set it back, or delete the directory."
_LEARN_ANEW = (
    "Set it back, or choose another run.dir; to learn anew from this run's rollouts, delete all in its directory but "
    "rollouts, evaluation, settings.json and journal.json."
)


class RunDirectory:
    """The paths of a run. Opening an existing directory resumes its run."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError, which lists every differing key, when the directory holds a run with other settings."""
        self.config = config
        self.root = Path(config.run.dir).absolute()
        self.data = self.root / "data"
        self.rollouts = Folder(config.rollout.store or self.root / "rollouts")
        self.learner = self.root / "learner"  # the learner's checkpoints, skipped steps and Ray Train's state
        self.student = self.root / "student"  # the trained student, a Hugging Face directory
        self.students = self.root / "students"  # after stages and steps, with the marks there (evaluation.every)
        self._claim = self.root / "settings.json"
        self._config, self._settings = to_yaml(config), settings_of(config)
        if self._claim.exists() and (complaints := self._differences(read_record(self._claim, dict[str, Any]))):
            raise ConfigError(complaints)

    def _differences(self, claimed: dict[str, Any]) -> list[Complaint]:
        # A key that was introduced after the run began counts as its default.
        earlier, now = settings_of(Config()) | claimed, self._settings
        traces = (self.file("metrics.jsonl"), self.file("skipped.jsonl"), self.student)
        learned = any(trace.exists() for trace in traces) or any((self.learner / "checkpoints").glob("*"))
        free = {KeyScope.RESUMABLE} if learned else {KeyScope.RESUMABLE, KeyScope.LEARNING}
        return [
            Complaint(
                where=key,
                expected=f"{earlier.get(key)!r}, as in the run that {self.root} holds",
                found=repr(now.get(key)),
                remedy=_LEARN_ANEW if KeyScope.LEARNING in scopes(key) else _OTHER_RUN,
            )
            for key in sorted(now.keys() | earlier.keys())
            if not scopes(key) & free and not _means_the_same(now.get(key), earlier.get(key))
        ]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for the block, and has what is printed from now on written to its run.log. Raises
        StoreError when another process holds the lock."""
        file = self.root / "lock"
        with writing(file):
            self.root.mkdir(parents=True, exist_ok=True)
            opened = file.open("a+")
        with opened as lock:
            self._take(lock)
            with writing(file):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}")
                lock.flush()
            log_to(self.file("run.log"))
            yield

    def look_at_lock(self) -> None:
        """Raises StoreError when another process holds the lock; creates no file."""
        if (self.root / "lock").exists():
            with (self.root / "lock").open() as lock:
                self._take(lock)

    def _take(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StoreError(
                f"{self.root}: another process works here ({lock.read() or 'unknown'}). Wait for it, stop it, or "
                "choose another run.dir."
            ) from None

    def claim(self) -> None:
        """Binds the directory to this configuration. Called once the engines have started, so that a run that could not
        start leaves its settings free to be changed."""
        write_json(self._claim, self._settings)
        write_text(self.root / "config.yaml", self._config)

    @property
    def finished(self) -> bool:
        """Whether the run is complete: its summary is written last."""
        return self.file("summary.json").exists()

    @property
    def owner_of_rollouts(self) -> Path | None:
        """The directory of the other run whose rollouts this run uses, or None."""
        if not self.rollouts.on_disk:
            return None
        owner = Path(self.rollouts.path("")).parent
        return owner if owner.resolve() != self.root.resolve() and (owner / self._claim.name).exists() else None

    def stage(self, index: int) -> Folder:
        """Returns the store of a stage's rollouts."""
        return self.rollouts / f"stage-{index}"

    def online(self, index: int) -> Folder:
        """Returns the store of a stage's online iterations, always inside the run's directory (not rollout.store)."""
        return Folder(self.root / "online" / f"stage-{index}")

    def evaluation(self, name: str) -> Path:
        return self.root / "evaluation" / f"{name}.json"

    def student_after(self, stage: int) -> Path:
        """Returns the path of the student after learning stages 0 to ``stage`` (rollout.student_refresh=stage)."""
        return self.students / f"stage-{stage}"

    def file(self, name: str) -> Path:
        return self.root / name


def settings_of(config: Config) -> dict[str, Any]:
    """Returns dotted key → value of every setting that decides a run's outcome."""
    settings = flattened(plain(config))
    settings.pop("run.dir")
    return {key: value for key, value in settings.items() if KeyScope.RESUMABLE not in scopes(key)}


def holds_rollouts_of(one: Config, other: Config) -> bool:
    """Returns whether the rollouts before training of ``one`` include those of ``other``, and the accuracies of its
    untrained models are those of ``other``: whatever is learned, unless the student answers anew at every stage."""
    free = set() if one.rollout.student_refresh == "stage" else {KeyScope.LEARNING, KeyScope.LATER}
    has_all_rows = one.rollout.online_fraction == 0 or one.rollout.spare_rows
    bound = set() if has_all_rows else {"rollout.online_fraction", "rollout.spare_rows", "learner.groups_per_step"}
    settings, others = (
        {key: value for key, value in settings_of(each).items() if key in bound or not scopes(key) & free}
        for each in (one, other)
    )
    return settings == others


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key → value of nested mappings and lists of them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            flat[f"{prefix}{key}"] = len(value)
            for number, one in enumerate(value):
                flat |= flattened(one, f"{prefix}{key}[{number}].")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _means_the_same(value: Any, other: Any) -> bool:
    """Equal, or a path and the same path made whole by ``submit``: digests tell data and checkpoints apart anyway."""
    if value == other or not (isinstance(value, str) and isinstance(other, str)):
        return bool(value == other)
    short, whole = sorted((value, other), key=len)
    return Path(whole).is_absolute() and whole.endswith(f"/{os.path.normpath(short)}")
