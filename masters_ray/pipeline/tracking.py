"""Sends a run's numbers, samples and pages to experiment trackers (docs/TRACKERS.md). Only the driver imports them, and
only those that the configuration names. A run has one run in each tracker, which later calls of it continue."""

import base64
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from masters_ray.config import Config, plain
from masters_ray.errors import MastersError, writing
from masters_ray.pipeline.run_dir import flattened
from masters_ray.progress import say, warn
from masters_ray.report.render import ratio
from masters_ray.report.summary import Example, read_examples, read_summary

FINISHED = "finished"
_FILES = ("*.html", "plan/*.html", "doctor/*.html", "summary.json", "metrics.jsonl", "config.yaml", "student/README.md")
"""Patterns of the files in run.dir that trackers keep."""


class _Tracker:
    """A run in a tracker, open: begun, or the one with this ``id`` continued."""

    id, place = "", ""  # where a reader finds it
    held = 0  # last optimizer step that the tracker says it has, if it says so

    def __init__(self, config: Config, id: str | None) -> None: ...
    def numbers(self, values: dict[str, float], step: int) -> None: ...
    def samples(self, rows: list[dict[str, Any]]) -> None: ...
    def files(self, files: list[Path]) -> None: ...
    def close(self, ended: str) -> None: ...


class _TensorBoard(_Tracker):
    def __init__(self, config: Config, id: str | None) -> None:
        self._folder = Path(config.run.dir).absolute() / "tensorboard"

    @cached_property
    def _writer(self) -> Any:
        return import_module("torch.utils.tensorboard").SummaryWriter(str(self._folder))

    def numbers(self, values: dict[str, float], step: int) -> None:
        with writing(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self, ended: str) -> None:
        if "_writer" in vars(self):
            with writing(self._folder):
                self._writer.close()


class _Wandb(_Tracker):
    def __init__(self, config: Config, id: str | None) -> None:
        self._library = wandb = import_module("wandb")
        self.id = id or uuid.uuid4().hex[:8]
        settings = wandb.Settings(console="off", silent=True)
        folder = os.environ.get("WANDB_DIR") or Path(config.run.dir).absolute()
        shared: dict[str, Any] = {"project": config.run.project, "name": _name(config), "config": plain(config)}
        shared |= {"id": self.id, "resume": "allow", "allow_val_change": True}
        self._run = wandb.init(**shared, dir=folder, settings=settings)
        # wandb drops a row whose own step is not the largest so far; a measured accuracy may come later than that.
        self._run.define_metric("*", step_metric="step")
        self.held = int(self._run.summary.get("step", 0))
        self.place = self._run.dir if self._run.offline else self._run.url

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._row({"step": step, **values})

    def _row(self, values: dict[str, Any]) -> None:
        self._run.log(values)

    def samples(self, rows: list[dict[str, Any]]) -> None:
        cells = [row | {"picture": row["picture"] and self._library.Image(row["picture"])} for row in rows]
        table = self._library.Table(columns=list(rows[0]), data=[list(row.values()) for row in cells])
        self._row({"samples": table})

    def files(self, files: list[Path]) -> None:
        artifact = self._library.Artifact(f"report-{self.id[-8:]}", type="report")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, ended: str) -> None:
        self._run.summary["end"] = ended
        self._run.finish(exit_code=int(ended != FINISHED))
        self._library.teardown()  # before Ray ends: wandb's own process would be gone when Python exits


class _Trackio(_Wandb):
    def __init__(self, config: Config, id: str | None) -> None:
        self._library = trackio = import_module("trackio")
        # It continues the newest run of a name: two directories of the same name must not meet.
        self.id = id or f"{_name(config)}-{uuid.uuid4().hex[:8]}"
        shared = {"project": config.run.project, "name": self.id, "config": plain(config)}
        resume = "allow" if id else "never"
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(**shared, resume=resume, auto_log_cpu=False, auto_log_gpu=False, embed=False)
        self.held = self._run._next_step - 1
        self.place = f"trackio show --project {config.run.project}, run {self.id}"

    def _row(self, values: dict[str, Any]) -> None:
        step = values.pop("step", max(self._run._next_step - 1, 0))  # without one trackio counts on
        self._run.log(values, step=step)

    def close(self, ended: str) -> None:
        with redirect_stdout(io.StringIO()):
            self._row({"end": ended})
            self._library.finish()  # or trackio would end the run again when Python exits


class _Mlflow(_Tracker):
    def __init__(self, config: Config, id: str | None) -> None:
        mlflow = import_module("mlflow")
        self._metric, self._client = mlflow.entities.Metric, mlflow.MlflowClient()
        if id:
            self._client.update_run(id, status="RUNNING")
            history = self._client.get_metric_history(id, "learner/loss")
            self.id, self.held = id, max((point.step for point in history), default=0)
        else:
            found = self._client.get_experiment_by_name(config.run.project)
            project = found.experiment_id if found else self._client.create_experiment(config.run.project)
            self.id = self._client.create_run(project, run_name=_name(config)).info.run_id
            for key, value in flattened(plain(config)).items():
                self._client.log_param(self.id, re.sub(r"[\[\]]", "_", key), str(value)[:6000])
        self.place = f"run {self.id} at {self._client.tracking_uri}"

    def numbers(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[self._metric(name, of, now, step) for name, of in values.items()])

    def samples(self, rows: list[dict[str, Any]]) -> None:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "picture"}
        self._client.log_table(self.id, columns, "samples.json")

    def files(self, files: list[Path]) -> None:
        for file in files:
            self._client.log_artifact(self.id, str(file))

    def close(self, ended: str) -> None:
        states = {FINISHED: "FINISHED", "KeyboardInterrupt": "KILLED"}
        self._client.set_terminated(self.id, states.get(ended, "FAILED"))


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


class Trackers:
    """The trackers of a run. One that fails is named in a warning and gets nothing more from this call; the next call
    sends it the steps that it lacks."""

    def __init__(self, config: Config, noted: dict[str, dict[str, Any]]) -> None:
        """noted: tracker → its run's id and the last step it has for certain; kept between calls, and changed here."""
        self._config, self._noted, self._last = config, noted, 0
        self._open: dict[str, _Tracker] = {}

    def open(self, rows: list[dict[str, Any]]) -> None:
        """rows: the optimizer steps of earlier calls."""
        # Clients report their own use and errors to their makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own 7 take four minutes for a lost server
        self._last = max((row["step"] for row in rows), default=0)
        for name in self._config.tracker:
            with self._guarded(name):
                noted = self._noted.setdefault(name, {"step": 0})
                opened = _KINDS[name](self._config, noted.get("id"))
                self._open[name], noted["id"] = opened, opened.id
                if opened.place:
                    say(f"{name}: {opened.place}")
                for row in rows:
                    if row["step"] > max(opened.held, noted["step"]):
                        opened.numbers(learner(row), row["step"])

    def send(self, values: dict[str, float], step: int) -> None:
        """Raises StoreError when TensorBoard's file cannot be written."""
        self._last = max(self._last, step)
        self._each(lambda one: one.numbers(values, step))

    def send_results(self, root: Path) -> None:
        """Sends what a finished run leaves in its directory."""
        for stage in read_summary(root).stages:
            right = {f"rollouts/{source}_right": rate for source, rate in stage.rates("right", "judged").items()}
            speed = ratio(stage.tokens, stage.seconds)
            self.send(right | {"rollouts/mask_ratio": stage.ratio, "rollouts/tokens_per_second": speed}, stage.stage)
        if rows := _samples(read_examples(root)):
            self._each(lambda one: one.samples(rows))
        files = [file for pattern in _FILES for file in sorted(root.glob(pattern))]
        self._each(lambda one: one.files(files))

    def close(self, ended: str) -> None:
        """ended: FINISHED, or the name of the exception that ended the call."""
        self._each(lambda one: one.close(ended))
        for name in self._open:
            self._noted[name]["step"] = self._last
        self._open.clear()

    def _each(self, send: Callable[[_Tracker], None]) -> None:
        for name, one in list(self._open.items()):
            with self._guarded(name):
                send(one)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except MastersError:  # a full disk, which is told as everywhere
            raise
        except Exception as error:  # noqa: BLE001 - clients raise errors of every kind, and none of them may end a run
            self._open.pop(name, None)
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            warn(f"{name} gets nothing more from this call ({told}); metrics.jsonl has everything")


def learner(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of an optimizer step under a tracker's names."""
    return {f"learner/{name}": value for name, value in row.items() if name != "step"}


def _name(config: Config) -> str:
    """Example: alpha-seed-0, since run.dir's last part may be the same for many runs."""
    return "-".join(Path(config.run.dir).absolute().parts[-2:])


def _samples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Returns a row for each answer of the training questions that the report shows."""
    return [
        {
            "question": example.question,
            "picture": next(map(_picture, example.pictures), None),
            "label": example.label,
            "source": judged.answer.source,
            "answer": judged.answer.text,
            "verdict": judged.verdict,
            "accuracy": judged.accuracy,
            "distillation": example.rewards.distillation[place],
            "advantage": example.rewards.advantages[place],
        }
        for example in examples
        if example.rewards
        for place, judged in enumerate(example.answers)
    ]


def _picture(uri: str) -> Image.Image | None:
    """uri: as in ``Example.pictures``."""
    encoded = uri.removeprefix("data:").partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(encoded))) if uri.startswith("data:") else None
