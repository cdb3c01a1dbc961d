"""Turns stored rows into packed micro-batches: a worker's part of every optimizer step, and its unreadable rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from masters_ray import store
from masters_ray.data import decode
from masters_ray.errors import UnreadableRowError
from masters_ray.kernels import attention
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack, unreadable
from masters_ray.learner.batches import Step
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf
from masters_ray.models.chat import Chat
from masters_ray.records import Rejected, RolloutGroup

Pack = Callable[[Sequence[RolloutGroup]], PackedBatch]
"""Raises UnreadableRowError for the first group that cannot be packed."""


class Collator:
    """Packs groups into batches: applies the chat template and the processor to each question and its pictures."""

    def __init__(self, checkpoint: Path, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._chat = Chat(checkpoint)
        self._multiple = 128 if attention.kernel_for(device, dtype) == "flex" else 1
        self._pad_id = self._chat.tokenizer.pad_token_id or 0
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self.unfit: dict[tuple[int, int], str] = {}
        """(stage, position) → why the stored row there must not be trained on."""

    def pack(self, groups: Sequence[RolloutGroup]) -> PackedBatch:
        """Returns one batch, on the CPU. Raises UnreadableRowError for the first group that is ``unfit``, lacks a
        picture, breaks the processor, has another prompt length than the engine's, or a token beyond the vocabulary."""
        return pack(groups, [self._prompt(group) for group in groups], self._pad_id, self._multiple)

    def _prompt(self, group: RolloutGroup) -> PromptTensors:
        reason = self.unfit.get((group.stage, group.position), "") if group.version is None else ""
        if reason:
            raise unreadable(group, reason)
        try:
            pictures = [decode(picture) for picture in group.problem.pictures]
            prompt = hf.prompt_tensors(self._model, self._chat, question_messages(group.problem), pictures)
        except MemoryError:
            raise
        except Exception as error:  # processors raise errors of any kind
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise unreadable(group, f"the processor cannot read its question or pictures ({told})") from error
        if (found := len(prompt.input_ids)) != group.prompt_tokens:
            raise unreadable(
                group,
                f"expected a prompt of {group.prompt_tokens} tokens, as the engine read it, found {found}. Did its "
                "pictures or the student's processor files change since?",
            )
        largest = max((token for one in group.answers for token in one.judged.answer.token_ids), default=0)
        if largest >= self._vocabulary:
            raise unreadable(group, f"an answer has token {largest}; the student knows {self._vocabulary} tokens")
        return prompt


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One worker's part of a round."""

    indices: list[int]
    """Rows of the step. Empty for a dummy micro-batch, whose loss has weight 0: a worker without rows must still take
    part in the collectives."""
    groups: list[RolloutGroup]
    batch: PackedBatch


@dataclass(frozen=True, kw_only=True)
class WorkerStep:
    """One worker's part of a step."""

    step: Step
    micro_batches: list[MicroBatch]
    """One per round; empty when the worker cannot read any row."""
    unreadable: dict[int, Rejected]
    """Row of the step → why this worker, to which it was assigned, cannot read it."""

    def without(self, rows: Collection[int]) -> WorkerStep:
        """Returns this part for the step without ``rows``, none of which may be in a micro-batch other than a dummy."""
        kept = [index for index in range(len(self.step.table)) if index not in rows]
        place = {index: number for number, index in enumerate(kept)}
        rounds = [[[place[index] for index in one if index in place] for one in each] for each in self.step.rounds]
        step = replace(self.step, table=self.step.table.take(pa.array(kept, pa.int64())), rounds=rounds)
        made = [replace(one, indices=[place[index] for index in one.indices]) for one in self.micro_batches]
        return WorkerStep(step=step, micro_batches=made, unreadable={})


def own_parts(steps: Iterable[Step], rank: int, pack: Pack) -> Iterator[WorkerStep]:
    """Yields worker ``rank``'s part of every step. Packs all its micro-batches first, so that the step's readable rows
    are known before its first gradient. A dummy holds a readable row of the step, or else the last micro-batch read."""
    spare: MicroBatch | None = None
    for step in steps:
        failed: dict[int, Rejected] = {}
        made: list[MicroBatch] = []
        for workers in step.rounds:
            one = read(step.table, workers[rank], pack, failed)
            spare = one or spare
            if one is None:
                others = (index for index in [*workers[0], *range(len(step.table))] if index not in failed)
                dummies = (read(step.table, [index], pack, {}) for index in others)
                dummy = next((found for found in dummies if found), spare)
                one = replace(dummy, indices=[]) if dummy else None
            made += [one] if one else []
        yield WorkerStep(step=step, micro_batches=made if len(made) == len(step.rounds) else [], unreadable=failed)


def read(table: pa.Table, indices: Sequence[int], pack: Pack, failed: dict[int, Rejected]) -> MicroBatch | None:
    """Packs the readable rows of ``indices`` and adds the others to ``failed``. Returns None when no row is
    readable."""
    left = list(indices)
    while left:
        groups = store.groups(table.take(left))
        try:
            return MicroBatch(indices=left, groups=groups, batch=pack(groups))
        except UnreadableRowError as error:
            bad = left.pop([group.position for group in groups].index(error.position))
            reason = f"stage {error.stage}, position {error.position}: {error.reason}"
            failed[bad] = Rejected(row=error.row, reason=reason, kind="learner")
    return None
