"""Submits a run to a cluster as a Ray job and follows its log."""

import asyncio
import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masters_ray import config as configuration
from masters_ray import stopping
from masters_ray.config import DataSource, keys_of
from masters_ray.errors import SubmitError
from masters_ray.progress import say

_REQUIRED = ("masters_ray", "conf", "jobs")
_UPLOADED = (*_REQUIRED, "examples")
"""Directories below the current one that are uploaded with the job."""


def submit(config_file: str, overrides: list[str], address: str | None, *, follow: bool = True) -> int:
    """Submits ``jobs/distil.py`` with this configuration. Returns the job's exit code, or 0 when it is not followed.

    ``_UPLOADED`` travels with the job; run.dir, data and other checkpoints are paths that every node must see. Raises
    ConfigError for a bad configuration, SubmitError when the job cannot be submitted."""
    root = Path.cwd()
    inside = (root / config_file).resolve().is_relative_to(root)
    if not inside or not all((root / name).is_dir() for name in _REQUIRED):
        raise SubmitError(
            f"{config_file}: submit from the project's directory, which travels with the job: expected "
            f"{', '.join(_REQUIRED)} in {root}, and the configuration below it"
        )
    config = configuration.load(config_file, overrides)
    words = [os.path.relpath(root / config_file, root), *overrides, *_absolute_paths(config, root)]
    entrypoint = shlex.join(["python", "jobs/distil.py", *words])
    client = _client(address)
    job = _handed_over(
        client,
        entrypoint=entrypoint,
        runtime_env={"working_dir": str(root), "excludes": _excludes(root), "env_vars": {"PYTHONUNBUFFERED": "1"}},
        metadata={"name": Path(config_file).stem},
    )
    say(f"job {job} submitted: {entrypoint}")
    return _follow(client, job, address) if follow else 0


def _client(address: str | None) -> Any:
    # Clusters demand a token by default, clients send it only if this is set before Ray is imported.
    token = os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or Path(token).is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    chosen = address or os.environ.get("RAY_ADDRESS") or "http://127.0.0.1:8265"
    try:
        return JobSubmissionClient(chosen)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise SubmitError(
            f"{chosen}: no cluster answers there ({str(error).rstrip('.')}). Start its head node with "
            "--dashboard-host=0.0.0.0, give --address http://HEAD:8265, and copy its ~/.ray/auth_token here."
        ) from error


def _handed_over(client: Any, **job: Any) -> str:
    """Submits the job and returns its id; waits up to 60 s for a cluster whose agent is not up yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            told = str(error).rstrip(".")
            if "No available agent" not in told or time.monotonic() > deadline:
                raise SubmitError(
                    f"the cluster did not take the job ({told}). If another Ray on the head node holds the port of "
                    "its agent, start with --dashboard-agent-listen-port=0."
                ) from error
            time.sleep(1)


def _follow(client: Any, job: str, address: str | None) -> int:
    async def log() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(log())
    except KeyboardInterrupt:
        at = f" --address {address}" if address else ""
        say(f"job {job} goes on; follow it with: ray job logs --follow{at} {job}; stop it with: ray job stop{at} {job}")
        return stopping.outcome()[1]
    info = client.get_job_info(job)
    say(f"job {job}: {info.status.lower()}")
    if info.status == "SUCCEEDED":
        return 0
    if not info.driver_exit_code:
        say(f"cause: {info.message}")
    return info.driver_exit_code or 1


def _absolute_paths(config: configuration.Config, root: Path) -> list[str]:
    """Returns overrides that make relative paths absolute; those inside uploaded directories stay relative."""
    rollout, data = config.rollout, config.data
    inputs = dict(_of_data("train", data.train)) | dict(_of_data("held_out", data.held_out))
    inputs |= {"teacher.checkpoint": config.teacher.checkpoint, "student.checkpoint": config.student.checkpoint}
    paths = {"run.dir": config.run.dir, "rollout.store": rollout.store}
    paths |= {key: path for key, path in inputs.items() if path and _stays_behind(path)}
    words = {key: _place(path, root) for key, path in paths.items() if path}
    if rollout.reuse:
        words["rollout.reuse"] = json.dumps([_place(one, root) for one in rollout.reuse])
    growth = [asdict(one) for one in config.growth]
    for teacher in (one["teacher"] for one in growth if _stays_behind(one["teacher"]["checkpoint"])):
        teacher["checkpoint"] = _place(teacher["checkpoint"], root)
    if growth:
        words["growth"] = json.dumps(configuration.as_written(growth))
    return [f"{key}={word}" for key, word in words.items()]


def _of_data(name: str, sources: Sequence[DataSource]) -> Iterator[tuple[str, str]]:
    """Yields (key, path) of the files and picture folders of sources."""
    for key, source in zip(keys_of(f"data.{name}", sources), sources, strict=True):
        yield f"{key}.path", source.path
        if source.images:
            yield f"{key}.images", source.images


def _stays_behind(path: str) -> bool:
    """Whether a path, or the folder of a pattern of names, exists here and is not uploaded with the job."""
    place = Path(re.split(r"[^/]*[*?\[]", path)[0] or ".")
    return place.exists() and place.parts[:1] not in [(one,) for one in _UPLOADED]


def _place(where: str, root: Path) -> str:
    """Returns a path made absolute, or an address. Keeps interpolations such as ${oc.env:…} unresolved: everybody who
    reaches the cluster can read a job's entry point."""
    written = str(configuration.as_written(where))
    return written if "://" in where or Path(where).is_absolute() else f"{root}/{written}"


def _excludes(root: Path) -> list[str]:
    """Returns .gitignore patterns of the top-level entries that the job does not need."""
    kept = {*_UPLOADED, "pyproject.toml", "setup.cfg"}
    return [f"/{entry.name}" for entry in root.iterdir() if entry.name not in kept]
