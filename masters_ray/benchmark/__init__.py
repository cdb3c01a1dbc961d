"""``masters-ray benchmark``: measures teacher, student before and student after on public benchmarks with lmms-eval.

conf/benchmarks/masters.yaml ─► Benchmark ─► lmms-eval, a process per model and task ─► BenchmarkScore ─►
benchmarks.json, summary.json, report.html. What was measured of a checkpoint is not measured again.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from masters_ray import config as configuration
from masters_ray import report
from masters_ray.benchmark.harness import Harness
from masters_ray.benchmark.suite import read_suite
from masters_ray.config import Config, HostedModel
from masters_ray.files import write_json
from masters_ray.models import weights
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say
from masters_ray.report.render import share
from masters_ray.report.summary import BENCHMARKS, SUMMARY, BenchmarkRow, read_benchmarks, read_summary

Measurable = tuple[Path, str, HostedModel]  # checkpoint, its digest, and how it is loaded


def measure(file: str, overrides: list[str], suite_file: str, tasks: list[str], harness: Harness) -> Path:
    """Measures what has not been measured and writes benchmarks.json after each measurement; of a finished run also
    summary.json and report.html. tasks: lmms-eval's ids; none: all of the suite that need no judge, or have one.
    Returns the last file. Raises ConfigError, CheckpointError, HarnessError, StoreError."""
    config, suite = configuration.load(file, overrides), read_suite(suite_file)
    chosen, paper = suite.chosen(tasks, judged=bool(harness.judge_url)), suite.paper_of(config.student.checkpoint)
    harness = harness.proven(judges=any(one.judge is not None for one in chosen))
    directory = RunDirectory(config)
    with directory.locked():
        models, rows = dict(_models(config, directory)), read_benchmarks(directory.root)
        current = {(name, digest) for name, (_, digest, _) in models.items()}
        for row in rows.values():
            for name in [name for name, score in row.scores.items() if (name, score.digest) not in current]:
                del row.scores[name]
        for one in chosen:
            scores = rows[one.task].scores if one.task in rows else {}
            row = BenchmarkRow(name=one.name or one.task, paper=paper.get(one.task), scores=scores)
            rows[one.task] = row
            for name, (checkpoint, digest, hosted) in models.items():
                if name in scores:
                    continue
                told = f"{row.name} of the {name.replace('_', ' ')}"
                folder = directory.file("benchmarks") / one.task / f"{name}-{digest[:12]}"
                if not folder.exists():
                    harness.run(folder, told, one, checkpoint, hosted, config.evaluation_tokens)
                scores[name] = harness.score(folder, one, digest)
                say(f"{told}: {share(scores[name])}")
                write_json(directory.file(BENCHMARKS), rows)
        if not directory.finished:
            return directory.file(BENCHMARKS)
        write_json(directory.file(SUMMARY), replace(read_summary(directory.root), benchmarks=rows))
        return report.write(directory.root)


def _models(config: Config, directory: RunDirectory) -> Iterator[tuple[str, Measurable]]:
    """Yields the last teacher, and the students that there are."""
    teacher = config.of_teacher(len(config.growth)).teacher
    for name, hosted in (("teacher", teacher), ("student_before", config.student)):
        folder = weights.locate(hosted.checkpoint).absolute()
        yield name, (folder, weights.digest(folder), hosted)
    if directory.student.exists():
        yield "student_after", (directory.student, weights.digest(directory.student), config.student)
    else:
        say(f"{directory.student} is not there yet: only teacher and student before training are measured")
