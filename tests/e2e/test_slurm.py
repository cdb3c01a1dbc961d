"""The Slurm script with Ray's own ``symmetric-run``, on one node. That ends with ``ray stop``, which would end every
Ray of the machine: the script sees no other process and no other network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO, ROOT
from tests.e2e.runs import SMALL, environment, long_form, summary

pytestmark = [pytest.mark.e2e, long_form]
ALONE = ["unshare", "--pid", "--net", "--fork", "--mount-proc", "--kill-child"]
LOOPBACK = """
import fcntl, socket, struct, sys, os
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x1))  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""
STANDS_IN = {"srun": 'exec "$@"', "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@"; fi'}


def test_a_run_under_slurm_is_one_of_ray_symmetric_run(tmp_path: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make namespaces")
    for name, text in STANDS_IN.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_END_TIME": "4102444800",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "7",
    }
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    there = environment(**job, PATH=path, HOME=str(tmp_path))
    script = [*ALONE, sys.executable, "-c", LOOPBACK, "bash", str(ROOT / "examples" / "deploy" / "slurm.sh")]
    words = [str(DEMO), f"run.dir={tmp_path / 'run'}", *SMALL]
    ran = subprocess.run(
        [*script, *words], cwd=ROOT, env=there, capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "On head node. Starting Ray cluster head..." in ran.stdout
    assert summary(tmp_path / "run")["learner"]["groups"] == 48
