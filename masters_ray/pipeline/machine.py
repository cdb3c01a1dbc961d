"""What a call of the command runs, and where, in words."""

import subprocess
from collections import Counter
from pathlib import Path

import ray

import masters_ray


def nodes() -> str:
    """Returns the nodes of the Ray cluster, equal ones counted. Example: ``2 × (16 CPUs, 8 × H100, 1900 GiB)``. Memory
    is what Ray may hand out."""
    found = Counter(_node(one["Resources"]) for one in ray.nodes() if one["Alive"]) if ray.is_initialized() else {}
    return "; ".join(f"{count} × ({node})" if count > 1 else node for node, count in found.items())


def _node(resources: dict[str, float]) -> str:
    kinds = (name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    gpus, memory = resources.get("GPU", 0), resources.get("memory", 0) / 2**30
    told = f"{gpus:g} × {next(kinds, 'GPU')}" if gpus else "no GPU"
    return f"{resources.get('CPU', 0):g} CPUs, {told}, {memory:.0f} GiB"


def code(folder: Path = Path(masters_ray.__file__).parent) -> str:
    """Returns the git commit of the code in ``folder``, with "-dirty" if tracked files differ from it; "" where git
    does not track the folder."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # raises where only a folder above belongs to a repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""
