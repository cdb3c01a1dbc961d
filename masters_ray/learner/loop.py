"""The training loop that each worker runs: resume, steps, checkpoints, weight publishing, export."""

import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch
import torch.distributed
from pydantic import TypeAdapter
from ray.util.queue import Queue
from safetensors import SafetensorError
from torch import Tensor

from masters_ray import store
from masters_ray.config import Learner
from masters_ray.errors import LearnerError, writing
from masters_ray.learner import agreement, checkpoints, work
from masters_ray.learner.batches import Step, prefetch, steps
from masters_ray.learner.collate import Collator, WorkerStep, worker_steps
from masters_ray.learner.engine import StudentEngine
from masters_ray.learner.job import CheckpointSaved, LearnerJob, Report, StepReport, TakenStep, Told
from masters_ray.learner.live import LiveTeacher
from masters_ray.learner.metrics import StepTotals, step_totals
from masters_ray.method.grpo import OldPolicy, group_losses
from masters_ray.models import hf, weights
from masters_ray.records import LeftOut, SkippedStep, StepMetrics
from masters_ray.weight_sync.broker import ask
from masters_ray.weight_sync.publisher import WeightPublisher, WeightSender

DATASET = "rollouts"


def train(config: dict[str, Any]) -> None:
    """Runs the loop of one worker (Ray Train's ``train_loop_per_worker``). config: job, reports, stops, broker, stores.
    stops: a queue that is empty until the learner shall write a checkpoint and end."""
    job: LearnerJob = config["job"]
    torch.manual_seed(job.seed)
    if ray.train.torch.get_device().type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    worker = _Worker(job, config["reports"], config["broker"])
    try:
        worker.compare(config["stores"])
        done = worker.resume()
        worker.publisher.begin(done)
        last = job.until or len(job.steps)
        coming = worker.parts(done, last)
        for number in range(done + 1, last + 1):
            worker.step(coming)
            worker.publisher.publish(number)
            stops = number < last and worker.agrees_to_stop(config["stops"])
            if stops or number % job.settings.checkpoint_every == 0 or number == last:
                worker.save(number)
            if stops:
                worker.end_early()
                return
        worker.checkpoints.wait()
        worker.export()
    finally:
        worker.checkpoints.close()
        worker.publisher.close()


class _Worker:
    def __init__(self, job: LearnerJob, reports: Queue, broker: Any) -> None:
        context = ray.train.get_context()
        self._rank, self._workers = context.get_world_rank(), context.get_world_size()
        self._job, self._reports, self._broker = job, reports, broker
        self._device = ray.train.torch.get_device()
        self._folder = weights.locate(job.checkpoint)
        settings = job.settings
        if job.turns and job.online:
            # Engines that still work for a lost worker group must fall asleep before this one loads its model.
            if self._rank == 0:
                ask(broker, "begin", None, {})
            self._wait_for_the_others()
        self._report(Told(kind="begun", text=f"the learner loads {job.checkpoint}"))
        hf.check_names(self._folder)
        model = hf.load_model(self._folder, settings.dtype)
        if settings.lora.rank:
            hf.add_adapters(model, settings.lora)
        else:
            hf.freeze(model, settings.frozen)
        student = hf.PackedStudent(model, settings.logits_mib * 2**20)
        if settings.activation_checkpointing:
            hf.checkpoint_activations(model)
        self._operations = work.OperationCounter(model)
        self._engine = StudentEngine(student, settings, self._device)
        self._live = LiveTeacher(self._device, settings.dtype) if settings.teacher == "live" else None
        dtype = getattr(torch, settings.dtype)
        self._rate = work.matmul_rate(self._device, dtype)
        together = settings.zero_stage == 3 and self._workers > 1
        self._collator = Collator(self._folder, model, self._device, dtype, always_pictured=together)
        self._history: list[StepReport] = []
        self._largest_gap = agreement.largest_gap(settings, job.engine_dtype)
        sender = None
        if broker is not None and self._rank == 0 and job.transfer != "object_store":
            sender = WeightSender(broker, self._device, job.transfer)
        self.publisher = WeightPublisher(
            broker,
            online=job.online,
            max_staleness=job.max_staleness,
            gather=self._as_checkpoint,
            barrier=self._wait_for_the_others,
            rank=self._rank,
            sender=sender,
        )
        self.checkpoints = checkpoints.CheckpointWriter(
            job.storage / "checkpoints", rank=self._rank, workers=self._workers, kept=settings.checkpoints_kept
        )

    def _wait_for_the_others(self) -> None:
        meeting = torch.zeros(1, device=self._device)
        if self._workers > 1:
            torch.distributed.all_reduce(meeting)
        meeting.item()  # NCCL's all_reduce returns before it is done

    def _whole_student(self, adapters_to: Path | None = None) -> dict[str, Tensor] | None:
        """Returns the transformers model's weights, adapters merged (and written); None on all ranks but 0."""
        state, lora = self._engine.whole_weights(keep=self._rank == 0), self._job.settings.lora
        if state and lora.rank:
            return hf.merged(state, self._folder, lora, adapters_to)
        return state or None

    def _as_checkpoint(self) -> dict[str, Tensor] | None:
        state = self._whole_student()
        return None if state is None else hf.in_checkpoint(state, self._folder, self._job.settings.dtype)

    def compare(self, stores: Sequence[store.Where]) -> None:
        """Compares the untrained student's log-probabilities with the stored ones, in the stores of all stages."""
        self._report(Told(kind="begun", text="learner and engine are compared"))
        over_workers, bound = self._engine.over_workers, self._largest_gap
        for plan, folder in zip(self._job.stages, stores, strict=True):
            [part] = self._of_this_worker(
                [Step(plan=plan, number=0, table=agreement.sample(folder), layout=self._collator.layout)]
            )
            mismatch = agreement.compare(part, lambda one: self._engine(one.to(self._device))[0], over_workers, bound)
            if mismatch is not None:
                found, unfit = mismatch
                self._report(found)
                self._report(
                    f"stage {found.stage}: learner and engine agree on {found.rows} rows to {found.mean_gap:.1e} nats "
                    f"per token (the furthest, {found.row}; {found.bound:g} is allowed)"
                )
                self._collator.unfit |= unfit

    def agrees_to_stop(self, stops: Queue) -> bool:
        """Returns, on all ranks, whether rank 0 finds ``stops`` filled."""
        asked = torch.tensor(float(self._rank == 0 and not stops.empty()))
        return bool(self._engine.over_workers(asked, torch.distributed.ReduceOp.MAX))

    def end_early(self) -> None:
        """Tells the driver that every worker's part of the checkpoint is written."""
        self.checkpoints.wait()
        self._wait_for_the_others()
        self._report(None)

    def parts(self, done: int, last: int) -> Iterator[WorkerStep]:
        self._report(Told(kind="begun", text="the learner takes its first step"))
        job, shard = self._job, ray.train.get_dataset_shard(DATASET)
        coming = steps(
            iter(shard.iter_batches(batch_size=64, batch_format="pyarrow", prefetch_batches=1)),
            job.steps,
            skip=done,
            fresh=self._fresh_rows,
            max_staleness=job.max_staleness,
            layout=self._collator.layout,
        )
        parts = self._of_this_worker(itertools.islice(coming, last - done))
        # In turns a worker may wait for an iteration's rows only once it has learned from the one before.
        return parts if job.turns and job.online else prefetch(parts)

    def _of_this_worker(self, planned: Iterable[Step]) -> Iterator[WorkerStep]:
        budget = self._job.settings.tokens_per_micro_batch
        return worker_steps(planned, self._collator, rank=self._rank, workers=self._workers, budget=budget)

    def _fresh_rows(self, number: int) -> pa.Table | None:
        if self._job.turns and self._device.type == "cuda":
            torch.cuda.empty_cache()  # leaves the memory to the engines
        return ask(self._broker, "take", number)

    def resume(self) -> int:
        """Loads the newest intact checkpoint and returns its step, or 0. LearnerError when the worker count differs."""
        for found in reversed(checkpoints.find(self._job.storage / "checkpoints")):
            if found.workers != self._workers:
                raise LearnerError(
                    f"{found.folder}: expected a checkpoint of {self._workers} workers, found one of {found.workers}. "
                    f"Set learner.workers={found.workers}, or delete {found.folder.parent} to train from the start."
                )
            intact = torch.tensor(float(found.intact(self._rank)))
            if not self._engine.over_workers(intact, torch.distributed.ReduceOp.MIN):
                self._report(Told(kind="warning", text=f"{found.folder} is damaged and passed over"))
                continue
            self._report(Told(kind="begun", text=f"the learner loads {found.folder}"))
            state = self._engine.load(found.folder)
            torch.set_rng_state(state["random"])
            self.publisher.students = state["students"]
            for told in TypeAdapter(list[StepReport]).validate_json(state["history"]):
                self._report(told)  # again: the driver may have died before it read it
            self._report(f"the learner goes on after step {found.step}")
            return found.step
        return 0

    def step(self, coming: Iterator[WorkerStep]) -> None:
        asked = time.monotonic()
        part = next(coming)
        started = time.monotonic()
        if part.step.note:
            self._report(Told(kind="warning", text=part.step.note))
        part = self._readable(part)
        step, updates = part.step, self._job.settings.updates_per_step
        if not len(step.table):
            self._skip(step, "no question of it has a row that can be read")
            return
        old: list[OldPolicy | None] = [None] * len(part.micro_batches)
        taken: list[StepTotals] = []
        while len(taken) < updates and (totals := self._update(part, old)) is not None:
            taken.append(totals)
        if step.online and self._rank == 0 and self._broker is not None:
            ask(self._broker, "forget", step.number)
        if len(taken) < updates:
            return
        first, last = taken[0], taken[-1]
        seconds, tokens = time.monotonic() - started, sum(step.tokens)
        memory = torch.tensor(float(work.peak_memory(self._device)))
        memory = self._engine.over_workers(memory, torch.distributed.ReduceOp.MAX)
        metrics = StepMetrics(
            step=step.number,
            stage=step.plan.stage,
            mask_ratio=step.plan.ratio,
            learning_rate=learning_rate(self._job.settings, step.number),
            groups=len(step.table),
            answer_tokens=store.answer_tokens(step.table),
            tokens=tokens,
            tokens_per_second=updates * tokens / seconds,
            padding_fraction=1.0 - tokens / first.capacity,
            seconds=seconds,
            rollout_wait_s=started - asked if step.online else 0.0,
            fresh=len(step.ages),
            age=sum(step.ages) / max(1, len(step.ages)),
            mfu=updates * first.operations / seconds / (self._workers * self._rate),
            memory_gib=float(memory) / 2**30,
            **first.metrics | {"clip_fraction": last.metrics["clip_fraction"]},
        )
        self._report(TakenStep(metrics=metrics, rewards=first.rewards))

    def _readable(self, part: WorkerStep) -> WorkerStep:
        """Returns the step without the rows that some worker cannot read. Raises LearnerError for too many of them."""
        of_workers: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_workers, (part.unreadable, not part.micro_batches))
        rows = dict(sorted((index, row) for unreadable, _ in of_workers for index, row in unreadable.items()))
        if not rows:
            return part
        self._report(LeftOut(step=part.step.number, rows=list(rows.values())))
        count = sum(len(one.rows) for one in self._history if isinstance(one, LeftOut))
        questions = sum(len(one.positions) for one in self._job.iterations)
        most = max(1, int(self._job.max_set_aside_share * questions))
        example = next(f"for example {row.row}, {row.reason}" for row in rows.values())
        if count > most:
            raise LearnerError(
                f"the learner cannot read {count} stored rows; rollout.max_set_aside_share allows {most} ({example}). "
                "Put their pictures back as they were, or raise it and call again."
            )
        part = part.without(rows)
        if any(idle for _, idle in of_workers) and len(part.step.table):
            raise LearnerError(f"a worker can read no row of step {part.step.number}, others can ({example})")
        return part

    def _update(self, part: WorkerStep, old: list[OldPolicy | None]) -> StepTotals | None:
        """Updates the weights once; None when skipped. old: of each micro-batch, set by the step's first update."""
        step, engine, is_first = part.step, self._engine, old[0] is None
        groups, made, operations = len(step.table), [], 0
        tokens_per_group = store.answer_tokens(step.table) / groups
        for index, micro in enumerate(part.micro_batches):
            batch = micro.batch.to(self._device)
            scores = self._live.scores(step.plan, batch) if self._live else None
            student = engine(batch, scores)
            operations += self._operations.of(batch)
            outputs = group_losses(self._job.settings, self._job.reward, batch, student, tokens_per_group, old[index])
            old[index] = outputs.old
            engine.add_gradient(outputs.loss.sum() * (self._workers / groups if micro.indices else 0.0))
            made.append((micro, dataclasses.replace(outputs, loss=outputs.loss.detach()), student[0].detach()))
        totals = step_totals(groups, made, engine.over_workers, operations, rank=self._rank, workers=self._workers)
        norm = engine.update(learning_rate(self._job.settings, step.number))
        if norm is None:
            ids = step.table["id"].to_pylist()
            bad = [id for id, loss in zip(ids, totals.losses, strict=True) if not math.isfinite(loss)]
            what = f"the loss of {', '.join(bad)}" if bad else f"the gradient of its rows {ids[0]} … {ids[-1]}"
            self._skip(step, f"{what} is not finite")
            return None
        if is_first:
            agreement.check_fresh(step, totals.gaps, self._largest_gap)
        totals.metrics["grad_norm"] = norm
        return totals

    def save(self, number: int) -> None:
        history = json.dumps([dataclasses.asdict(one) for one in self._history])
        state = {"students": self.publisher.students, "history": history, "random": torch.get_rng_state()}
        self.checkpoints.save(number, partial(self._engine.save, state=state))
        self._report(CheckpointSaved(step=number))

    def export(self) -> None:
        self._report(Told(kind="begun", text=f"the student is exported to {self._job.export_to}"))
        with writing(self._job.export_to, LearnerError, SafetensorError):
            state = self._whole_student(self._job.adapters_to)
            if state is not None:
                hf.export(state, self._folder, self._job.export_to, self._job.settings.dtype)

    def _skip(self, step: Step, reason: str) -> None:
        """Reports a skipped step. Raises LearnerError when too many steps in a row were skipped."""
        self._report(SkippedStep(step=step.number, stage=step.plan.stage, reason=reason))
        since = itertools.takewhile(lambda one: not isinstance(one, TakenStep), reversed(self._history))
        in_a_row = sum(isinstance(one, SkippedStep) for one in since)
        if in_a_row > (most := self._job.settings.max_skipped_in_a_row):
            raise LearnerError(
                f"{in_a_row} steps in a row were skipped; the last was step {step.number}: {reason}. "
                f"learner.max_skipped_in_a_row is {most}."
            )

    def _report(self, report: Report | None) -> None:
        if isinstance(report, StepReport):
            self._history.append(report)
        if self._rank == 0:
            self._reports.put(report)


def learning_rate(settings: Learner, step: int) -> float:
    """Returns the learning rate: rises linearly over ``warmup_steps`` steps (step counts from 1), then constant."""
    return settings.learning_rate * min(1.0, step / (settings.warmup_steps + 1))
