"""Turns stored rows into packed micro-batches: a worker's part of every optimizer step, and its unreadable rows."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import torch
from PIL import Image

from masters_ray import store
from masters_ray.data import decode
from masters_ray.errors import UnreadableRowError
from masters_ray.kernels import attention
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack, pack_rows
from masters_ray.learner.batches import Step, micro_batches
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.records import Picture, Problem, Rejected, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    indices: list[int]
    """Rows of the step. Empty for a dummy, of loss weight 0: a worker without rows must take part in collectives."""
    groups: list[RolloutGroup]
    batch: PackedBatch


class Collator:
    """Packs rows into batches: applies the chat template and the processor to each question and its pictures."""

    def __init__(
        self, checkpoint: Path, model: Any, device: torch.device, dtype: torch.dtype, *, always_pictured: bool = False
    ) -> None:
        """always_pictured: give a batch without pictures a prompt with one, to which there is no answer. At ZeRO stage
        3 all workers must pass the vision tower together."""
        self._model, self._always_pictured = model, always_pictured
        self._blank: PromptTensors | None = None
        self.chat = Chat(checkpoint)
        family = weights.architecture(checkpoint).family
        self.layout, self._padded = family.layout, family.padded
        self._multiple = 128 if attention.kernel_for(device, dtype) == "flex" else 1
        self.pad_id = self.chat.tokenizer.pad_token_id or 0
        self._vocabulary: int = model.config.get_text_config().vocab_size
        self.unfit: dict[tuple[int, int], str] = {}  # (stage, position) → why its stored row must not be trained on

    def read(self, table: pa.Table, indices: Sequence[int], failed: dict[int, Rejected]) -> MicroBatch | None:
        """Packs the readable rows of ``indices`` on the CPU, None without any, and adds the others to ``failed``."""
        rows: dict[int, tuple[RolloutGroup, PromptTensors]] = {}
        for index, group in zip(indices, store.groups(table.take(pa.array(indices, pa.int64()))), strict=True):
            try:
                rows[index] = group, self.prompt(group)
            except UnreadableRowError as error:
                reason = f"stage {group.stage}, position {group.position}: {error}"
                failed[index] = Rejected(row=group.problem.id, reason=reason, kind="learner")
        if not rows:
            return None
        groups = [group for group, _ in rows.values()]
        return MicroBatch(
            indices=list(rows), groups=groups, batch=self.batch(groups, [one for _, one in rows.values()])
        )

    def batch(self, groups: Sequence[RolloutGroup], prompts: Sequence[PromptTensors]) -> PackedBatch:
        if self._always_pictured and not any(one.vision for one in prompts):
            prompts = [*prompts, self._pictured()]
        if self.layout == "rows":
            return pack_rows(groups, prompts, self.pad_id, self._padded)
        return pack(groups, prompts, self.pad_id, self._multiple, self._padded)

    def _pictured(self) -> PromptTensors:
        """Returns a prompt with a blank picture."""
        if self._blank is None:
            asked = question_messages(Problem(id="", question="?", label="", pictures=(Picture(data=b""),)))
            self._blank = hf.prompt_tensors(self._model, self.chat, asked, [Image.new("RGB", (64, 64))])
        return self._blank

    def prompt_of(self, group: RolloutGroup) -> PromptTensors:
        """Returns a row's prompt, unchecked. Raises what the processor raises."""
        pictures = [decode(picture) for picture in group.problem.pictures]
        return hf.prompt_tensors(self._model, self.chat, question_messages(group.problem), pictures)

    def prompt(self, group: RolloutGroup) -> PromptTensors:
        """Returns a row's prompt. Raises UnreadableRowError for a row that cannot or must not be trained on."""
        if group.version is None and (reason := self.unfit.get((group.stage, group.position))):
            raise UnreadableRowError(reason)
        for token_ids in (answer.judged.answer.token_ids for answer in group.answers):
            if max(token_ids, default=self._vocabulary) >= self._vocabulary:
                raise UnreadableRowError(f"an answer has no tokens, or one beyond the student's {self._vocabulary}")
        try:
            prompt = self.prompt_of(group)
        except MemoryError:
            raise
        except Exception as error:  # processors raise errors of any kind
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UnreadableRowError(f"the processor cannot read its question or pictures ({words})") from error
        if (found := len(prompt.input_ids)) != group.prompt_tokens:
            raise UnreadableRowError(
                f"expected a prompt of {group.prompt_tokens} tokens, as the engine read it, found {found}. Did its "
                "pictures or the student's processor files change since?"
            )
        return prompt


@dataclass(frozen=True, kw_only=True)
class WorkerStep:
    step: Step
    micro_batches: list[MicroBatch]  # one per round; empty when the worker cannot read any row
    unreadable: dict[int, Rejected]  # row of the step → why this worker, to which it was assigned, cannot read it

    def without(self, rows: Collection[int]) -> Self:
        """Returns this part for the step without ``rows``, none of which may be in a micro-batch other than a dummy."""
        kept = [index for index in range(len(self.step.table)) if index not in rows]
        place = {index: number for number, index in enumerate(kept)}
        step = replace(self.step, table=self.step.table.take(pa.array(kept, pa.int64())))
        made = [replace(one, indices=[place[index] for index in one.indices]) for one in self.micro_batches]
        return replace(self, step=step, micro_batches=made, unreadable={})


def worker_steps(
    steps: Iterable[Step], collator: Collator, *, rank: int, workers: int, budget: int
) -> Iterator[WorkerStep]:
    """Yields worker ``rank``'s part of every step, whole, so that its readable rows are known before its first
    gradient. A dummy holds the step's first row that this worker can read. budget: tokens of a micro-batch."""
    for step in steps:
        failed: dict[int, Rejected] = {}
        made: list[MicroBatch] = []
        for of_workers in micro_batches(step.tokens, workers, budget):
            micro = collator.read(step.table, of_workers[rank], failed)
            if micro is None:
                others = (index for index in range(len(step.table)) if index not in failed)
                readable = (one for index in others if (one := collator.read(step.table, [index], {})))
                micro = next((replace(one, indices=[]) for one in readable), None)
            made += [micro] if micro else []
        yield WorkerStep(step=step, micro_batches=made, unreadable=failed)
