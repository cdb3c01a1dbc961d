"""A Ray cluster of two nodes on this machine, started as docs/RUNNING.md says."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.runs import environment

PORT, DASHBOARD = 26379, 28265
ADDRESS = ["--address", f"http://127.0.0.1:{DASHBOARD}"]


@contextmanager
def two_nodes(python: str = sys.executable) -> Iterator[dict[str, str]]:
    """The environment that reaches the cluster. python: that of the nodes."""
    ray = [python, "-m", "ray.scripts.scripts"]
    temporary = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # a socket's path must be short
    # What the cluster runs as "python" is this one.
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    reach = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD}", "PATH": path, "RAY_AUTH_MODE": "token"}
    reach["HOME"] = temporary  # where the token lies
    of_ray = environment(**reach)
    subprocess.run([*ray, "get-auth-token", "--generate"], env=of_ray, check=True, capture_output=True)
    head = f"--head --num-cpus=1 --port={PORT} --dashboard-host=127.0.0.1 --dashboard-port={DASHBOARD}"
    nodes: list[subprocess.Popen[str]] = []
    try:
        for name, options in (("head", head), ("other", f"--address=127.0.0.1:{PORT} --num-cpus=3")):
            start = [*ray, "start", *options.split(), "--object-store-memory=200000000", "--disable-usage-stats"]
            # Nodes of one machine must not unpack a job's files over each other, nor want one port for their agents.
            start += [f"--temp-dir={temporary}/{name}", "--dashboard-agent-listen-port=0", "--block"]
            nodes.append(subprocess.Popen(start, env=of_ray, stdout=subprocess.PIPE, text=True, start_new_session=True))
            assert any("Ray runtime started" in line for line in nodes[-1].stdout or ())
        for _ in range(240):
            with suppress(OSError), socket.create_connection(("127.0.0.1", DASHBOARD)):
                break
            time.sleep(0.5)
        else:
            raise AssertionError("the dashboard does not answer")
        yield reach
    finally:
        for node in reversed(nodes):
            # "ray stop" would stop every Ray of the machine, and a signal to end begins half a minute of draining.
            os.killpg(node.pid, signal.SIGKILL)
            node.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)
