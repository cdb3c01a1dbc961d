"""What the steps of a run share: its questions, its stages, and its replicas."""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from pathlib import Path

from masters_ray import store
from masters_ray.config import Config
from masters_ray.evaluate import refusals
from masters_ray.files import write_lines
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.pipeline import held_out, inputs, machine
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.held_out import HeldOut
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.parallel import run_all
from masters_ray.pipeline.proof import Proof
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import Doing
from masters_ray.replicas import processes
from masters_ray.replicas.placement import Turns
from masters_ray.replicas.spawn import Replicas
from masters_ray.replicas.spec import ReplicaSpec, in_turns, specs


class ReplicaOwner:
    """Starts replicas when they are needed, keeps them while the same key is asked for, and stops them. Only one set of
    them runs at a time, so that sets never share devices."""

    def __init__(self, config: Config, turns: Turns | None) -> None:
        """turns: the node on which learner and rollouts take turns, if they do. Raises ConfigError when engines on the
        same GPU are configured to take more memory than it has."""
        self.turns = turns
        self._config = config
        self._key: Hashable = None
        self._replicas: Replicas | None = None
        for teacher in range(len(config.schedules) if turns is not None else 0):
            self._online_specs(teacher, 0.0)  # for its ConfigError

    def get(self, key: Hashable, wanted: Callable[[], list[ReplicaSpec]]) -> Replicas:
        """Returns the replicas started under this key, else stops all and starts ``wanted``. Raises ReplicaError when
        they cannot start."""
        if self._replicas is None or key != self._key:
            self.close()
            self._replicas, self._key = Replicas(wanted()), key
        return self._replicas

    def online(self, teacher: int, ratio: float) -> Replicas:
        """Returns the replicas of online iterations. teacher: its number. ratio: of its mask, if it is started now."""
        return self.get(("online", teacher), lambda: self._online_specs(teacher, ratio))

    def give_way(self) -> None:
        """In turns: returns once all replicas have freed their GPU memory. No call may be in progress on them. Raises
        as ``Pool.sleep``."""
        if self.turns is not None and self._replicas is not None:
            run_all([pool.sleep for pool in self._replicas.pools.values()])

    def close(self) -> None:
        """Stops the replicas and drops their calls in progress."""
        replicas, self._replicas = self._replicas, None
        if replicas is not None:
            replicas.close()

    def _online_specs(self, teacher: int, ratio: float) -> list[ReplicaSpec]:
        config = self._config.of_teacher(teacher)
        online = processes.for_rollouts(config, learned=True, follows=config.judge.follows_student)
        wanted = specs(config, online, ratio)
        return wanted if self.turns is None else in_turns(wanted, self.turns.gpus)


class RunContext:
    """The state that the steps of a run share. The constructor loads the data and plans the stages."""

    def __init__(self, config: Config, directory: RunDirectory, journal: Journal, owner: ReplicaOwner) -> None:
        self.config, self.directory, self.journal, self.owner = config, directory, journal, owner
        journal.event("code", machine.code())
        journal.event("nodes", machine.nodes())
        with journal.phase("data"), Doing("the questions are read"):
            self.train, self.held_out_data = inputs.load(config, directory.data)
            self.overlap = inputs.report_loaded(self.train, self.held_out_data)
        self.plan = inputs.plan(config, len(self.train))  # each stage with the positions of its questions
        self.stages = [stage for stage, _ in self.plan]
        self.iterations = schedule.iterations(self.plan, config.learner.groups_per_step, config.rollout.online_fraction)
        self.online = any(iteration.online for iteration in self.iterations)
        self.refreshes = config.rollout.student_refresh == "stage"
        self.questions = Questions(config, self.train, directory.file("difficulty"))
        self.proof = Proof(config, journal)
        self.measured = HeldOut(config, directory.root / "evaluation", self.held_out_data)
        self.write_quarantine([])

    @cached_property
    def reference(self) -> str:
        """Digest of the student before training, the reference policy."""
        return weights.digest(weights.locate(self.config.student.checkpoint))

    @cached_property
    def course(self) -> HeldOut:
        """Measures the student while it learns."""
        asked = inputs.some(self.held_out_data, self.config.evaluation.questions, self.config.run.seed)
        return HeldOut(self.config, self.directory.students, asked)

    def measure_student(self, by: HeldOut, name: str, checkpoint: Path) -> None:
        """Starts replicas of the student in ``checkpoint``, measures it as ``name``, and stops them."""
        wanted = partial(specs, self.config, processes.for_measuring(self.config), student=checkpoint)
        by.measure(self.owner.get(name, wanted).pools, "student", name, weights.digest(checkpoint))
        self.owner.close()

    def write_quarantine(self, finished: Sequence[schedule.Stage]) -> None:
        """Writes quarantine.jsonl: rejected rows of the data, of the ``finished`` stages and their online iterations,
        of the evaluations, and rows that the learner left out of a step."""
        stores = [place(stage.index) for place in (self.directory.stage, self.directory.online) for stage in finished]
        accounts = [account for folder in stores for account in store.read_accounts(folder).values()]
        in_stages = [row for account in accounts for row in account.rejected.values()]
        marks = held_out.all_marks(self.directory) if finished else {}
        measured = refusals(mark for marked in marks.values() for mark in marked)
        of_data = [*self.train.rejected, *self.held_out_data.rejected]
        rows = [*of_data, *in_stages, *measured, *self.journal.left_out()]
        write_lines(self.directory.file("quarantine.jsonl"), rows)
