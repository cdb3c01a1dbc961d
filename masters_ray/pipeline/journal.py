"""Records a run's history in its directory: seconds by phase, optimizer steps, rewards."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from masters_ray.errors import writing
from masters_ray.files import append_lines, read_lines, read_object, write_json, write_text
from masters_ray.learner.job import GroupRewards, LearnerReport
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.records import LeftOut, Rejected, SkippedStep, StepMetrics


class Journal:
    """Records each call of a run after earlier calls, in the run's files and in TensorBoard's event files."""

    def __init__(self, directory: RunDirectory, config_file: str) -> None:
        self._directory = directory
        self._file = directory.file("journal.json")
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self.content: dict[str, Any] = {
            "started": started,
            "config_file": config_file,
            "phases": {},
            "wall_seconds": 0.0,
        }
        if self._file.exists():
            self.content |= read_object(self._file)
        self._metrics = _Steps(directory.file("metrics.jsonl"))
        self._skipped = _Steps(directory.file("skipped.jsonl"))
        self._left_out = _Steps(directory.file("left_out.jsonl"))
        self._rewards = _Steps(directory.file("rewards.jsonl"))
        self._before, self._began = self.content["wall_seconds"], time.monotonic()
        self._events: Any = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        """Saves this call's wall time, also when the call was interrupted."""
        self._save()
        if self._events is not None:
            with writing(self._directory.tensorboard):
                self._events.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to the phase ``name``."""
        began = time.monotonic()
        try:
            yield
        finally:
            phases = self.content["phases"]
            phases[name] = phases.get(name, 0.0) + time.monotonic() - began
            self._save()

    def note(self, name: str, value: str) -> None:
        """Records a fact about the run; a later call of the run overwrites it."""
        self.content[name] = value
        self._save()

    def steps_done(self) -> int:
        """Returns the number of optimizer steps recorded so far, skipped steps included."""
        return len(self._metrics.steps | self._skipped.steps)

    def take(self, news: LearnerReport, advance: Callable[..., None]) -> None:
        """Records and prints the learner's news. advance: called with the number of new steps, and a note."""
        for note in news.notes:
            say(note)
        for one in news.agreements:
            self.content.setdefault("agreement", {})[str(one.stage)] = dataclasses.asdict(one)
            self._save()
        for new in news.steps:
            if self.record(new, news.rewards.get(new.step, ())):
                advance(1, f"JSD {new.jsd:.4f}  reward {new.accuracy_reward:.2f}")
        for left_out in news.left_out:
            self.record_left_out(left_out)
            for row in left_out.rows:
                say(f"step {left_out.step} goes on without {row.row}: {row.reason}")
        for skipped in news.skipped:
            advance(self.record_skipped(skipped))
            where = f". Its rows are in {skipped.saved}" if skipped.saved else ""
            say(f"step {skipped.step} is skipped: {skipped.reason}{where}")

    def record(self, metrics: StepMetrics, rewards: Sequence[GroupRewards] = ()) -> int:
        """Records an optimizer step and the rewards of some of its groups, for the report. A step repeated after a
        restart replaces its first record, even if the step was skipped then: late answers may have arrived since.
        Returns 1 if the step is new, else 0."""
        step, row = metrics.step, dataclasses.asdict(metrics)
        new = step not in self._metrics.steps | self._skipped.steps
        self._skipped.put(step, [])
        if rewards:
            self._rewards.put(step, [{"step": step} | dataclasses.asdict(one) for one in rewards])
        if self._metrics.put(step, [row]):
            for name, value in row.items():
                if name != "step":
                    self.plot(f"learner/{name}", value, step)
        return int(new)

    def record_skipped(self, skipped: SkippedStep) -> int:
        """Records a skipped step; replaces its record from before a restart, even if the step was taken then. Returns 1
        if the step is new, else 0."""
        new = skipped.step not in self._metrics.steps | self._skipped.steps
        self._rewards.put(skipped.step, [])
        self._metrics.put(skipped.step, [])
        self._skipped.put(skipped.step, [dataclasses.asdict(skipped)])
        return int(new)

    def record_left_out(self, left_out: LeftOut) -> None:
        """Records the stored rows that a step left out; replaces the step's record from before a restart."""
        self._left_out.put(left_out.step, [{"step": left_out.step} | dataclasses.asdict(one) for one in left_out.rows])

    def left_out(self) -> list[Rejected]:
        """Returns the rows that steps left out, in the order of the steps."""
        rows = (one for step in sorted(self._left_out.steps) for one in self._left_out.of(step))
        return [Rejected(**{name: value for name, value in row.items() if name != "step"}) for row in rows]

    def plot(self, name: str, value: float, step: int) -> None:
        """Adds a point to a TensorBoard curve. Raises StoreError when it cannot be written."""
        with writing(self._directory.tensorboard):
            if self._events is None:
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(self._directory.tensorboard))
            self._events.add_scalar(name, value, step)

    def _save(self) -> None:
        """Saves the journal with the wall time up to now, so that a kill loses no time of the saved phases."""
        self.content["wall_seconds"] = self._before + time.monotonic() - self._began
        write_json(self._file, self.content)


class _Steps:
    """A JSON-lines file with rows of optimizer steps; it holds each step once, even when the learner reports the step
    again after a kill."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: dict[int, list[dict[str, Any]]] = {}
        for row in read_lines(file):
            self._rows.setdefault(row.get("step", 0), []).append(row)

    @property
    def steps(self) -> Set[int]:
        return self._rows.keys()

    def of(self, step: int) -> list[dict[str, Any]]:
        return self._rows.get(step, [])

    def put(self, step: int, rows: list[dict[str, Any]]) -> bool:
        """Replaces the rows of a step; an empty list deletes them. Returns whether the file changed."""
        if self._rows.get(step, []) == rows:
            return False
        follows = step > max(self._rows, default=-1)
        self._rows[step] = rows
        if follows:
            append_lines(self._file, rows)
            return True
        if not rows:
            del self._rows[step]
        lines = (json.dumps(row) + "\n" for number in sorted(self._rows) for row in self._rows[number])
        write_text(self._file, "".join(lines))
        return True
