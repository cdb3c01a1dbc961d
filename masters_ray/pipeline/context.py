"""What the steps of a run share: its questions, its stages, and their recipes and stores."""

from collections.abc import Sequence
from functools import cached_property

from masters_ray import store
from masters_ray.config import Config
from masters_ray.evaluate import refusals
from masters_ray.files import write_lines
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.pipeline import held_out, inputs
from masters_ray.pipeline.curriculum import Questions
from masters_ray.pipeline.held_out import HeldOut
from masters_ray.pipeline.journal import Journal
from masters_ray.pipeline.owner import ReplicaOwner
from masters_ray.pipeline.run_dir import RunDirectory


class RunContext:
    """The state that the steps of a run share. The constructor loads the data and plans the stages."""

    def __init__(self, config: Config, directory: RunDirectory, journal: Journal, owner: ReplicaOwner) -> None:
        self.config, self.directory, self.journal, self.owner = config, directory, journal, owner
        with journal.phase("data"):
            self.train, self.held_out_data = inputs.load(config, directory.data)
            self.overlap = inputs.report_loaded(self.train, self.held_out_data)
        self.plan = inputs.plan(config, len(self.train))
        """Each stage with the positions of its questions."""
        self.stages = [stage for stage, _ in self.plan]
        self.iterations = schedule.iterations(self.plan, config.learner.groups_per_step, config.rollout.online_fraction)
        self.online = any(iteration.online for iteration in self.iterations)
        self.refreshes = config.rollout.student_refresh == "stage"
        """Whether the student learns after each stage, and the trained student answers in the next."""
        self.questions = Questions(config, self.train, directory.file("difficulty"))
        self.measured = HeldOut(config, directory, self.held_out_data)
        self.write_quarantine([])

    @cached_property
    def reference(self) -> str:
        """Digest of the student before training, the reference policy."""
        return weights.digest(weights.locate(self.config.student.checkpoint))

    def write_quarantine(self, finished: Sequence[schedule.Stage]) -> None:
        """Writes quarantine.jsonl: rejected rows of the data, of the ``finished`` stages and their online iterations,
        of the evaluations, and rows that the learner left out of a step."""
        places = (self.directory.stage, self.directory.online)
        in_stages = [
            row
            for folder in (place(stage.index) for place in places for stage in finished)
            for account in store.read_accounts(folder).values()
            for row in account.rejected.values()
        ]
        marks = held_out.all_marks(self.directory) if finished else {}
        measured = refusals(mark for marked in marks.values() for mark in marked)
        of_data = [*self.train.rejected, *self.held_out_data.rejected]
        rows = [*of_data, *in_stages, *measured, *self.journal.left_out()]
        write_lines(self.directory.file("quarantine.jsonl"), rows)
