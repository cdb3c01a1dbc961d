"""Which benchmarks there are: lmms-eval's task, what is reported, who judges, and the paper's figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import ConfigDict, TypeAdapter

from masters_ray.errors import Complaint, ConfigError
from masters_ray.progress import warn

_JUDGE = "A local vllm serve will do: --judge-url http://127.0.0.1:8000/v1"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    task: str  # lmms-eval's id of a task, or of a group of tasks whose questions are pooled
    name: str = ""
    metric: str | None = None  # what is reported; None: the task's first metric
    out_of: float = 1.0  # the metric's value when every answer is right
    judge: str | None = None
    """What the harness expects behind a judge's address, such as /chat/completions; None: a rule marks."""
    rule: str = ""  # how answers are marked, in words


@dataclass(frozen=True, kw_only=True)
class Suite:
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    benchmarks: list[Benchmark]
    paper: dict[str, list[float]] = field(default_factory=dict)
    """Part of a student's checkpoint → the paper's figure on each benchmark, in percent."""

    def chosen(self, tasks: list[str], *, judged: bool) -> list[Benchmark]:
        """Returns the benchmarks of these tasks, unknown ones too; without tasks all that can be marked, and says which
        are left out. judged: there is a judge. Raises ConfigError for tasks that need one where there is none."""
        known = {one.task: one for one in self.benchmarks}
        wanted = [known.get(task, Benchmark(task=task)) for task in tasks] or self.benchmarks
        unmarked = [one.task for one in wanted if one.judge is not None and not judged]
        if tasks and unmarked:
            raise ConfigError(
                [Complaint("--judge-url", f"a judge's address for {', '.join(unmarked)}", "none", _JUDGE)]
            )
        if unmarked:
            warn(f"left out, as they need a judge: {', '.join(unmarked)}. {_JUDGE}")
        return [one for one in wanted if one.task not in unmarked]

    def paper_of(self, student: str) -> dict[str, float]:
        """Returns task → the paper's figure for this checkpoint, a fraction; nothing for one that it does not have."""
        figures = next((row for name, row in self.paper.items() if name in student), [])
        return {one.task: figure / 100 for one, figure in zip(self.benchmarks, figures, strict=False)}


def read_suite(file: str) -> Suite:
    """Raises ConfigError, which says what is wrong."""
    try:
        return TypeAdapter(Suite).validate_python(yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        told, remedy = " ".join(str(error).split()), "conf/benchmarks/masters.yaml is an example."
        raise ConfigError([Complaint(file, "benchmarks in YAML (--benchmarks)", told, remedy)]) from error
