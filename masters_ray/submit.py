"""Submits a run to a cluster as a Ray job and follows its log."""

import asyncio
import os
import re
import shlex
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from masters_ray import config as configuration
from masters_ray import stopping
from masters_ray.errors import SubmitError
from masters_ray.files import write_text
from masters_ray.progress import say

_WRITTEN, _READ = ("dir", "store", "reuse"), ("path", "images", "checkpoint")
"""Last parts of keys with a path: of what a run writes or takes over, and of what must be there."""


def submit(config_file: str, overrides: list[str], address: str | None, *, follow: bool = True) -> int:
    """Submits a run of this configuration. Returns the job's exit code, or 0 when it is not followed.

    This package and the merged configuration travel with the job; the cluster's nodes have the packages that it needs.
    run.dir, data and checkpoints are paths that every node must see. Raises ConfigError for a bad configuration,
    SubmitError when the job cannot be submitted."""
    merged = _absolute(asdict(configuration.load(config_file, overrides)), Path.cwd())
    file = Path(config_file).name
    entrypoint = shlex.join(["python", "-m", "masters_ray.cli", "run", file])
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / file, yaml.safe_dump(merged, sort_keys=False))
        client = _client(address)
        travels: dict[str, Any] = {"working_dir": folder, "py_modules": [str(Path(__file__).parent)]}
        travels |= {"excludes": ["shipped/", "__pycache__/"], "env_vars": {"PYTHONUNBUFFERED": "1"}}
        job = _handed_over(client, entrypoint=entrypoint, runtime_env=travels, metadata={"name": Path(file).stem})
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


def _absolute(value: Any, root: Path, key: str = "") -> Any:
    """Returns plain values with absolute paths: of what the run writes, and of what is here. Other paths are the
    cluster's. Keeps interpolations such as ${oc.env:…} unresolved: everybody who reaches the cluster can read a job."""
    if isinstance(value, dict):
        return {name: _absolute(one, root, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_absolute(one, root, key) for one in value]
    written = configuration.as_written(value)
    if not value or not (key in _WRITTEN or (key in _READ and _is_here(value))):
        return written
    return written if "://" in value or Path(value).is_absolute() else f"{root}/{written}"


def _is_here(path: str) -> bool:
    """Whether a path, or the folder of a pattern of names, exists."""
    return Path(re.split(r"[^/]*[*?\[]", path)[0] or ".").exists()
