"""Records a run's history in its directory: seconds by phase, optimizer steps, rewards."""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from masters_ray import progress, stopping
from masters_ray.files import append_lines, read_lines, read_record, write_json, write_text
from masters_ray.learner.job import CheckpointSaved, GroupRewards, Report, TakenStep, Told
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.pipeline.tracking import FINISHED, Trackers, learner
from masters_ray.progress import say, short, warn
from masters_ray.records import Event, EventKind, LeftOut, LogprobMismatch, Rejected, SkippedStep, StepMetrics

_TIMES = ("seconds", "tokens_per_second", "rollout_wait_s", "mfu", "memory_gib")
"""Metrics of a step that another execution of the same step does not repeat."""


class Journal:
    """Records each call of a run after earlier calls, in the run's files and in its trackers.

    A step that is repeated after a restart replaces its first record, even if it was skipped then and is taken now, or
    the other way round: late answers may have arrived since. If only its times differ, the first record stays. Trackers
    get a step once.
    """

    def __init__(self, directory: RunDirectory, config_file: str) -> None:
        self._directory = directory
        self._file = directory.file("journal.json")
        self.content: dict[str, Any] = {
            "started": _now(),
            "config_file": config_file,
            "phases": {},
            "wall_seconds": 0.0,
        }
        if self._file.exists():
            self.content |= read_record(self._file, dict[str, Any])
        self._metrics, self._skipped, self._left_out, self._rewards = (
            _Steps(directory.file(f"{name}.jsonl")) for name in ("metrics", "skipped", "left_out", "rewards")
        )
        self._before, self._began = self.content["wall_seconds"], time.monotonic()
        self.trackers = Trackers(directory.config, self.content.setdefault("trackers", {}))

    def __enter__(self) -> Self:
        progress.listeners.append(self._warned)
        self.event("start", shlex.join(sys.argv))
        self.trackers.open([row for rows in self._metrics.rows.values() for row in rows])
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Saves this call's wall time, also when the call was interrupted."""
        progress.listeners.remove(self._warned)
        stopped = stopping.outcome()[0] if kind is KeyboardInterrupt else ""
        self.event("end", "finished" if kind is None else stopped or kind.__name__)
        if kind is not None:  # whoever finishes the run closes them after its pages are written
            self.trackers.close(kind.__name__)
        self._save()

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

    def note(self, name: str, value: Any) -> None:
        """Records a fact about the run; a later call of the run overwrites it."""
        self.content[name] = value
        self._save()

    def event(self, kind: EventKind, text: str, step: int | None = None) -> None:
        """Appends to events.jsonl."""
        event = Event(time=_now(), kind=kind, text=text, step=step)
        append_lines(self._directory.file("events.jsonl"), [dataclasses.asdict(event)])

    def _warned(self, text: str) -> None:
        self.event("warning", text)

    def steps_done(self) -> int:
        """Returns the number of optimizer steps recorded so far, skipped steps included."""
        return len(self._metrics.rows.keys() | self._skipped.rows.keys())

    def take(self, report: Report, advance: Callable[..., None]) -> None:
        """Records and prints the learner's report. advance: a ``progress.Advance``, called for new steps."""
        match report:
            case str():
                say(report)
            case Told(kind="warning"):
                warn(report.text)
            case CheckpointSaved():
                self.event("checkpoint", "the learner wrote a checkpoint", report.step)
            case LogprobMismatch():
                compared = {str(report.stage): dataclasses.asdict(report)}
                self.note("agreement", self.content.get("agreement", {}) | compared)
            case TakenStep(metrics=new):
                if self.record(new, report.rewards):
                    advance(1, cells=cells(new), fields=dataclasses.asdict(new))
            case LeftOut():
                self._left_out.put(report.step, report.rows)
                for row in report.rows:
                    warn(f"step {report.step} goes on without {row.row}: {row.reason}")
            case SkippedStep():
                advance(self.record(report))
                warn(f"step {report.step} is skipped: {report.reason}")

    def record(self, step: StepMetrics | SkippedStep, rewards: Sequence[GroupRewards] = ()) -> int:
        """Records an optimizer step and the rewards of some of its groups. Returns 1 if the step is new, else 0."""
        before, taken = self.steps_done(), isinstance(step, StepMetrics)
        self._rewards.put(step.step, rewards)
        self._skipped.put(step.step, [] if taken else [step])
        rows, known = [dataclasses.asdict(step)] if taken else [], self._metrics.rows.get(step.step, [])
        if not (known and rows) or _but_times(rows[0]) != _but_times(known[0]):
            self._metrics.put(step.step, [step] if taken else [])
        if taken and not known:
            self.trackers.send(learner(rows[0]), step.step)
        return self.steps_done() - before

    def left_out(self) -> list[Rejected]:
        """Returns the rows that steps left out, in the order of the steps."""
        rows = (one for _, rows in sorted(self._left_out.rows.items()) for one in rows)
        return [Rejected(row=one["row"], reason=one["reason"], kind=one["kind"]) for one in rows]

    def finish(self, pages: Path | None = None) -> None:
        """Ends the trackers' runs. pages: the directory of a finished run, whose pages and samples they get first."""
        if pages is not None:
            self.trackers.send_results(pages)
        self.trackers.close(FINISHED)
        write_json(self._file, self.content)

    def _save(self) -> None:
        """Saves the journal with the wall time up to now, so that a kill loses no time of the saved phases."""
        self.content["wall_seconds"] = self._before + time.monotonic() - self._began
        write_json(self._file, self.content)


def _but_times(row: dict[str, Any]) -> str:
    """Returns a step's metrics but _TIMES as a text, in which NaN equals NaN."""
    return json.dumps({name: value for name, value in row.items() if name not in _TIMES}, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def cells(step: StepMetrics) -> Mapping[str, str]:
    """Returns heading → figure of a step's row in the terminal and the log; 73 columns."""
    return {
        "loss": f"{step.loss:9.4f}",
        "JSD": f"{step.jsd:8.4f}",
        "KL": f"{step.kl:9.5f}",
        "R_acc": f"{step.accuracy_reward:6.0%}",
        "R_distill": f"{step.distillation_reward:10.2f}",
        "lr": f"{step.learning_rate:9.1e}",
        "norm": f"{step.grad_norm:7.3g}",
        "tokens/s": f"{short(step.tokens_per_second):>9}",
        "MFU": f"{step.mfu:6.1%}",
    }


class _Steps:
    """A JSON-lines file with rows of optimizer steps; it holds each step once, even when the learner reports the step
    again after a kill."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: dict[int, list[dict[str, Any]]] = {}
        for row in read_lines(file):
            self.rows.setdefault(row.get("step", 0), []).append(row)

    def put(self, step: int, records: Sequence[Any]) -> bool:
        """Replaces the rows of a step by ``records``. Returns whether the file changed."""
        rows = [{"step": step} | dataclasses.asdict(one) for one in records]
        if rows == self.rows.get(step, []):
            return False
        last = max(self.rows, default=-1)
        self.rows[step] = rows
        if step > last:
            append_lines(self._file, rows)
        else:
            self.rows = {number: self.rows[number] for number in sorted(self.rows) if self.rows[number]}
            write_text(self._file, "".join(json.dumps(row) + "\n" for rows in self.rows.values() for row in rows))
        return True
