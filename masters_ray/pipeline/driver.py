"""The driver of a run: rollouts and rewards, then learning, then what came of it.

    held-out accuracy of the untrained student
    for each stage, most masked first:  teacher masked at r ─► answers, verdicts, scores ─► store
    held-out accuracy of the unmasked teacher
    learner: stores in stage order, online iterations answered meanwhile ─► trained student
    held-out accuracy of the trained student ─► summary, report

With rollout.student_refresh=stage the learner comes after every stage, and its student writes in the next one.

What is finished stays finished: the same call goes on after the batches that are stored, or from the learner's last
checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from masters_ray import data, placement, report, schedule, store, weights
from masters_ray.actors import deployments
from masters_ray.actors.host import Role
from masters_ray.actors.replicas import Replicas
from masters_ray.config import Config
from masters_ray.errors import Complaint, ConfigError, LearnerError
from masters_ray.evaluate import refusals
from masters_ray.learner.job import LearnerJob, Pinned, StagePlan
from masters_ray.learner.trainer import exchange_of, fit
from masters_ray.pipeline import curriculum, evaluations, inputs, limits, outcome, rollouts, semi_online, stages
from masters_ray.pipeline.contents import Stored, say_damage
from masters_ray.pipeline.directory import RunDirectory
from masters_ray.pipeline.groups import Earlier, Recipe
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.semi_online import Asked, Engines, OnlineRollouts
from masters_ray.pipeline.verdicts import Judging, Verdicts
from masters_ray.placement import Turns
from masters_ray.progress import say, track

Block = list[tuple[schedule.Stage, range]]
"""Stages that one set of replicas makes, with the positions of their questions."""


def run(config: Config, directory: RunDirectory, config_file: str, turns: Turns | None = None) -> Path:
    """The whole run; Ray must be started. Returns the report's path. Raises a MastersError when a stage fails.

    turns: where learner and rollouts of online iterations take turns; default: they run beside each other.
    """
    if turns is not None:
        say(f"the learner and the rollouts take turns on {turns}: replicas sleep while the student learns")
    with Journal(directory, config_file) as journal:
        whole = _Run(config, directory, journal, turns)
        whole.to_the_end()
    whole.write_outcome()  # the journal knows the wall time now
    return report.write(directory.root)


def generate(config: Config, directory: RunDirectory, config_file: str, *, measure: bool = True) -> list[store.Folder]:
    """The part of a run that needs a teacher; Ray must be started. Returns the stores. ``run`` goes on with them, here
    or where the directory is moved to. measure: teacher and student on the held-out questions, too. Raises ConfigError
    when the student learns between the stages."""
    if config.rollout.student_refresh == "stage":
        complaint = Complaint(
            where="rollout.student_refresh",
            expected="run, to make all rollouts before anything is learned",
            found="stage",
            remedy="Set it, or call masters-ray run.",
        )
        raise ConfigError([complaint])
    with Journal(directory, config_file) as journal:
        whole = _Run(config, directory, journal)
        whole.generate(measure)
    return [directory.stage(stage.index) for stage, _ in whole.plan]


class _Run:
    """A run's questions and stages, and what is done with them."""

    def __init__(self, config: Config, directory: RunDirectory, journal: Journal, turns: Turns | None = None) -> None:
        self._config, self._directory, self._journal = config, directory, journal
        self._difficulties: curriculum.Difficulties | None = None
        self._engines = Engines(config, turns)
        self._judgings: dict[int, Judging] = {}
        self._quarantine = directory.file("quarantine.jsonl")
        with journal.phase("data"):
            self._train, self._held_out = inputs.load(config, directory.data)
            self._overlap = inputs.told(self._train, self._held_out)
        self.plan = inputs.plan(config, len(self._train.problems))
        self.iterations = schedule.iterations(self.plan, config.learner.groups_per_step, config.rollout.online_fraction)
        self._stored = Stored(config, directory, self.plan, self.iterations)
        self._held_out_digest = evaluations.digest_of(self._held_out.problems)
        self._note_rejected([])

    def to_the_end(self) -> None:
        """Rollouts, learning, accuracies."""
        with ExitStack() as kept, self._engines:
            online = any(one.online for one in self.iterations)
            # With several teachers the last one's engines are not those that are wanted first.
            self.generate(kept=kept if online and not self._config.growth else None)
            self._learn(self._stages, self._directory.student)
        for index in self._stages:
            semi_online.finish(self._directory.online(index), self._config.judge.rule)
        self._measure_trained()
        self._note_rejected(self._stages)

    def write_outcome(self) -> None:
        """Summary and examples."""
        outcome.write(self._config, self._directory, self._journal, self._train, self._held_out, self._overlap)

    def generate(self, measure: bool = True, kept: ExitStack | None = None) -> None:
        """Every stage's store and, if wanted, the accuracies of the untrained student and the unmasked last teacher.

        kept: closes the last replicas, which run on as those of online iterations, in place of this method.
        """
        blocks = self._blocks()
        for block in blocks:
            measured = ["student_before"] if block is blocks[0] else []
            measured += ["teacher"] if block is blocks[-1] else []
            self._make(block, measured if measure else [], kept if block is blocks[-1] else None)
            if self._refreshes and block is not blocks[-1]:
                last = block[-1][0].index
                self._learn(self._stages[: last + 1], self._directory.student_after(last))
        self._note_rejected(self._stages)

    @property
    def _stages(self) -> list[int]:
        return [stage.index for stage, _ in self.plan]

    @property
    def _refreshes(self) -> bool:
        return self._config.rollout.student_refresh == "stage"

    def _blocks(self) -> list[Block]:
        if self._refreshes:
            return [[one] for one in self.plan]
        return [list(block) for _, block in itertools.groupby(self.plan, key=lambda one: one[0].teacher)]

    def _make(self, block: Block, measured: Sequence[str], kept: ExitStack | None) -> None:
        """The stores of a block, and the accuracies in ``measured``, as far as they are not there. kept: as in
        ``generate``."""
        directory, journal = self._directory, self._journal
        todo = [(stage, part) for stage, part in block if not self._is_made(stage, part)]
        # Of a teacher, who may be large, the weights are not read once more.
        models = {"student_before": self._reference}
        if "teacher" in measured and not self._directory.student.exists():
            made = [directory.stage(stage.index) for stage, _ in block]
            evaluations.refuse_rows_of_another(made, directory.evaluation("teacher"), self._checkpoint(block))
        unmeasured = [name for name in measured if not self._is_measured(name, models.get(name))]
        if not todo and not unmeasured and not self._lacks_difficulties():
            return
        config = self._config.of_teacher(block[0][0].teacher)
        directory.rollouts.try_out()
        for folder in config.rollout.reuse:
            rollouts.stores_in(folder)
        writer = self._writer(block[0][0])
        student = self._reference if writer is None else weights.digest(writer)
        with journal.phase("start of the engines"):
            ratio = todo[0][0].ratio if todo else 0.0
            wanted = deployments.making(config, ratio, writer)
            replicas = Replicas(wanted if kept is None else self._engines.deployments(block[0][0].teacher, ratio))
        directory.claim()
        with ExitStack() as block_end:
            (block_end if kept is None else kept).enter_context(replicas)
            if kept is not None:
                self._engines.keep(block[0][0].teacher, replicas)
            if "student_before" in unmeasured:
                with journal.phase("evaluation before"):
                    self._evaluate(replicas, "student", "student_before", self._reference)
            questions = self._questions(replicas)
            for stage, part in todo:
                with journal.phase("rollouts"):
                    recipe = self._recipe(stage, student)
                    place, earlier = directory.stage(stage.index), self._earlier(config, stage)
                    rollouts.roll_out(
                        recipe, questions, part, replicas, place, earlier, self._verdicts, self._stored.left_out(stage)
                    )
            if "teacher" in unmeasured:
                with journal.phase("evaluation before"):
                    rollouts.mask_teachers(replicas.pools["teacher"], 0.0)
                    self._evaluate(replicas, "teacher", "teacher", weights.digest(self._checkpoint(block)))

    def _checkpoint(self, block: Block) -> Path:
        """Of the block's teacher."""
        return weights.locate(self._config.of_teacher(block[0][0].teacher).teacher.checkpoint)

    def _is_made(self, stage: schedule.Stage, part: range) -> bool:
        """``Stored.is_made``, also before it is known in which order the questions are asked."""
        problems = self._train.problems
        ordered = self._config.data.order == "seeded" or not self._difficulty().missing(problems)
        writer = self._writer(stage)
        student = self._reference if writer is None or not writer.exists() else weights.digest(writer)
        recipe = self._recipe(stage, student)
        return self._stored.is_made(stage, part, self._ordered() if ordered else problems, ordered, recipe.settings)

    def _recipe(self, stage: schedule.Stage, student: str) -> Recipe:
        """student: digest of the one that writes."""
        config = self._config.of_teacher(stage.teacher)
        return stages.recipe(config, stage, student, self._reference, self._judging(stage.teacher))

    def _questions(self, replicas: Replicas) -> data.Problems | curriculum.Ordered:
        """The training questions in the order in which they are asked. Asks the first teacher how hard they are, if
        conf wants that and it was not asked before."""
        problems = self._train.problems
        if self._config.data.order == "easy_to_hard" and self._difficulty().missing(problems):
            with self._journal.phase("difficulty"):
                teachers = replicas.pools["teacher"]
                rollouts.mask_teachers(teachers, 0.0)
                self._difficulty().ask(teachers, problems, self._config.rollout.batch_rows)
        return self._ordered()

    def _ordered(self) -> data.Problems | curriculum.Ordered:
        """The training questions in the order in which they are asked, once it is known how hard they are."""
        settings, problems = self._config.data, self._train.problems
        if settings.order == "seeded":
            return problems
        return curriculum.Ordered(problems, self._difficulty().order(problems, settings.max_unrated_share))

    def _lacks_difficulties(self) -> bool:
        """Whether online iterations will ask questions in an order that is not known yet: stores of another run have
        theirs in their rows."""
        online = any(one.online for one in self.iterations)
        ordered = self._config.data.order == "easy_to_hard"
        return online and ordered and bool(self._difficulty().missing(self._train.problems))

    def _difficulty(self) -> curriculum.Difficulties:
        if self._difficulties is None:
            teacher = weights.digest(weights.locate(self._config.teacher.checkpoint))
            folder = self._directory.file("difficulty")
            self._difficulties = curriculum.Difficulties(folder, self._config.data.difficulty, teacher)
        return self._difficulties

    def _writer(self, stage: schedule.Stage) -> Path | None:
        """The student that writes in a stage; None: the one before training."""
        return self._directory.student_after(stage.index - 1) if self._refreshes and stage.index else None

    @cached_property
    def _reference(self) -> str:
        """Digest of the student before training."""
        return weights.digest(weights.locate(self._config.student.checkpoint))

    def _judging(self, teacher: int) -> Judging:
        """Who judges the rollouts of one of the run's teachers."""
        if teacher not in self._judgings:
            self._judgings[teacher] = stages.judging(self._config.of_teacher(teacher), self._reference)
        return self._judgings[teacher]

    @cached_property
    def _verdicts(self) -> Verdicts:
        """What the judges said, beginning with what earlier calls stored."""
        found = Verdicts()
        for stage, _ in reversed(self.plan):
            folder = self._directory.stage(stage.index)
            if folder.has(store.MANIFEST):
                found.fill(self._judging(stage.teacher), folder)
        return found

    def _earlier(self, config: Config, stage: schedule.Stage) -> Earlier | None:
        """Rows with the answers of the student, who writes them once, if every stage has all data: of the first stage
        that has the same judge of them, or of the first one."""
        if stage.index == 0 or config.schedule.stage_data == "share" or self._refreshes:
            return None
        first = self.plan[0][0]
        for one, _ in self.plan[: stage.index]:
            if self._judging(one.teacher).identity("student") == self._judging(stage.teacher).identity("student"):
                first = one
                break
        return Earlier(rows=store.Lookup([self._directory.stage(first.index)]), judging=self._judging(first.teacher))

    def _learn(self, indices: Sequence[int], export_to: Path) -> None:
        """The student trained on these stages, unless it is there already."""
        if export_to.exists():
            return
        config, directory, journal = self._config, self._directory, self._journal
        stores = [directory.stage(index) for index in indices]
        manifests = [store.read_manifest(folder) for folder in stores]
        plans = tuple(
            StagePlan(
                stage=stage.index,
                ratio=stage.ratio,
                rows=manifest.rows,
                teacher=stage.teacher,
                teacher_digest=manifest.made_by["teacher_digest"],
            )
            for (stage, _), manifest in zip(self.plan, manifests, strict=False)
            if manifest is not None
        )
        iterations = tuple(one for one in self.iterations if one.stage in indices)
        job = LearnerJob(
            checkpoint=deployments.absolute(config.student.checkpoint),
            settings=config.learner,
            reward=config.reward,
            seed=config.run.seed,
            stages=plans,
            iterations=iterations,
            max_staleness=config.rollout.max_staleness,
            engine_dtype=config.student.engine.dtype,
            max_set_aside_share=config.rollout.max_set_aside_share,
            transfer=placement.transfer(config, self._engines.turns),
            turns=self._engines.turns is not None,
            export_to=export_to,
            adapters_to=directory.adapters,
            live=stages.live_sources(config) if config.learner.teacher == "live" else (),
            storage=directory.learner,
        )
        self._stored.check(indices)
        if job.online:
            with journal.phase("start of the engines"):
                self._engines.prepare(self._next_online(job))
        say(f"the learner starts{job.online_in_words}")
        with (
            journal.phase("learner"),
            track("learner: optimizer steps", len(job.steps), journal.steps_done()) as advance,
            self._online(job) as online,
        ):

            def on_news(news: Pinned) -> None:
                journal.take(news, advance)
                if news.left_out:
                    self._note_rejected(indices)

            try:
                fit(job, stores, on_news, online.exchange if online else None)
            except LearnerError as error:
                if online and online.error:
                    raise online.error from error
                raise
            if online and online.error:
                raise online.error

    def _next_online(self, job: LearnerJob) -> schedule.Stage | None:
        """The stage of the first online iteration that has no step yet; None: there is none."""
        done = self._journal.steps_done()
        return next((self.plan[one.stage][0] for one in job.iterations if one.online and one.number > done), None)

    @contextmanager
    def _online(self, job: LearnerJob) -> Iterator[OnlineRollouts | None]:
        """What answers the job's online iterations; None when there are none."""
        if not job.online:
            yield None
            return

        self._engines.give_way()
        self._journal.note("placement", "turns" if job.turns else "beside")
        asked = Asked(
            config=self._config,
            stages={stage.index: stage for stage, _ in self.plan},
            iterations={one.number: one for one in job.iterations if one.online},
            questions=self._ordered(),
            verdicts=self._verdicts,
            judging=self._judging,
            reference=self._reference,
        )
        with (
            exchange_of(job, self._config.rollout.max_wait_seconds, self._config.student.replicas) as exchange,
            OnlineRollouts(asked, self._directory, exchange, self._engines.of, turns=job.turns) as online,
        ):
            yield online

    def _measure_trained(self) -> None:
        trained = weights.digest(self._directory.student)
        if not self._is_measured("student_after", trained):
            with (
                self._journal.phase("evaluation after"),
                Replicas(deployments.measuring(self._config, self._directory.student)) as replicas,
            ):
                self._evaluate(replicas, "student", "student_after", trained)

    def _is_measured(self, name: str, model: str | None) -> bool:
        return evaluations.is_of(self._directory.evaluation(name), self._held_out_digest, model)

    def _evaluate(self, replicas: Replicas, role: Role, name: str, model: str) -> None:
        """model: digest of its weights."""
        title = f"held-out accuracy of {name.replace('_', ' ')}"
        longest = self._config.evaluation_tokens
        judge = replicas.pools["judge"] if self._config.evaluation.marked_by == "judge" else None
        rule, problems = self._config.judge.rule, self._held_out.problems
        marked = stages.evaluate(replicas.pools[role], judge, rule, problems, longest, title)
        # Once the student has learned, a picture that is gone must not cost summary and report.
        allowed = 1.0 if name == "student_after" else self._config.rollout.max_set_aside_share
        limits.check_held_out(refusals(marked), len(problems), allowed)
        evaluations.write(self._directory.evaluation(name), marked, self._held_out_digest, model)
        stages.say_accuracy(title, marked, longest, rule)

    def _note_rejected(self, finished: Sequence[int]) -> None:
        """quarantine.jsonl: the rows of the data, of the stages that are finished, of the evaluations, and those that
        the learner went on without."""
        stores = [store.read_accounts(self._directory.stage(index), on_damage=say_damage) for index in finished]
        in_stages = [row for accounts in stores for account in accounts.values() for row in account.rejected.values()]
        online = semi_online.rejected_in([self._directory.online(index) for index in finished])
        of_data = [*self._train.rejected, *self._held_out.rejected]
        marks = outcome.marks(self._directory) if finished else {}
        held_out = refusals(one for marked in marks.values() for one in marked)
        data.write_quarantine(self._quarantine, [*of_data, *in_stages, *online, *held_out, *self._journal.left_out()])
