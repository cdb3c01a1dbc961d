"""What happened so far, kept beside the run: seconds by phase, optimizer steps, rewards."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from masters_ray.learner.job import GroupRewards
from masters_ray.pipeline.directory import RunDirectory, append_lines, read_json, read_lines, write_json, write_text
from masters_ray.records import SkippedStep, StepMetrics


class Journal:
    """Opened for each call of a run; adds to what earlier calls wrote. TensorBoard's event files go the same way."""

    def __init__(self, directory: RunDirectory, config_file: str) -> None:
        self._directory = directory
        directory.root.mkdir(parents=True, exist_ok=True)
        self._file = directory.file("journal.json")
        if self._file.exists():
            self.content: dict[str, Any] = read_json(self._file)
        else:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.content = {
                "started": started,
                "config_file": config_file,
                "phases": {},
                "wall_seconds": 0.0,
            }
        self._metrics = {row["step"]: row for row in read_lines(directory.file("metrics.jsonl"))}
        self._skipped = {row["step"]: row for row in read_lines(directory.file("skipped.jsonl"))}
        self._before, self._began = self.content["wall_seconds"], time.monotonic()
        self._events: Any = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        """Adds this call's wall time, also when it was interrupted."""
        self._save()
        if self._events is not None:
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
        """A fact about the run; of several calls of a run the last one's stays."""
        self.content[name] = value
        self._save()

    def steps_done(self) -> int:
        """Optimizer steps recorded so far, skipped ones included."""
        return len(self._metrics.keys() | self._skipped.keys())

    def record(self, metrics: StepMetrics) -> int:
        """One optimizer step; a step taken again after a restart replaces its first record, also as one that was
        skipped: fresh answers that did not come in time may be there now. Returns 1 if it is new."""
        new = metrics.step not in self._metrics.keys() | self._skipped.keys()
        row = dataclasses.asdict(metrics)
        if self._metrics.get(metrics.step) == row:
            return 0
        if self._skipped.pop(metrics.step, None):
            self._write("skipped.jsonl", self._skipped)
        self._metrics[metrics.step] = row
        if new and metrics.step == max(self._metrics):
            append_lines(self._directory.file("metrics.jsonl"), [row])
        else:
            self._write("metrics.jsonl", self._metrics)
        for name, value in row.items():
            if name != "step":
                self.events.add_scalar(f"learner/{name}", value, metrics.step)
        return int(new)

    def record_skipped(self, skipped: SkippedStep) -> int:
        """A step that was not taken; replaces its record of before a restart, also as one that was. Returns 1 if it is
        new."""
        new = skipped.step not in self._metrics.keys() | self._skipped.keys()
        if self._metrics.pop(skipped.step, None):
            self._write("metrics.jsonl", self._metrics)
        self._skipped[skipped.step] = dataclasses.asdict(skipped)
        self._write("skipped.jsonl", self._skipped)
        return int(new)

    def record_rewards(self, rewards: Sequence[GroupRewards]) -> None:
        """How some groups were rewarded, for the report."""
        append_lines(self._directory.file("rewards.jsonl"), [dataclasses.asdict(one) for one in rewards])

    @property
    def events(self) -> Any:
        """TensorBoard's writer, made when it is first needed."""
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self._directory.tensorboard))
        return self._events

    def _write(self, name: str, rows: dict[int, dict[str, Any]]) -> None:
        """Steps in their order, in place of what the file holds."""
        lines = (json.dumps(rows[step]) + "\n" for step in sorted(rows))
        write_text(self._directory.file(name), "".join(lines))

    def _save(self) -> None:
        """With this call's wall time so far: a kill must not lose that of the phases that are saved with it."""
        self.content["wall_seconds"] = self._before + time.monotonic() - self._began
        write_json(self._file, self.content)
