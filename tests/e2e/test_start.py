import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT
from tests.e2e.runs import PROGRAM, environment

pytestmark = pytest.mark.e2e
WITHOUT_TOKEN = "from ray._raylet import GcsClient; GcsClient(address={!r}).internal_kv_keys(b'', b'')"
PIPES: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
WAITS = """
import time
from masters_ray import cli, cluster
from masters_ray.config import Cluster

def wait(_):
    with cluster.connected(Cluster(local_cpus=1)):
        import ray
        print(ray.get_runtime_context().gcs_address, flush=True)
        time.sleep(100)

cli._validate = wait
raise SystemExit(cli.main(["validate", "x"]))
"""


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


def gcs_servers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # Ray's start has helpers that end at once
            if process.name() == "gcs_server":
                found.append(process)
    return found


def test_a_signal_while_ray_starts_leaves_nothing(short: Path) -> None:
    words = [*PROGRAM, "generate", "conf/demo.yaml", f"run.dir={short / 'run'}"]
    with subprocess.Popen(words, env=environment(RAY_TMPDIR=str(short)), **PIPES) as process:
        parent = psutil.Process(process.pid)
        children: list[psutil.Process] = []
        while not gcs_servers(children):
            assert process.poll() is None
            children = parent.children(recursive=True)
            time.sleep(0.02)
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told == "masters-ray: stopped by SIGTERM; the same command goes on from what is finished.\n"
    assert not [child for child in children if child.is_running()]
    assert not list(short.glob("mr-*"))


def test_only_who_has_the_token_reaches_it_and_when_it_dies_the_program_ends_with_two_lines(short: Path) -> None:
    """From a place whose path is too long for sockets, with a home that cannot be written."""
    long = short / ("d" * 60)
    long.mkdir()
    surroundings = environment(TMPDIR=str(long), HOME="/proc/none")
    with subprocess.Popen([sys.executable, "-c", WAITS], env=surroundings, **PIPES) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line.strip() for line in lines if line.startswith("127.0.0.1:"))
        outsider, nobody = [sys.executable, "-c", WITHOUT_TOKEN.format(address)], environment(RAY_AUTH_MODE="disabled")
        refused = subprocess.run(outsider, env=nobody, capture_output=True, text=True, check=False, timeout=60)
        assert "AuthenticationError" in refused.stderr
        children = psutil.Process(process.pid).children(recursive=True)
        ports = {at.laddr.port for one in children for at in one.net_connections()}
        assert 52365 not in ports, "an agent of a cluster takes jobs there"
        [server] = gcs_servers(children)
        server.send_signal(signal.SIGKILL)
        out, told = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    first, second = told.splitlines()
    assert first.startswith("masters-ray: Ray's gcs_server on this machine ended (exit code -9)")
    assert second == "masters-ray: the same command goes on from what is finished."
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
