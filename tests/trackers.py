"""Reads what each tracker keeps on this machine of a run's numbers: (name, step) → all values that stand there."""

import json
import os
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Points = dict[tuple[str, int], list[float]]


def environment(folder: Path) -> dict[str, str]:
    """The environment in which wandb, mlflow and trackio reach no server and write below ``folder`` or in run.dir."""
    return {
        "WANDB_MODE": "offline",
        "WANDB_DATA_DIR": str(folder / "wandb"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "TRACKIO_DIR": str(folder / "trackio"),
    }


def tensorboard(run: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found: Points = defaultdict(list)
    for name in events.Tags()["scalars"]:
        for one in events.Scalars(name):
            found[name, one.step].append(one.value)
    return found


def wandb(run: Path) -> Points:
    """Of all calls of a run; wandb gives each a file of its own."""
    found: Points = defaultdict(list)
    for record in _wandb_records(run):
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            if "/" in name:
                found[name, row["step"]].append(float(value))  # "NaN" is a text there
    return found


def _wandb_records(run: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for content in _records(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            yield record


def _records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a .wandb file: LevelDB's log format, whose blocks of 32 KiB hold parts of records."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


def mlflow(folder: Path, id: str) -> Points:
    """From the file store in a directory."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    found: Points = defaultdict(list)
    for name in client.get_run(id).data.metrics:
        for one in client.get_metric_history(id, name):
            found[name, one.step].append(one.value)
    return found


def trackio(folder: Path, name: str, project: str = "masters_ray") -> Points:
    found: Points = defaultdict(list)
    with sqlite3.connect(folder / "trackio" / f"{project}.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = ?", (name,)).fetchall()
    for step, metrics in rows:
        for key, value in json.loads(metrics).items():
            if "/" in key:
                found[key, step].append(float(value))  # "NaN" is a text there
    return found


def of_run(run: Path, folder: Path) -> dict[str, Points]:
    """folder: as in ``environment``."""
    noted: dict[str, Any] = json.loads((run / "journal.json").read_text())["trackers"]
    return {
        "tensorboard": tensorboard(run),
        "wandb": wandb(run),
        "mlflow": mlflow(folder, noted["mlflow"]["id"]),
        "trackio": trackio(folder, noted["trackio"]["id"]),
    }


def compare(run: Path, folder: Path, further: dict[tuple[str, int], float]) -> int:
    """Asserts that each tracker holds the numbers of metrics.jsonl and ``further``, each once and no others but those
    of the rollouts. TensorBoard, and wandb offline, get again what was not surely on disk when a call was killed: there
    the same number may stand twice. Returns how many numbers that are."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = {(f"learner/{name}", row["step"]): row[name] for row in rows for name in row if name != "step"} | further
    for tracker, held in of_run(run, folder).items():
        numbers = {place: values for place, values in held.items() if not place[0].startswith("rollouts/")}
        assert numbers.keys() == expected.keys(), tracker
        for place, values in numbers.items():
            exact = 1e-6 if tracker == "tensorboard" else 0.0  # it rounds to float32
            assert values == [pytest.approx(expected[place], rel=exact, abs=0, nan_ok=True)] * len(values), place
            assert len(values) == 1 or tracker in ("tensorboard", "wandb"), place
    return len(expected)


def artefacts(run: Path, folder: Path) -> dict[str, tuple[list[str], set[str]]]:
    """Returns tracker → (answers of its table of samples, names of the files that it keeps)."""
    [table] = run.glob("wandb/offline-run-*/files/media/table/samples_*.json")
    names = [one.path for record in _wandb_records(run) for one in record.artifact.manifest.contents]
    [samples] = folder.glob("mlruns/*/*/artifacts/samples.json")
    with sqlite3.connect(folder / "trackio" / "masters_ray.db") as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics")]
        [(manifest,)] = database.execute("select manifest from artifact_versions").fetchall()
    [shown] = [row["samples"]["_value"] for row in rows if "samples" in row]
    return {
        "wandb": (_answers(table), set(names)),
        "mlflow": (_answers(samples), {file.name for file in samples.parent.iterdir()}),
        "trackio": ([row["answer"] for row in shown], {one["path"] for one in json.loads(manifest)}),
    }


def _answers(table: Path) -> list[str]:
    content = json.loads(table.read_text())
    return [row[content["columns"].index("answer")] for row in content["data"]]
