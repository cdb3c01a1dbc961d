"""Measures accuracy on the held-out questions: greedy answers, their marks, and the files that hold them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters_ray import remarks, store
from masters_ray.config import Config, Rule
from masters_ray.errors import DataError, StoreError
from masters_ray.evaluate import Marked, accuracy, cut_share, refusals
from masters_ray.files import read_record, write_json
from masters_ray.method.marking import right
from masters_ray.models import weights
from masters_ray.pipeline.inputs import digest_of
from masters_ray.pipeline.parallel import map_unordered
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import say, track, warn
from masters_ray.records import Problem, Refused, Reply
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.pool import Pool
from masters_ray.replicas.processes import Role

_AT_A_TIME = 128  # questions in each call to a replica
MODELS = ("teacher", "student_before", "student_after")


@dataclass(frozen=True, kw_only=True)
class HeldOutMarks:
    """A file of held-out answers with their marks. questions, model: digests of the questions and the weights."""

    questions: str
    model: str
    marks: list[Marked]


class HeldOut:
    """Measures models on held-out questions, and stores their marks."""

    def __init__(self, config: Config, folder: Path, problems: Sequence[Problem]) -> None:
        self._config, self._folder, self._problems = config, folder, problems
        self._digest = digest_of(problems)

    def is_measured(self, name: str, model: str | None) -> bool:
        """Returns whether marks of ``name`` exist for these questions and, unless ``model`` is None, for the weights
        with this digest. Prints why an existing file is measured again."""
        found = self._stored(name)
        if found is None or (found.questions == self._digest and model in (None, found.model)):
            return found is not None
        warn(f"{name}: other held-out questions or other weights than there are now; it is measured again")
        return False

    def measure(self, pools: Mapping[Role, Pool], role: Role, name: str, model: str) -> None:
        """Has the pool of ``role`` answer the questions and stores the marks as ``name``. model: digest of its weights.
        Raises DataError when more than rollout.max_set_aside_share are refused (all, by the trained student)."""
        title = f"held-out accuracy of {name.replace('_', ' ').replace('-', ' ')}"
        config, longest = self._config, self._config.evaluation_tokens
        judge = pools["judge"] if config.marks_by_judge else None
        marks_all = config.evaluation.marked_by == "judge"
        marked = evaluate(pools[role], judge, config.judge.rule, self._problems, longest, title, marks_all)
        # After training, a missing picture must not cost the run its summary and report.
        trained = name not in ("teacher", "student_before")
        _refuse_unasked(marked, 1.0 if trained else config.rollout.max_set_aside_share)
        write_marks(self._folder / f"{name}.json", marked, self._digest, model)
        say_accuracy(title, marked, longest, config.judge.rule)

    def refuse_rows_of_another_teacher(self, made: Sequence[store.Folder], checkpoint: Path) -> None:
        """Raises StoreError when a store in ``made`` is finished, and the teacher that was measured had other weights
        than the checkpoint has."""
        if not any(folder.has(store.MANIFEST) for folder in made) or (found := self._stored("teacher")) is None:
            return
        if found.model != weights.digest(checkpoint):
            raise StoreError(
                f"{made[0]}: its rows were made by a teacher with other weights than {checkpoint} has now. Put them "
                "back, or choose another run.dir."
            )

    def _stored(self, name: str) -> HeldOutMarks | None:
        """Returns the marks of ``name``; None when there are none, or their file is damaged."""
        file = self._folder / f"{name}.json"
        try:
            return read_record(file, HeldOutMarks) if file.exists() else None
        except StoreError as error:
            warn(f"{error}: it is measured again")
            return None


def write_marks(file: Path, marked: Sequence[Marked], questions: str, model: str) -> None:
    """Writes a file of ``HeldOutMarks``."""
    write_json(file, HeldOutMarks(questions=questions, model=model, marks=list(marked)))


def read_marks(file: Path) -> list[Marked]:
    """Returns the marks in a file. Raises StoreError when it is damaged."""
    return read_record(file, HeldOutMarks).marks


def all_marks(directory: RunDirectory) -> dict[str, list[Marked]]:
    """Returns the marks of each model of MODELS that has been measured, by its name."""
    return {name: read_marks(file) for name in MODELS if (file := directory.evaluation(name)).exists()}


def evaluate(
    pool: Pool,
    judge: Pool | None,
    rule: Rule,
    problems: Sequence[Problem],
    max_tokens: int,
    title: str,
    marks_all: bool = True,
) -> list[Marked]:
    """Returns the marks of greedy answers by a pool's model, given by the rule where a problem has its own, or where
    ``judge`` is None; otherwise by the judge. marks_all: also of problems that do not ask for a judge.

    An answer with an unreadable verdict counts as wrong. A call whose replica died is repeated. A question that the
    engine refuses has the reason in place of a mark.
    """

    def mark(first: int) -> list[Marked]:
        share = problems[first : first + _AT_A_TIME]
        answers: list[Reply | Refused] = pool.call_again("answer_greedily", share, max_tokens)
        verdicts: list[list[Verdict]] = [[] for _ in share]
        if judge is not None:
            asked = [one.rule == "judge" or (marks_all and not one.rule) for one in share]
            texts = [
                [said.text] if isinstance(said, Reply) and by_judge else []
                for said, by_judge in zip(answers, asked, strict=True)
            ]
            verdicts = judge.call_again("judge", share, texts, False)
        return [_marked(*one, rule) for one in zip(share, answers, verdicts, strict=True)]

    marks: dict[int, list[Marked]] = {}
    with track(title, len(problems)) as advance:
        for first, found in map_unordered(mark, range(0, len(problems), _AT_A_TIME), pool.most_calls_at_once):
            marks[first] = found
            advance(len(found))
    return [one for first in sorted(marks) for one in marks[first]]


def _marked(problem: Problem, said: Reply | Refused, verdict: Sequence[Verdict], rule: Rule) -> Marked:
    """verdict: the judge's; empty where the rule decides."""
    asked: dict[str, Any] = {"id": problem.id, "kind": problem.kind, "label": problem.label, "dataset": problem.dataset}
    if isinstance(said, Refused):
        return Marked(**asked, answer="", finish=None, correct=False, refused=said)
    by_rule = right(said.text, problem, rule)
    asked |= {"correct": verdict[0].accuracy == 1, "by_rule": by_rule} if verdict else {"correct": by_rule}
    return Marked(**asked, answer=said.text, finish=said.finish)


def _refuse_unasked(marked: Sequence[Marked], allowed: float) -> None:
    """Raises DataError when a model refused more than the share ``allowed`` of the questions, or all of them."""
    refused = refusals(marked)
    if len(refused) <= allowed * len(marked) and len(refused) < len(marked):
        return
    raise DataError(
        f"{len(refused)} of {len(marked)} held-out questions could not be asked; rollout.max_set_aside_share allows "
        f"{allowed:g}. The first: {refused[0].row}: {refused[0].reason}. Mend or take out their rows, or raise "
        "rollout.max_set_aside_share and call again."
    )


def say_accuracy(title: str, marked: Sequence[Marked], longest: int, rule: Rule) -> None:
    """Prints accuracy, share of cut answers, and remarks. longest: the number of tokens at which answers are cut."""
    measured, cut = accuracy([one for one in marked if not one.refused]), cut_share(marked)
    told = f"; {cut:.1%} of the answers cut" if cut else ""
    say(f"{title}: {measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%}, n = {measured.n}{told})")
    for remark in (remarks.held_out_cut(cut, longest), remarks.held_out_disagreement(title, marked, rule)):
        if remark:
            warn(remark)
    if aside := len(marked) - measured.n:
        warn(f"{aside} held-out questions could not be asked and count in no accuracy of the run (quarantine.jsonl)")
