"""Measures the divergence of teacher and student on stored rows, without training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ray
import torch
from ray.exceptions import RayError

from masters_ray import store
from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.batches import micro_batches
from masters_ray.learner.collate import Collator
from masters_ray.learner.trainer import environment
from masters_ray.method.grpo import segment_means
from masters_ray.models import hf, weights
from masters_ray.records import Rejected, Source


@dataclass(frozen=True, kw_only=True)
class Divergence:
    position: int
    kind: str
    source: Source
    nats: float  # D_j: mean JSD of stored teacher and student over one stored answer's tokens (METHOD 5)


def divergences(
    checkpoint: str, settings: Learner, stores: Sequence[store.Where]
) -> Iterator[tuple[list[Divergence], list[str]]]:
    """Runs ``measure`` as a Ray task with the CPUs and GPUs of a learner worker. Raises LearnerError when it fails."""
    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_retries": 0}
    task = ray.remote(measure).options(**options, runtime_env={"env_vars": environment(settings)})
    try:
        for found in task.remote(checkpoint, settings, [str(one) for one in stores]):
            yield ray.get(found)
    except RayError as error:
        raise LearnerError(f"the student's divergences could not be measured: {error}") from error


def measure(
    checkpoint: str, settings: Learner, stores: Sequence[store.Where]
) -> Iterator[tuple[list[Divergence], list[str]]]:
    """Yields per finished store every answer's divergence, by position, and "row, reason" of each unreadable row."""
    folder = weights.locate(checkpoint)
    device = torch.device("cuda" if settings.gpus else "cpu")
    model = hf.load_model(folder, settings.dtype)
    student = hf.PackedStudent(model, settings.logits_mib * 2**20).to(device)
    collator = Collator(folder, model, device, getattr(torch, settings.dtype))
    for where in stores:
        found: list[Divergence] = []
        reasons: list[str] = []
        for table in (store.read_shard(where, name) for name in store.shard_names(where)):
            failed: dict[int, Rejected] = {}
            for [indices] in micro_batches(
                store.sequence_tokens(table, collator.layout), 1, settings.tokens_per_micro_batch
            ):
                if (micro := collator.read(table, indices, failed)) is None:
                    continue
                with torch.no_grad():
                    _, per_token, _ = student(micro.batch.to(device))
                answers = [(row, one.judged.answer.source) for row in micro.groups for one in row.answers]
                means = segment_means(per_token.float().cpu(), micro.batch.answer_of, len(answers)).tolist()
                for (row, source), nats in zip(answers, means, strict=True):
                    found.append(Divergence(position=row.position, kind=row.problem.kind, source=source, nats=nats))
            reasons += [f"{row.row}, {row.reason}" for row in failed.values()]
        yield sorted(found, key=lambda one: one.position), reasons
