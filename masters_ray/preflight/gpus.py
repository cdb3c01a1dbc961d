"""A look at the GPUs of this machine: does the driver fit torch, and can Triton compile?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from masters_ray.config import Config
from masters_ray.errors import Complaint
from masters_ray.progress import say

_LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA that torch was built with → major version of the oldest driver that runs it."""
_SECONDS = 180.0
_KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def add_one(pointer, size: tl.constexpr):
    places = pointer + tl.arange(0, size)
    tl.store(places, tl.load(places) + 1)

numbers = torch.zeros(16, device="cuda")
add_one[(1,)](numbers, 16)
assert float(numbers.sum()) == 16, numbers
"""


def look(config: Config) -> list[Complaint]:
    """Nothing where conf asks for no GPU, or where the GPUs are those of a cluster."""
    asked = max(model.gpus for model in [*config.models.values(), config.learner])
    if asked == 0:
        return []
    if os.environ.get("RAY_ADDRESS") or shutil.which("nvidia-smi") is None:
        say("GPUs: driver and compiler are not looked at, since there is none here that the run would use")
        return []
    try:
        import torch
    except ImportError:
        say("GPUs: driver and compiler are not looked at, since torch is not installed here")
        return []
    complaints = driver_complaints(_driver(), torch.version.cuda)
    return complaints or compiler_complaints(_KERNEL)


def driver_complaints(driver: str, cuda: str | None) -> list[Complaint]:
    """driver: as nvidia-smi says, "" when it says nothing; cuda: as torch says, None for a torch without."""
    if cuda is None:
        remedy = "make setup STACK=gpu installs it."
        return [Complaint(where="GPUs", expected="a torch with CUDA", found="one for CPUs alone", remedy=remedy)]
    least = _LEAST_DRIVER.get(int(cuda.partition(".")[0]))
    major = driver.partition(".")[0]
    if least is None or (major.isdigit() and int(major) >= least):
        return []
    return [
        Complaint(
            where="GPUs",
            expected=f"an NVIDIA driver of version {least} or later, which torch with CUDA {cuda} needs",
            found=driver or "no answer of nvidia-smi",
            remedy="Renew the driver.",
        )
    ]


def compiler_complaints(program: str) -> list[Complaint]:
    """Whether a program that compiles a kernel ends well; it runs in a process of its own, its caches in none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.py"  # Triton reads a kernel's source from its file
        file.write_text(program)
        environment = os.environ | {"TRITON_CACHE_DIR": folder}
        try:
            ended = subprocess.run(
                [sys.executable, str(file)],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                env=environment,
                check=False,
            )
            said = "" if ended.returncode == 0 else _last_line(ended.stderr) or f"exit code {ended.returncode}"
        except subprocess.TimeoutExpired:
            said = f"no end after {_SECONDS:.0f} seconds"
    if not said:
        return []
    return [
        Complaint(
            where="GPUs",
            expected="Triton to compile a kernel",
            found=said,
            remedy="It needs gcc or clang, and Python.h of this Python (python3.11-dev).",
        )
    ]


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return ended.stdout.strip().partition("\n")[0] if ended.returncode == 0 else ""


def _last_line(text: str) -> str:
    """The line that names what is missing, or the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "fatal error" in line), lines[-1] if lines else "")
