"""The same run as a Ray job, on a cluster of two nodes on this machine, started as the README says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e.runs import SMALL, environment, masters_ray, summary

pytestmark = pytest.mark.e2e
PORT, DASHBOARD = 26379, 28265
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment that reaches a cluster of this module's own."""
    temporary = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # a socket's path must be short
    # What the cluster runs as "python" is this environment's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    reach = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD}", "PATH": path, "RAY_AUTH_MODE": "token"}
    reach["HOME"] = temporary  # where the token lies
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment(**reach), check=True, capture_output=True)
    head = f"--head --num-cpus=1 --port={PORT} --dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD}"
    nodes: list[subprocess.Popen[str]] = []
    try:
        for name, options in (("head", head), ("other", f"--address=127.0.0.1:{PORT} --num-cpus=3")):
            start = [RAY, "start", *options.split(), "--object-store-memory=200000000", "--disable-usage-stats"]
            # Nodes of one machine must not unpack a job's files over each other, nor want the same port for their agents.
            start += [f"--temp-dir={temporary}/{name}", "--dashboard-agent-listen-port=0", "--block"]
            nodes.append(
                subprocess.Popen(
                    start, env=environment(**reach), stdout=subprocess.PIPE, text=True, start_new_session=True
                )
            )
            assert any("Ray runtime started" in line for line in nodes[-1].stdout or ())
        _wait_for_the_dashboard(nodes[0])
        yield reach
    finally:
        for node in reversed(nodes):
            # "ray stop" would stop every Ray of the machine, and a signal to end begins half a minute of draining.
            os.killpg(node.pid, signal.SIGKILL)
            node.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def _wait_for_the_dashboard(ray_head: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert ray_head.poll() is None
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{DASHBOARD}/api/jobs/", timeout=5).close()
        except urllib.error.HTTPError:
            return  # it asks for a token, so it is there
        except OSError:
            pass
        else:
            return
        assert time.monotonic() < deadline, "the dashboard does not answer"
        time.sleep(0.5)


def address() -> list[str]:
    return ["--address", f"http://127.0.0.1:{DASHBOARD}"]


def test_submit_runs_the_demo_on_the_cluster_and_follows_its_log(cluster: dict[str, str], tmp_path: Path) -> None:
    words = [*SMALL, "schedule.max_ratio=0", "data.train.rows=16", "data.held_out.rows=16"]
    done = masters_ray("submit", *address(), "conf/demo.yaml", f"run.dir={tmp_path / 'run'}", *words, **cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ray on cluster" in done.stdout
    assert ": 4 CPUs, 0 GPUs" in done.stdout, "one of the head node, three of the other"
    assert "held-out accuracy of student after" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("succeeded")
    assert summary(tmp_path / "run")["accuracy"]["student_after"]["n"] == 16


def test_a_job_that_fails_returns_non_zero_and_ends_with_the_cause(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "what?", "answer": "red", "image": "none.png"}\n')
    words = ["data.train.format=jsonl", f"data.train.path={tmp_path / 'rows.jsonl'}", *SMALL]
    done = masters_ray("submit", *address(), "conf/demo.yaml", f"run.dir={tmp_path / 'run'}", *words, **cluster)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-4:]
    assert any("picture" in line and "none.png does not exist" in line for line in last), last
    assert last[-1].endswith("failed")


def test_rays_own_submit_runs_the_entry_script(cluster: dict[str, str], tmp_path: Path) -> None:
    """Up to the refusal of a bad configuration: the whole run is tested above."""
    job = [RAY, "job", "submit", *address(), "--working-dir", "jobs", "--", "python", "distil.py", "none.yaml"]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            job, cwd=ROOT, env=environment(**cluster), capture_output=True, text=True, timeout=200, check=False
        )
        # A head node takes no job for some seconds after its dashboard answers.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert done.returncode == 1
    assert "none.yaml: expected a YAML file, found no such file" in done.stdout + done.stderr


def test_submit_to_nowhere_says_how_to_reach_a_cluster(tmp_path: Path) -> None:
    done = masters_ray("submit", "--address", "http://127.0.0.1:1", "conf/demo.yaml", f"run.dir={tmp_path}")
    assert done.returncode == 1
    assert "no cluster answers there" in done.stderr
