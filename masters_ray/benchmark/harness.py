"""Calls lmms-eval in an environment of its own, and reads what it writes."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.request import Request, urlopen

from masters_ray.benchmark.suite import Benchmark
from masters_ray.config import HostedModel
from masters_ray.errors import HarnessError, writing
from masters_ray.evaluate import normal, wilson
from masters_ray.files import HALF_WRITTEN, read_record, read_records
from masters_ray.progress import say
from masters_ray.report.summary import BenchmarkScore

_VERSION = "from importlib.metadata import version; print(version('lmms-eval'))"
_RESULTS = "_results.json"
_SHOWN = 25  # lines of a log that an error shows


class _Part(NamedTuple):
    """One task's value of a metric over n questions; error: its standard error, NaN for marks of 0 and 1 or unknown."""

    metric: str
    value: float
    n: int
    error: float


@dataclass(frozen=True)
class Harness:
    python: Path
    include: Path | None = None  # folder with tasks of one's own
    judge_url: str = ""  # OpenAI-compatible address that ends in /v1; its key is OPENAI_API_KEY
    judge_model: str = ""  # default: the first that the address serves
    version: str = ""

    def proven(self, *, judges: bool) -> Self:
        """Returns the harness with its version and its judge's name. Raises HarnessError when it cannot be called, or
        judges and no judge answers: lmms-eval marks what its judge does not answer as wrong, or by chance."""
        try:
            call = subprocess.run([self.python, "-c", _VERSION], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            remedy = "Call make harness, or name a Python that has it (--harness)."
            raise HarnessError(f"{self.python}: expected a Python with lmms-eval, found none. {remedy}") from error
        model = self.judge_model
        if judges:
            try:
                asked = Request(f"{self.judge_url}/models", headers={"Authorization": f"Bearer {_key()}"})
                with urlopen(asked, timeout=60) as reply:
                    served = [one["id"] for one in json.load(reply)["data"]]
                model = served[served.index(model) if model else 0]
            except (OSError, ValueError, LookupError, TypeError) as error:
                told = f"{self.judge_url}: expected a judge that serves {model or 'a model'}, found none ({error})"
                raise HarnessError(f"{told}. Start it, or mend --judge-url and --judge-model.") from error
        return replace(self, version=call.stdout.strip(), judge_model=model)

    def run(
        self, folder: Path, told: str, benchmark: Benchmark, checkpoint: Path, hosted: HostedModel, tokens: int
    ) -> None:
        """Has a model answer a benchmark; ``folder`` appears once all is written. told: what is measured; tokens: most
        of an answer, where the task does not allow more. Raises HarnessError with the log's name and end."""
        begun = folder.with_name(folder.name + HALF_WRITTEN)
        shutil.rmtree(begun, ignore_errors=True)
        log = begun / "log.txt"
        given = {name: value for name, value in vars(hosted.engine).items() if value is not None}
        del given["max_pictures"]  # a benchmark's questions have as many as they have
        given |= {"model": checkpoint, "tensor_parallel_size": hosted.tensor_parallel, "max_new_tokens": tokens}
        given |= {"trust_remote_code": False}
        words = [self.python, "-m", "lmms_eval", "--model", "vllm", "--tasks", benchmark.task, "--log_samples"]
        words += ["--model_args", ",".join(f"{name}={value}" for name, value in given.items())]
        words += ["--batch_size", hosted.engine.max_num_seqs, "--output_path", begun]
        words += ["--include_path", self.include] if self.include else []
        say(f"{told}: lmms-eval {self.version} measures; its log is {log}")
        with writing(log):
            begun.mkdir(parents=True)
            with log.open("wb") as output:
                # In a session of its own, so that its engines end with it.
                process = subprocess.Popen(
                    list(map(str, words)),
                    env=self._environment(benchmark),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    code = process.wait()
                finally:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if not any(begun.rglob(f"*{_RESULTS}")):  # its exit code is 0 after most errors
            lines = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8", errors="replace")).splitlines()
            end = "\n".join(lines[-_SHOWN:])
            raise HarnessError(f"{told}: lmms-eval wrote no results (exit code {code}). Its log {log} ends:\n{end}")
        with writing(folder):
            begun.rename(folder)

    def _environment(self, benchmark: Benchmark) -> dict[str, str]:
        own = dict(os.environ)
        if token := own.pop("HF_TOKEN", ""):  # under this name lmms-eval writes it into its log
            own["HUGGING_FACE_HUB_TOKEN"] = token
        if benchmark.judge is not None:
            own |= {"API_TYPE": "openai", "OPENAI_API_URL": self.judge_url + benchmark.judge}
            own |= {"OPENAI_API_KEY": _key(), "MODEL_VERSION": self.judge_model}
        return own

    def score(self, folder: Path, benchmark: Benchmark, digest: str) -> BenchmarkScore:
        """Reads what ``run`` left of a checkpoint with this digest. The interval is normal where single answers have
        other marks than 0 and 1 and lmms-eval gives standard errors; otherwise Wilson's, which no marks between 0 and 1
        exceed. Raises StoreError for files that cannot be read, HarnessError for a metric that is no fraction."""
        file = next(folder.rglob(f"*{_RESULTS}"))
        results = read_record(file, dict[str, Any], f"Delete {folder} to measure again.")
        parts = [_part(file, results, task, benchmark.metric) for task in results["configs"]]
        n = sum(part.n for part in parts)
        value = sum(part.value * part.n for part in parts) / n / benchmark.out_of if n else math.nan
        if not 0 <= value <= 1:
            remedy = "Give metric and out_of in a file such as conf/benchmarks/masters.yaml (--benchmarks)."
            raise HarnessError(f"{file}: expected {parts[0].metric} to be a fraction, found {value}. {remedy}")
        error = math.hypot(*(part.error * part.n for part in parts)) / n / benchmark.out_of
        return BenchmarkScore(
            **vars(wilson(value * n, n) if math.isnan(error) else normal(value, error, n)),
            metric=parts[0].metric,
            digest=digest,
            harness=self.version,
            task_version=", ".join(sorted({str(version) for version in results["versions"].values()})),
            judge=self.judge_model if benchmark.judge is not None else "",
        )


def _part(file: Path, results: dict[str, Any], task: str, metric: str | None) -> _Part:
    found = results["results"][task]
    metric = metric or results["configs"][task]["metric_list"][0]["metric"]
    samples = file.with_name(file.name.replace(_RESULTS, f"_samples_{task}.jsonl"))
    lines = read_records(samples, dict[str, Any], f"Delete {samples.parent.parent} to measure again.")
    marks = [line[metric] for line in lines if metric in line]
    key = next((key for key in found if key.split(",")[0] == metric), None)
    if key is None:
        raise HarnessError(f"{file}: expected {metric} of {task}, found {', '.join(found)}. Name another metric.")
    error = found.get(key.replace(",", "_stderr,", 1))
    known = isinstance(error, float) and not all(mark in (0, 1) for mark in marks)
    # MathVista's task gives none when no answer is right.
    return _Part(metric, found[key] or 0.0, len(marks), error if known else math.nan)


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or "none"
