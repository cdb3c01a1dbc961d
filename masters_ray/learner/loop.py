"""What each worker of the group runs."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.train
import torch
from PIL import Image
from torch import Tensor

from masters_ray import store, weights
from masters_ray.config import Learner
from masters_ray.data import decode
from masters_ray.divergence import top_k_jsd
from masters_ray.engines import hf
from masters_ray.engines.chat import Chat
from masters_ray.errors import LearnerError
from masters_ray.grpo import GroupTerms, answer_means, group_terms
from masters_ray.learner.engine import StudentEngine
from masters_ray.learner.job import GroupRewards, LearnerJob, StagePlan
from masters_ray.packing import PackedBatch, pack
from masters_ray.prompts import question_messages
from masters_ray.records import RolloutGroup, StepMetrics

DATASET = "rollouts"
_SHOWN_GROUPS = 2
"""Groups of a step whose rewards go to the board."""


def train(config: dict[str, Any]) -> None:
    """The loop of one worker (``train_loop_per_worker``): every step's share of groups, checkpoints, the export."""
    job: LearnerJob = config["job"]
    board: Any = config["board"]
    torch.manual_seed(job.seed)
    if ray.train.torch.get_device().type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    worker = _Worker(job)
    done = worker.engine.resume()
    steps = job.steps
    tables = _tables([groups for _, groups in steps], skip=done)
    for number, (plan, _groups) in list(enumerate(steps, 1))[done:]:
        metrics, rewards = worker.step(number, plan, next(tables))
        if worker.rank == 0:
            ray.get(board.pin.remote(metrics, rewards))
        if number % job.settings.checkpoint_every == 0 or number == len(steps):
            with tempfile.TemporaryDirectory() as folder:
                worker.engine.save(folder, number)
                ray.train.report({"step": number}, checkpoint=ray.train.Checkpoint.from_directory(folder))
    worker.export()
    ray.train.report({"step": len(steps)})


def _tables(sizes: Sequence[int], skip: int) -> Iterator[pa.Table]:
    """The dataset's rows in their order, ``sizes[i]`` for step i; the first ``skip`` steps are passed over."""
    shard = ray.train.get_dataset_shard(DATASET)
    batches = iter(shard.iter_batches(batch_size=max(sizes), batch_format="pyarrow", prefetch_batches=1))
    pending = store.SCHEMA.empty_table()
    expected = -1
    for index, size in enumerate(sizes):
        while len(pending) < size:
            try:
                pending = pa.concat_tables([pending, next(batches).select(store.SCHEMA.names)])
            except StopIteration:
                raise LearnerError(
                    f"the dataset ended at step {index + 1} of {len(sizes)}; the stores changed"
                ) from None
        step, pending = pending.slice(0, size), pending.slice(size)
        for stage, position in zip(step["stage"].to_pylist(), step["position"].to_pylist(), strict=True):
            if (key := stage * 2**40 + position) <= expected:
                raise LearnerError(f"rows came out of order at stage {stage}, position {position}")
            expected = key
        if index >= skip:
            yield step


def slots(groups: int, workers: int, micro_batches: int, rank: int) -> list[list[int]]:
    """Which of a step's groups each micro-batch of worker ``rank`` takes: dealt out in turn over workers.

    Example: 5 groups, 2 workers, 2 micro-batches: worker 0 takes [0, 4] then [2], worker 1 takes [1] then [3].
    """
    count = workers * micro_batches
    return [list(range(micro * workers + rank, groups, count)) for micro in range(micro_batches)]


class _Worker:
    """One rank: its share of every step."""

    def __init__(self, job: LearnerJob) -> None:
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.job = job
        self.device = ray.train.torch.get_device()
        self.folder = weights.locate(job.checkpoint)
        self.chat = Chat(self.folder)
        model = hf.load_model(self.folder, job.settings.dtype)
        if job.settings.freeze_vision:
            hf.freeze_vision(model)
        settings = job.settings
        self.micro_batches = settings.groups_per_step // (self.workers * settings.groups_per_micro_batch)
        self.engine = StudentEngine(hf.AnswerLogprobs(model), settings, self.micro_batches, self.device)
        self.pad_id = self.chat.tokenizer.pad_token_id or 0

    def step(self, number: int, plan: StagePlan, table: pa.Table) -> tuple[StepMetrics, list[GroupRewards]]:
        """One optimizer step on the groups of ``table``; metrics over all workers, rewards of the first groups."""
        started = time.monotonic()
        groups = len(table)
        totals = torch.zeros(len(_Totals.names), dtype=torch.float64)
        rewards: list[GroupRewards] = []
        rate = learning_rate(self.job.settings, number)
        self.engine.set_learning_rate(rate)
        for indices in slots(groups, self.workers, self.micro_batches, self.rank):
            # A rank with nothing left still takes part in the collectives: one group, weight 0.
            rows = [store.from_row(row) for row in table.take(indices or [0]).to_pylist()]
            terms, batch = self._terms(rows)
            share = sum(term.loss for term in terms) / groups if indices else 0.0 * terms[0].loss
            if not math.isfinite(float(share)):
                raise LearnerError(f"step {number}: the loss of {[row.problem.id for row in rows]} is not finite")
            self.engine.backward(share * self.workers)
            if indices:
                totals += _Totals.of(terms, batch)
                if self.rank == 0:
                    rewards += [_rewards(row, term) for row, term in zip(rows, terms, strict=True)]
        gradient_norm = self.engine.gradient_norm()
        totals = self.engine.sum_over_workers(totals)
        means = dict(zip(_Totals.names, (totals / groups).tolist(), strict=True))
        metrics = StepMetrics(
            step=number,
            stage=plan.stage,
            mask_ratio=plan.ratio,
            gradient_norm=gradient_norm,
            learning_rate=rate,
            groups=groups,
            answer_tokens=round(means.pop("answer_tokens") * groups),
            seconds=time.monotonic() - started,
            **means,
        )
        return metrics, rewards[:_SHOWN_GROUPS]

    def export(self) -> None:
        """Rank 0 writes the trained student; the others gather with it."""
        state = self.engine.gathered_state()
        if self.rank == 0:
            hf.export(state, self.folder, self.job.export_to, self.job.settings.dtype)

    def _terms(self, rows: list[RolloutGroup]) -> tuple[list[GroupTerms], PackedBatch]:
        prompts = [
            hf.prompt_tensors(self.engine.model, self.chat, question_messages(row.problem), _pictures(row))
            for row in rows
        ]
        batch = pack(rows, prompts, self.pad_id).to(self.device)
        logprobs = self.engine.answer_logprobs(batch)
        new = logprobs.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
        divergence = top_k_jsd(logprobs, batch.top_ids, batch.top_logprobs, batch.left_out)
        settings = self.job.settings
        terms = []
        for group in range(len(rows)):
            answers = batch.group_of == group
            tokens = answers[batch.answer_of]
            terms.append(
                group_terms(
                    new_logprobs=new[tokens],
                    reference_logprobs=batch.reference_logprobs[tokens],
                    token_jsd=divergence[tokens],
                    answer_of=batch.answer_of[tokens] - batch.answer_of[tokens].min(),
                    accuracy=batch.accuracy[answers],
                    alpha=self.job.alpha,
                    kl_beta=settings.kl_beta,
                    clip_epsilon=settings.clip_epsilon,
                    jsd_weight=settings.jsd_weight,
                )
            )
        return terms, batch


class _Totals:
    """Sums over groups that every rank adds up, in one tensor."""

    names = (
        "loss",
        "policy_loss",
        "kl",
        "jsd",
        "accuracy_reward",
        "distillation_reward",
        "advantage_spread",
        "flat_groups",
        "answer_tokens",
    )

    @staticmethod
    def of(terms: Sequence[GroupTerms], batch: PackedBatch) -> Tensor:
        accuracy = answer_means(batch.accuracy, batch.group_of, len(terms))
        rows = [
            (
                term.loss.detach(),
                term.policy_loss,
                term.kl,
                term.jsd,
                accuracy[index],
                term.distillation.mean(),
                term.advantages.std(correction=0),
                float(not term.advantages.any()),
                0.0,
            )
            for index, term in enumerate(terms)
        ]
        totals = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64).sum(0)
        totals[-1] = len(batch.targets)
        return totals


def learning_rate(settings: Learner, step: int) -> float:
    """Linear over the first ``warmup_steps`` steps (step counts from 1), then constant."""
    return settings.learning_rate * min(1.0, step / (settings.warmup_steps + 1))


def _pictures(group: RolloutGroup) -> list[Image.Image]:
    return [decode(picture) for picture in group.problem.pictures]


def _rewards(group: RolloutGroup, terms: GroupTerms) -> GroupRewards:
    return GroupRewards(
        stage=group.stage,
        position=group.position,
        divergences=terms.divergences.tolist(),
        distillation=terms.distillation.tolist(),
        advantages=terms.advantages.tolist(),
    )
