"""The quick checks: files, tokens, prompts, and this machine with its memory, disk, ports, driver and places. They read
headers and the first questions, and start nothing."""

import shutil
import socket
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from masters_ray.checks import pair, places, rows
from masters_ray.checks.context import CheckContext
from masters_ray.checks.prompts import PROMPT_CHECKS
from masters_ray.learner.work import available_memory
from masters_ray.method.prompts import question_messages
from masters_ray.models import weights
from masters_ray.models.chat import Chat
from masters_ray.plan import gib
from masters_ray.plan.forecast import uses_gpus
from masters_ray.plan.memory import BYTES, learner_bytes
from masters_ray.preflight import chosen
from masters_ray.preflight.findings import Finding, judged, passed

_FROM = "template and processor files of one model: copy them from the other, if they are meant to be equal"
_DRIVER = 580  # oldest major version of the driver for CUDA 13, which torch's and vLLM's packages are built for
_SHM = 2**30


def of_context(name: str, context: CheckContext, good: str, *checks: Callable[[CheckContext], None]) -> Finding:
    """Runs checks that leave complaints in a context. good: what is said when they leave none."""
    own = replace(context, complaints=[])
    for check in checks:
        with own.guarded(name, "a good one"):
            check(own)
    found = "; ".join(f"{one.where}: {one.found}" for one in own.complaints)
    return judged(name, not found, found or good, " ".join(one.remedy for one in own.complaints))


def checkpoints(context: CheckContext) -> Finding:
    good = ", ".join(
        f"{name} {weights.parameter_count(folder) / 1e6:,.0f} M" for name, folder in context.folders.items()
    )
    return of_context("checkpoints", context, f"parameters: {good}", pair.models, pair.maskable)


def tokenizer(context: CheckContext) -> Finding:
    return of_context("tokenizer", context, "the same ids", partial(_with_teachers, pair.same_tokenizer))


def _with_teachers(check: Callable[[CheckContext, str, Path, Path], None], context: CheckContext) -> None:
    for name in _teachers(context):
        check(context, name, context.folders[name], context.folders["student"])


def _teachers(context: CheckContext) -> list[str]:
    return [name for name in context.folders if name != "student"]


def vocabulary(context: CheckContext) -> Finding:
    """Compares the tokenizer's largest id with the rows of each model's embeddings."""
    told, faults = [], []
    for name, folder in context.folders.items():
        tokens = max(Chat(folder).tokenizer.get_vocab().values()) + 1
        width = weights.vocabulary(folder)
        told.append(f"{name} {width} rows for {tokens} tokens")
        if width is not None and width < tokens:
            faults.append(f"{name} has {width} rows for {tokens} tokens")
    return judged("vocabulary", not faults, "; ".join(faults or told))


def template(context: CheckContext) -> Finding:
    problem = context.loaded["train"][0]
    texts = {name: Chat(folder).text(question_messages(problem)) for name, folder in context.folders.items()}
    other = [name for name in _teachers(context) if texts[name] != texts["student"]]
    figure = f"{', '.join(other)} asks {problem.id} in other words" if other else "one text in all models"
    return judged("template", not other, figure, f"Look at the {_FROM}; --skip template goes on with both.")


def data(context: CheckContext) -> Finding:
    found = of_context("data", context, "", *(partial(rows.source, name=name) for name in ("train", "held_out")))
    counts = ", ".join(f"{len(loaded)} {name}" for name, loaded in context.loaded.items())
    return replace(found, figure=found.figure or f"{counts} questions were read")


def prompt(name: str, context: CheckContext) -> Finding:
    """Makes one of the ``PROMPT_CHECKS`` for each model and the chosen questions."""
    problems = chosen(context.loaded["train"])
    for of, folder in context.folders.items():
        chat = Chat(folder)
        for problem in problems:
            try:
                PROMPT_CHECKS[name](chat, problem)
            except Exception as error:  # noqa: BLE001 - processors raise errors of any kind
                return judged(name, False, f"{of}, {problem.id}: {error}", f"Look at the {_FROM}.")
    if (
        name == "end_token"
        and (found := of_context(name, context, "", partial(_with_teachers, pair.common_end))).figure
    ):
        return found
    return passed(name, f"{len(problems)} questions, {len(context.folders)} models")


def memory(context: CheckContext) -> Finding:
    """Compares what one worker and all engines of this machine hold with its memory; on GPUs, a worker with its GPU."""
    config, folders = context.config, context.folders
    learner = learner_bytes(config.learner, folders["student"])
    if config.learner.gpus:
        import torch

        if not torch.cuda.is_available():
            return Finding(name="memory", verdict="not done", figure="this machine has no GPU")
        room = torch.cuda.get_device_properties(0).total_memory
        figure = f"a learner worker holds {gib(learner.device)} of its GPU's {gib(room)}"
        remedy = "Raise learner.zero_stage, workers or offload, set lora.rank, or lower tokens_per_micro_batch."
        return judged("memory", learner.device < room, figure, remedy)
    engines = sum(
        model.replicas * BYTES[model.engine.dtype] * weights.parameter_count(folders[name])
        + model.replicas * (model.engine.kv_cache_memory_bytes or 2**30)
        for name, model in config.models.items()
        if name in folders
    )
    needed, room = max(engines, learner.device * config.learner.workers), available_memory()
    figure = f"engines hold {gib(engines)}, the learner {gib(learner.device)}, {gib(room)} are available"
    return judged("memory", needed < room, figure, "Fewer replicas, smaller models, or another machine.")


def disk(context: CheckContext) -> Finding:
    return of_context("disk", context, "enough for the learner's checkpoints and the student", places.room)


def credentials(context: CheckContext) -> Finding:
    return of_context("credentials", context, "run.dir and rollout.store can be written", places.written)


def shm(_: CheckContext) -> Finding:
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return judged("shm", free >= _SHM, f"{gib(free)} free, {gib(_SHM)} wanted")


def ports(_: CheckContext) -> Finding:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname(), timeout=5):
        return passed("ports", f"listened on and reached port {one.getsockname()[1]}")


def driver(context: CheckContext) -> Finding:
    if not uses_gpus(context.config):
        return Finding(name="driver", verdict="not done", figure="no GPU is asked for")
    version = Path("/proc/driver/nvidia/version")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    major = next((int(word.split(".")[0]) for word in text.split() if word[:3].isdigit() and "." in word), 0)
    figure = f"version {major}" if major else "no NVIDIA driver"
    return judged("driver", major >= _DRIVER, f"{figure}, {_DRIVER} or newer is wanted")


def compiler(context: CheckContext) -> Finding:
    if not uses_gpus(context.config):
        return Finding(name="compiler", verdict="not done", figure="no GPU is asked for")
    found = shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    figure = f"{found or 'no gcc or clang'}, {header if header.is_file() else f'no {header}'}"
    return judged("compiler", bool(found) and header.is_file(), figure)


NEEDS = {"prompt": ("data", "picture_tokens", "start_token"), "checkpoints": (), "data": ()}
"""Check → others that must not have failed before; of those that are not named: data."""
FILES: dict[str, Callable[[CheckContext], Finding]] = {
    **{check.__name__: check for check in (checkpoints, tokenizer, vocabulary, data, template)},
    **{name: partial(prompt, name) for name in PROMPT_CHECKS},
}
MACHINE = {check.__name__: check for check in (memory, disk, shm, ports, driver, compiler, credentials)}
