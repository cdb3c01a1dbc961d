"""Writes a commented configuration for a pair, data and a machine; asks for what is not given."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.prompt import Prompt

from masters_ray import data, explain
from masters_ray.config import SHIPPED, DataSource, RowFields, load
from masters_ray.errors import Complaint, ConfigError, DataError
from masters_ray.files import write_text
from masters_ray.progress import console, say

TOY = "toy"
PAIRS = {TOY: ["cpu"]} | {
    file.stem: re.findall(r"(\d+x\d+gb\w*)\.yaml", file.read_text(encoding="utf-8").partition("\n")[0])
    for file in sorted((SHIPPED / "conf" / "pairs").glob("*.yaml"))
}
"""Pair → the machines of conf/machines that its file names, the smallest first."""


def write(file: Path, pair: str | None, train: str | None, held_out: str | None, machine: str | None) -> Path:
    """Writes ``file``; None is asked for where a terminal can answer. The toy pair and its questions become a folder
    ``toy`` beside it. Raises ConfigError for a file that exists and for what does not fit, DataError for questions that
    cannot be read."""
    if file.exists():
        raise ConfigError([Complaint(str(file), "a new file", "one that exists", "Name another file, or delete it.")])
    gpus = _gpus()
    here = {name: [one for one in machines if _holds(gpus, one)] for name, machines in PAIRS.items()}
    pair = pair or _asked("pair", next((name for name in reversed([*PAIRS]) if here[name]), TOY), [*PAIRS])
    if pair not in PAIRS:
        raise ConfigError([Complaint("--pair", " or ".join(PAIRS), repr(pair), "Name a pair of conf/pairs.")])
    fitting = here[pair][-1:] or PAIRS[pair]
    if machine is None and (sys.stdin.isatty() or len(fitting) > 1):
        machine = _asked("machine", fitting[0], PAIRS[pair])
    machine = machine or fitting[0]
    if machine not in PAIRS[pair]:
        fits = " or ".join(PAIRS[pair])
        raise ConfigError([Complaint("--machine", f"{fits} for {pair}", repr(machine), "Or write the file by hand.")])
    base, words = f"conf/pairs/{pair}.yaml", [f"conf/machines/{machine}.yaml"]
    paths = {"train": train, "held_out": held_out}
    if pair == TOY:
        toy = _toy(file.parent / TOY)
        base, words = "conf/demo.yaml", [f"{name}.checkpoint={toy}/pair/{name}" for name in ("teacher", "student")]
        words += [f"data.{name}.rows=null" for name, path in paths.items() if path]  # conf/demo.yaml's are the toy's
        paths = {name: path or f"{toy}/questions/{name}.parquet" for name, path in paths.items()}
    for name, path in paths.items():
        words += _described(f"data.{name}", path or _asked(name.replace("_", "-"), f"data/{name}.jsonl"))
    words.append(f"run.dir=runs/{file.stem}")
    commands = "".join(f"#   masters-ray {name} {file}\n" for name in ("validate", "doctor", "plan", "run"))
    head = f"# {pair} on {machine}, by masters-ray init. masters-ray config {file} explains every key. Next:\n"
    told = explain.explained(load(base, words), base, words, changed=True)
    write_text(file, head + commands + told.replace("# command line", "# masters-ray init"))
    return file


def _asked(name: str, default: str, choices: list[str] | None = None) -> str:
    if not sys.stdin.isatty():
        expected = " or ".join(choices or ["a path"])
        raise ConfigError([Complaint(f"--{name}", expected, "none, and no terminal to ask", f"Write --{name} VALUE.")])
    return Prompt.ask(name, default=default, choices=choices, console=console)


def _gpus() -> list[int]:
    """Returns the memory of each GPU of this machine, MiB."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    return [int(one) for one in subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()]


def _holds(gpus: list[int], machine: str) -> bool:
    """Whether these GPUs, MiB each, are those of a machine such as 8x80gb. A card holds a little less than its name
    says: an L4 of 24 GB has 23,034 MiB."""
    if machine == "cpu":
        return not gpus
    count, size = map(int, re.findall(r"\d+", machine)[:2])
    return len(gpus) >= count and min(gpus) >= 950 * size


def _toy(folder: Path) -> Path:
    """Copies the toy pair and its questions, unless they lie there: whole or not at all."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
            for name in ("pair", "questions"):
                shutil.copytree(SHIPPED / name, Path(unfinished) / folder.name / name)
            (Path(unfinished) / folder.name).rename(folder)
    return folder


def _described(key: str, path: str, **fields: str) -> list[str]:
    """Returns the words that describe the rows at ``path``, with what the reader proposes for the first ones, and tells
    what they are. fields: as proposed for them before."""
    given: Any = {name: one if name == "turns" else one.strip("[]").split(", ") for name, one in fields.items()}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = DataSource(path=path, fields=RowFields(**given))
            loaded = data.load([source], 0, 1.0, spool=Path(scratch) / "rows.spool", first=20)
            first, taken, rejected = loaded[0], loaded.accepted, data.reasons(loaded.rejected)
    except DataError as error:
        proposed = fields | dict(re.findall(r"fields\.(\w+)=(\[[^]]*\]|[^\s,;:]+)", str(error)))
        if proposed == fields:
            raise
        return _described(key, path, **proposed)
    words = [f"{key}.path={path}", *(f"{key}.fields.{name}={one}" for name, one in fields.items())]
    say(f"{key}: {taken} of the first {loaded.sources[0].taken + loaded.sources[0].set_aside} questions can be used")
    say(f"  {' '.join([*words[1:], f'{len(first.pictures)} pictures:'])} {first.question} → {first.label}")
    for told in rejected:
        say(f"  set aside: {told}")
    return words
