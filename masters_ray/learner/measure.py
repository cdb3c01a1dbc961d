"""How far teacher and student are apart on stored rows, without learning from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import ray
import torch
from ray.exceptions import RayError

from masters_ray import store, weights
from masters_ray.config import Learner
from masters_ray.engines import hf
from masters_ray.errors import LearnerError, UnreadableRowError
from masters_ray.grpo import answer_means
from masters_ray.learner.packer import Packer
from masters_ray.learner.trainer import environment
from masters_ray.packing import PackedBatch, sequence_tokens
from masters_ray.records import RolloutGroup, Source


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Of one stored answer."""

    position: int
    kind: str
    source: Source
    nats: float
    """D_j: mean JSD of the stored teacher and the student over its tokens (METHOD 5)."""


class Measure:
    """The student in a process of its own."""

    def __init__(self, checkpoint: str, settings: Learner) -> None:
        folder = weights.locate(checkpoint)
        self._device = torch.device("cuda" if settings.gpus else "cpu")
        model = hf.load_model(folder, settings.dtype)
        self._student = hf.PackedStudent(model, settings.logits_mib * 2**20).to(self._device)
        self._packer = Packer(folder, model, self._device, getattr(torch, settings.dtype))
        self._budget = settings.tokens_per_micro_batch

    def of(self, folder: str) -> tuple[list[Divergence], list[str]]:
        """Every answer of a finished store, in its order; which rows cannot be read, and why."""
        self._unreadable: list[str] = []
        found = [one for groups in self._batches(store.read(folder)) for one in self._measured(groups)]
        return found, self._unreadable

    def _batches(self, groups: Iterable[RolloutGroup]) -> Iterator[list[RolloutGroup]]:
        """Neighbours within the budget of tokens; a larger group goes alone."""
        batch: list[RolloutGroup] = []
        tokens = 0
        for group in groups:
            own = sequence_tokens(group)
            if batch and tokens + own > self._budget:
                yield batch
                batch, tokens = [], 0
            batch.append(group)
            tokens += own
        if batch:
            yield batch

    def _packed(self, groups: list[RolloutGroup]) -> PackedBatch | None:
        """A batch of the groups that can be read, which stay in the list; None when there is none."""
        while groups:
            try:
                return self._packer.pack(groups)
            except UnreadableRowError as error:
                self._unreadable.append(str(error))
                groups[:] = [group for group in groups if group.position != error.position]
        return None

    def _measured(self, groups: list[RolloutGroup]) -> list[Divergence]:
        batch = self._packed(groups)
        if batch is None:
            return []
        batch = batch.to(self._device)
        with torch.no_grad():
            _, per_token, _ = self._student(batch)
        nats = answer_means(per_token.float(), batch.answer_of, len(batch.accuracy)).tolist()
        answers = [(group, answer.judged) for group in groups for answer in group.answers]
        return [
            Divergence(
                position=group.position,
                kind=group.problem.kind,
                source=judged.answer.source,
                nats=value,
            )
            for (group, judged), value in zip(answers, nats, strict=True)
        ]


def divergences(
    checkpoint: str, settings: Learner, stores: Sequence[store.Where]
) -> Iterator[tuple[list[Divergence], list[str]]]:
    """``Measure.of`` each store in turn, measured on the cluster with what ``learner`` reserves for a worker. Raises
    LearnerError."""
    actor = (
        ray.remote(Measure)
        .options(num_cpus=settings.cpus, num_gpus=settings.gpus, runtime_env={"env_vars": environment(settings)})
        .remote(checkpoint, settings)
    )
    try:
        for folder in stores:
            yield ray.get(actor.of.remote(str(folder)))
    except RayError as error:
        raise LearnerError(f"the student's divergences could not be measured: {error}") from error
    finally:
        ray.kill(actor)
