"""How far teacher and student are apart on stored rows, without learning from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from masters_ray.records import Source


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

    @torch.no_grad()
    def of(self, folder: str) -> tuple[list[Divergence], list[str]]:
        """Every answer of a finished store, in its order, a group at a time; which rows cannot be read, and why."""
        found, unreadable = [], []
        for group in store.read(folder):
            try:
                batch = self._packer.pack([group]).to(self._device)
            except UnreadableRowError as error:
                unreadable.append(str(error))
                continue
            _, per_token, _ = self._student(batch)
            nats = answer_means(per_token.float(), batch.answer_of, len(group.answers)).tolist()
            sources = [answer.judged.answer.source for answer in group.answers]
            found += [
                Divergence(position=group.position, kind=group.problem.kind, source=source, nats=value)
                for source, value in zip(sources, nats, strict=True)
            ]
        return found, unreadable


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
