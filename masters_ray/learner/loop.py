"""What each worker of the group runs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.train
import torch
import torch.distributed
from ray.util.queue import Queue
from safetensors import SafetensorError
from torch import Tensor

from masters_ray import batching, store, weights
from masters_ray.config import Learner
from masters_ray.engines import adapters, hf
from masters_ray.errors import LearnerError, writing
from masters_ray.grpo import OldPolicy
from masters_ray.learner import agreement, work
from masters_ray.learner.checkpoints import Checkpoints
from masters_ray.learner.engine import StudentEngine
from masters_ray.learner.feed import Part, Step, ahead, before, own_parts, steps
from masters_ray.learner.job import GroupRewards, LearnerJob, LearnerNews
from masters_ray.learner.live import LiveTeacher
from masters_ray.learner.metrics import StepTally, StepTotals
from masters_ray.learner.packer import Packer
from masters_ray.learner.terms import batch_terms, objective
from masters_ray.packing import PackedBatch
from masters_ray.records import LeftOut, SkippedStep, StepMetrics
from masters_ray.schedule import Iteration
from masters_ray.weight_sync.broker import ask
from masters_ray.weight_sync.publisher import WeightPublisher, WeightSender

DATASET = "rollouts"
_ROWS_AT_A_TIME = 64
_SHOWN_GROUPS = 2
"""Groups of a step whose rewards are told."""


def train(config: dict[str, Any]) -> None:
    """The loop of one worker (``train_loop_per_worker``): every step's share of groups, checkpoints, the export."""
    job: LearnerJob = config["job"]
    torch.manual_seed(job.seed)
    if ray.train.torch.get_device().type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    worker = _Worker(job, config["news"], config["broker"])
    try:
        worker.compare(config["stores"])
        done = worker.resume()
        worker.publisher.begin(done)
        coming = worker.parts(done)
        for number in range(done + 1, len(job.steps) + 1):
            worker.step(coming)
            worker.publisher.publish(number)
            if number % job.settings.checkpoint_every == 0 or number == len(job.steps):
                worker.save(number)
        worker.checkpoints.wait()
        worker.export()
    finally:
        worker.close()


class _Worker:
    """One rank: its share of every step."""

    def __init__(self, job: LearnerJob, news: Queue, broker: Any) -> None:
        context = ray.train.get_context()
        self._rank, self._workers = context.get_world_rank(), context.get_world_size()
        self._job, self._news, self._broker = job, news, broker
        self._device = ray.train.torch.get_device()
        self._folder = weights.locate(job.checkpoint)
        settings = job.settings
        if job.turns and job.online:
            self._wait_for_the_turn()
        model = hf.load_model(self._folder, settings.dtype)
        if settings.lora.rank:
            adapters.add(model, settings.lora)
        else:
            hf.freeze(model, settings.frozen)
        student = hf.PackedStudent(model, settings.logits_mib * 2**20)
        if settings.activation_checkpointing:
            hf.checkpoint_activations(model)
        self._operations = work.OperationCounter(model)
        self._engine = StudentEngine(student, settings, self._device)
        self._live = LiveTeacher(job.live, self._device, settings.dtype) if job.live else None
        self._objective = objective(settings, job.reward)
        dtype = getattr(torch, settings.dtype)
        self._rate = work.matmul_rate(self._device, dtype)
        self._packer = Packer(self._folder, model, self._device, dtype)
        self._skipped_in_a_row = 0
        self._told = LearnerNews()
        self._largest_gap = agreement.largest_gap(settings, job.engine_dtype)
        self.publisher = self._publisher()
        self.checkpoints = Checkpoints(
            job.storage / "checkpoints", rank=self._rank, workers=self._workers, kept=settings.checkpoints_kept
        )

    def close(self) -> None:
        """Stop what runs beside."""
        self.checkpoints.close()
        self.publisher.close()

    def _publisher(self) -> WeightPublisher:
        job, sender = self._job, None
        if self._broker is not None and self._rank == 0 and job.transfer != "object_store":
            sender = WeightSender(self._broker, self._device, job.transfer)
        return WeightPublisher(
            self._broker,
            online=job.online,
            max_staleness=job.max_staleness,
            gather=self._as_checkpoint,
            barrier=self._wait_for_the_others,
            rank=self._rank,
            sender=sender,
        )

    def _wait_for_the_others(self) -> None:
        self._engine.over_workers(torch.zeros(1))

    def _as_checkpoint(self) -> dict[str, Tensor] | None:
        """The student's tensors as a checkpoint has them, adapters merged, on rank 0; the other workers gather with
        it."""
        state, settings = self._engine.trained_state(keep=self._rank == 0), self._job.settings
        if self._rank != 0:
            return None
        if settings.lora.rank:
            state = adapters.merged(state, self._folder, settings.lora)
        return hf.in_checkpoint(state, self._folder, settings.dtype)

    def _wait_for_the_turn(self) -> None:
        """Until engines that still work for a group of workers that was lost sleep."""
        if self._rank == 0:
            ask(self._broker, "begin", None, {})
        if self._workers > 1:
            torch.distributed.all_reduce(torch.zeros(1, device=self._device))

    def compare(self, stores: Sequence[store.Where]) -> None:
        """The student as it was loaded, untrained, with the engine's log-probabilities in the stores of all stages.
        Rows that are apart are not learned from; LearnerError when there are many of them."""

        def logprobs(batch: PackedBatch) -> Tensor:
            with torch.no_grad():
                return self._engine.terms(batch.to(self._device))[0]

        for plan, folder in zip(self._job.stages, stores, strict=True):
            table = agreement.sample(folder)
            tokens = store.sequence_tokens(table)
            rounds = batching.micro_batches(tokens, self._workers, self._job.settings.tokens_per_micro_batch)
            iteration = Iteration(number=0, stage=plan.stage, positions=range(0))
            step = Step(plan=plan, iteration=iteration, table=table, tokens=tokens, answer_tokens=0, rounds=rounds)
            [part] = own_parts([step], self._rank, self._packer.pack)
            found = agreement.compared(part, logprobs, self._engine.over_workers, self._largest_gap) if rounds else None
            if found is not None:
                self._report(LearnerNews(agreements=[found[0]], notes=[agreement.told(found[0])]))
                self._packer.unfit |= {(plan.stage, position): reason for position, reason in found[1].items()}

    def parts(self, done: int) -> Iterator[Part]:
        """This rank's part of every step after the first ``done``."""
        shard = ray.train.get_dataset_shard(DATASET)
        tables: Iterator[pa.Table] = iter(
            shard.iter_batches(batch_size=_ROWS_AT_A_TIME, batch_format="pyarrow", prefetch_batches=1)
        )
        budget = self._job.settings.tokens_per_micro_batch
        coming = steps(
            tables,
            self._job.steps,
            self._workers,
            budget,
            skip=done,
            fresh=self._take,
            max_staleness=self._job.max_staleness,
        )
        halts = before(self._job.online if self._job.turns else ())
        return ahead(own_parts(coming, self._rank, self._packer.pack), halts)

    def _take(self, number: int) -> pa.Table | None:
        if self._job.turns and self._device.type == "cuda":
            torch.cuda.empty_cache()  # for the engines
        found: pa.Table | None = ask(self._broker, "take", number)
        return found

    def resume(self) -> int:
        """Load the last checkpoint that is intact on every rank. Returns the steps that it has seen; 0 without one."""
        for found in reversed(self.checkpoints.complete()):
            if found.workers != self._workers:
                raise LearnerError(
                    f"{found.folder}: expected a checkpoint of {self._workers} workers, found one of {found.workers}. "
                    f"Set learner.workers={found.workers}, or delete {found.folder.parent} to train from the start."
                )
            intact = torch.tensor(float(self.checkpoints.intact(found)))
            if not self._engine.over_workers(intact, torch.distributed.ReduceOp.MIN):
                self._say(f"{found.folder} is damaged and passed over")
                continue
            state = self._engine.load(found.folder)
            torch.set_rng_state(state["random"])
            self._skipped_in_a_row = state["skipped_in_a_row"]
            self._report(LearnerNews.of(state["told"]))  # the driver may have died before it read them
            self.publisher.students = state.get("students", {})  # checkpoints of older versions have none
            self._say(f"the learner goes on after step {found.step}")
            return found.step
        return 0

    def step(self, coming: Iterator[Part]) -> None:
        """The updates of the step that comes, taken or skipped, and told to the driver."""
        asked = time.monotonic()
        part = next(coming)
        started = time.monotonic()
        if part.step.note:
            self._say(part.step.note)
        part = self._readable(part)
        step = part.step
        if not len(step.table):
            self._skip(step, "no question of it has a row that can be read")
            return
        old: list[list[OldPolicy]] = []
        first = last = None
        for _ in range(self._job.settings.updates_per_step):
            last = self._update(part, old)
            first = first or last
            if last is None:
                break
        if step.iteration.online and self._rank == 0 and self._broker is not None:
            ask(self._broker, "forget", step.number)
        if first and last:
            waited = started - asked if step.iteration.online else 0.0
            self._tell(first, last.totals.means["clipped"], time.monotonic() - started, waited)

    def _readable(self, part: Part) -> Part:
        """The step without the rows that some worker cannot read, which are told. Raises LearnerError when there are
        too many of them, or when this leaves a worker with nothing at all."""
        found = torch.zeros(len(part.step.table) + 1)
        found[list(part.unreadable)] = 1.0
        found[-1] = float(not part.micro_batches)
        *unreadable, idle = self._engine.over_workers(found).tolist()
        if not any(unreadable):
            return part
        told: list[Any] = [part.unreadable]
        if self._workers > 1:
            told = [None] * self._workers
            torch.distributed.all_gather_object(told, part.unreadable)
        rows = dict(sorted((index, row) for one in told for index, row in one.items()))
        self._report(LearnerNews(left_out=[LeftOut(step=part.step.number, rows=list(rows.values()))]))
        count, most = sum(len(one.rows) for one in self._told.left_out), self._job.most_unreadable
        first = next(iter(rows.values()))
        example = f"for example {first.row}, {first.reason}"
        if count > most:
            raise LearnerError(
                f"the learner cannot read {count} stored rows; rollout.max_set_aside_share allows {most} ({example}). "
                "Put their pictures back as they were, or raise it and call again."
            )
        part = part.without(rows)
        if idle and len(part.step.table):
            raise LearnerError(f"a worker can read no row of step {part.step.number}, others can ({example})")
        return part

    def _update(self, part: Part, old: list[list[OldPolicy]]) -> _Update | None:
        """One update of the weights; None when it was not taken. old: of the step's first update, micro-batch by
        micro-batch; filled if this is the first."""
        gradients, step, over_workers = self._engine.gradients, part.step, self._engine.over_workers
        again, groups = bool(old), len(part.step.table)
        tally = StepTally(groups)
        rate = learning_rate(self._job.settings, step.number)
        self._engine.set_learning_rate(rate)
        for index, micro in enumerate(part.micro_batches):
            batch = micro.batch.to(self._device)
            scores = self._live.scores(step.plan, batch) if self._live else None
            with self._operations.counted(batch):
                student = self._engine.terms(batch, scores)
            earlier = old[index] if again else None
            terms = batch_terms(self._objective, batch, *student, step.answer_tokens / groups, earlier)
            if not again:
                old.append([term.old for term in terms])
            weight = 0.0 if micro.filler else self._workers / groups
            gradients.add(torch.stack([term.loss for term in terms]).sum() * weight)
            if not micro.filler:
                tally.add(micro.groups, micro.indices, terms, batch, student[0])
        totals = tally.joined(over_workers, self._operations.take())
        if (norm := gradients.apply()) is None:
            losses = over_workers(tally.losses).tolist()
            bad = [id for id, loss in zip(step.table["id"].to_pylist(), losses, strict=True) if not math.isfinite(loss)]
            reason = f"the loss of {', '.join(bad)} is not finite" if bad else "its gradient is not finite"
            self._skip(step, reason, losses)
            return None
        if not again:
            agreement.check_on_policy(step, totals.gaps, self._largest_gap)
        self._skipped_in_a_row = 0
        return _Update(step=step, rate=rate, norm=norm, totals=totals, rewards=tally.rewards[:_SHOWN_GROUPS])

    def save(self, number: int) -> None:
        """This rank's part of a checkpoint after ``number`` steps."""
        self.publisher.forget_before(number)
        state = {
            "step": number,
            "students": self.publisher.students,
            "random": torch.get_rng_state(),
            "skipped_in_a_row": self._skipped_in_a_row,
            "told": self._told.as_plain(),
        }
        self.checkpoints.save(number, lambda folder: self._engine.save(folder, state))

    def export(self) -> None:
        """Rank 0 writes the trained student; the others gather with it."""
        state = self._engine.trained_state(keep=self._rank == 0)
        if self._rank == 0:
            settings = self._job.settings
            with writing(self._job.export_to, LearnerError, SafetensorError):
                if settings.lora.rank:
                    state = adapters.merged(state, self._folder, settings.lora, self._job.adapters_to)
                hf.export(state, self._folder, self._job.export_to, settings.dtype)

    def _skip(self, step: Step, reason: str, losses: Sequence[float] = ()) -> None:
        """Report a step that is not taken, and save its rows if it has any; stop when too many are skipped in a row.
        losses: of its groups."""
        self._skipped_in_a_row += 1
        folder = self._job.storage / "skipped" / f"step-{step.number:08d}"
        saved = str(folder) if losses else ""
        if losses and self._rank == 0:
            note = {"step": step.number, "reason": reason, "losses": [str(one) for one in losses]}
            with writing(folder, LearnerError):
                folder.mkdir(parents=True, exist_ok=True)
                pq.write_table(step.table, folder / "rows.parquet")
                (folder / "reason.json").write_text(json.dumps(note, indent=1), encoding="utf-8")
        skipped = SkippedStep(step=step.number, stage=step.plan.stage, reason=reason, saved=saved)
        self._report(LearnerNews(skipped=[skipped]))
        if self._skipped_in_a_row > (most := self._job.settings.max_skipped_in_a_row):
            where = f" Its rows are in {folder}." if saved else ""
            raise LearnerError(
                f"{self._skipped_in_a_row} steps in a row were skipped; the last was step {step.number}: {reason}."
                f"{where} learner.max_skipped_in_a_row is {most}."
            )

    def _tell(self, update: _Update, clipped: float, seconds: float, waited: float) -> None:
        memory = torch.tensor(float(work.peak_memory(self._device)))
        memory = self._engine.over_workers(memory, torch.distributed.ReduceOp.MAX)
        if self._rank != 0:
            return
        step, totals, ages = update.step, update.totals, update.step.ages
        tokens, updates = sum(step.tokens), self._job.settings.updates_per_step
        told = StepMetrics(
            step=step.number,
            stage=step.plan.stage,
            mask_ratio=step.plan.ratio,
            gradient_norm=update.norm,
            learning_rate=update.rate,
            groups=len(step.table),
            answer_tokens=totals.answer_tokens,
            tokens=tokens,
            tokens_per_second=updates * tokens / seconds,
            waste=1.0 - tokens / (step.capacity + totals.padding),
            seconds=seconds,
            waited=waited,
            fresh=len(ages),
            age=sum(ages) / len(ages) if ages else 0.0,
            behaviour_gap=totals.behaviour_gap,
            flop_utilisation=updates * totals.operations / seconds / (self._workers * self._rate),
            memory_gib=float(memory) / 2**30,
            **totals.means | {"clipped": clipped},
        )
        self._report(LearnerNews(steps=[told], rewards={step.number: update.rewards}))

    def _say(self, note: str) -> None:
        self._report(LearnerNews(notes=[note]))

    def _report(self, news: LearnerNews) -> None:
        self._told.add(news)
        if self._rank == 0:
            self._news.put(news)


@dataclass(frozen=True, kw_only=True)
class _Update:
    """An update that was taken."""

    step: Step
    rate: float
    norm: float
    totals: StepTotals
    rewards: list[GroupRewards]


def learning_rate(settings: Learner, step: int) -> float:
    """Linear over the first ``warmup_steps`` steps (step counts from 1), then constant."""
    return settings.learning_rate * min(1.0, step / (settings.warmup_steps + 1))
