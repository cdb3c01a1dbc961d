"""The examples of examples/deploy. Linters read them, since Docker, Slurm, Kubernetes and SkyPilot are not here; the
Slurm script runs with stand-ins for Slurm's programs."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "examples" / "deploy"
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(("linter", "file"), [("shellcheck", "slurm.sh"), ("hadolint", "Dockerfile")])
def test_a_linter_has_no_complaint(linter: str, file: str) -> None:
    linted = subprocess.run([BIN / linter, DEPLOY / file], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_pods_of_the_ray_job_are_those_of_kubernetes() -> None:
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    pinned = (ROOT / "requirements" / "gpu.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pinned
    templates: list[Any] = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": one} for one in pods(job)
    ]
    for template in templates:
        kubernetes_validate.validate(template, "1.35", strict=True)
    templates[0]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(templates[0], "1.35", strict=True)


def test_the_image_has_the_cuda_of_the_pins_and_what_the_wheel_is_made_of() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    [base] = [line.split()[1] for line in lines if line.startswith("FROM")]
    [cuda] = [line for line in (ROOT / "requirements" / "gpu.txt").read_text().splitlines() if "cuda-toolkit==" in line]
    assert base.partition(":")[2].split(".")[:2] == cuda.partition("==")[2].split(".")[:2] == ["13", "0"]
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    links = {os.path.relpath(one.resolve(), ROOT) for one in (ROOT / "masters_ray" / "shipped").iterdir()}
    assert links == {"conf", "examples/toy/pair", "examples/toy/questions"}
    assert copied == {
        "requirements/gpu.txt",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "conf",
        "examples/toy",
        "masters_ray",
    }


def test_sky_pilot_calls_commands_that_are_there() -> None:
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    assert set(task) == {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["run"].splitlines()[-1] == 'masters-ray run "$CONFIG" run.dir=/bucket/runs/mine'


@pytest.mark.parametrize(("code", "requeued"), [(75, "requeue 7\n"), (0, ""), (1, "")])
def test_a_slurm_job_is_requeued_after_75_and_its_exit_code_is_the_runs(
    tmp_path: Path, code: int, requeued: str
) -> None:
    """``ray symmetric-run`` is called on the first node for all nodes; half an hour of the job's time is left."""
    programs = {
        "srun": f'echo "$@" > {tmp_path}/srun.log; exit {code}',
        "scontrol": f'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "$@" >> {tmp_path}/scontrol.log; fi',
        "ray": f"mkdir -p {tmp_path}/.ray && touch {tmp_path}/.ray/auth_token",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"JOB_END_TIME": str(int(time.time()) + 43200), "JOB_NODELIST": "n[1-2]", "JOB_NUM_NODES": "2", "JOB_ID": "7"}
    there = {f"SLURM_{name}": value for name, value in job.items()}
    there |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = ["bash", str(DEPLOY / "slurm.sh"), "conf/mine.yaml", "run.dir=/shared/a b"]
    ran = subprocess.run(script, env=there, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (code, "")
    begin, _, left = (tmp_path / "srun.log").read_text().strip().rpartition("=")
    assert begin == (
        "ray symmetric-run --address n1:6379 --min-nodes 2 -- "
        "env RAY_ADDRESS=auto masters-ray run conf/mine.yaml run.dir=/shared/a b run.stop_after"
    )
    assert 41300 < int(left.removesuffix("s")) <= 41400
    assert (tmp_path / ".ray" / "auth_token").exists()
    asked = tmp_path / "scontrol.log"
    assert (asked.read_text() if asked.exists() else "") == requeued
