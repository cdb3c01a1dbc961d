"""Who judges which answer; a model judges the same case once in a run."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from masters_ray import store
from masters_ray.actors.host import Role
from masters_ray.actors.judge import Verdict
from masters_ray.actors.pool import Pool
from masters_ray.config import Judge, JudgedBy
from masters_ray.marking import RULES
from masters_ray.prompts import Asked, ground_truth, with_choices
from masters_ray.records import Answer, Problem, Source

_REMEMBERED = 2**15
JUDGES: Mapping[JudgedBy, Role] = {"student": "judge", "teacher": "teacher_judge"}
"""Models that judge → the role that their replicas play."""


class Case(NamedTuple):
    """What decides a model's verdict."""

    judge: str
    """The model, as ``Judging.identity`` names it."""
    question: str
    """With its choices."""
    label: str
    """With its letter."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How the answers of a stage are judged."""

    settings: Judge
    models: Mapping[JudgedBy, str]
    """Models that judge → what tells each from any other model, whatever role that one plays."""

    def by(self, source: Source) -> JudgedBy:
        """Who judges the answers of a source."""
        return self.settings.of_teacher if source == "teacher" else self.settings.of_student

    def identity(self, source: Source) -> str:
        """Of who judges the answers of a source: the same ones say the same of the same answer."""
        judge = self.by(source)
        if judge == "rule":
            return self.settings.rule
        return f"{self.models[judge]}, reasoning {self.settings.reasoning}, {self.settings.max_tokens} tokens"

    @property
    def roles(self) -> dict[str, Role]:
        """Identity → role of the models that judge."""
        return {
            self.identity(source): JUDGES[self.by(source)] for source in get_args(Source) if self.by(source) in JUDGES
        }

    def case(self, source: Source, asked: Asked, text: str) -> Case | None:
        """None for an answer that no model judges."""
        return _case(self.identity(source), asked, text) if self.by(source) in JUDGES else None

    def by_rule(self, problem: Problem, text: str) -> Verdict:
        right = RULES[self.settings.rule](text, problem)
        return Verdict(accuracy=int(right), text=f"by rule ({self.settings.rule})")


class Verdicts:
    """The verdicts of a run: the last ones are remembered, over batches, stages and teachers; used by several threads
    at once.

    While a model is asked for a verdict, whoever else needs it waits for that call, and asks anew if it fails.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        """remembered: cases."""
        self._remembered = remembered
        self._held: OrderedDict[Case, Verdict] = OrderedDict()
        self._under_way: dict[Case, Future[Verdict | None]] = {}
        self._lock = threading.Lock()
        """Held for every look at the fields above."""

    def of(
        self,
        judging: Judging,
        pools: Mapping[Role, Pool],
        problems: Sequence[Problem],
        shared: Any,
        answers: Sequence[Sequence[Answer]],
        told: Mapping[Case, Verdict] | None = None,
    ) -> list[list[Verdict]]:
        """A verdict for each answer to each problem. shared: the problems as ``Pool.share`` gave them; told: verdicts
        that are known beside those that are remembered. Raises ReplicaLostError."""
        cases = [
            [judging.case(one.source, problem, one.text) for one in group]
            for problem, group in zip(problems, answers, strict=True)
        ]
        wanted = {case for group in cases for case in group if case is not None}
        found = {case: verdict for case, verdict in (told or {}).items() if case in wanted}
        while missing := wanted - found.keys():
            held, mine, awaited = self._claim(missing)
            found |= held
            try:
                for identity, role in judging.roles.items():
                    texts = _once(cases, {case for case in mine if case.judge == identity})
                    if any(texts):
                        verdicts: list[list[Verdict]] = pools[role].call(
                            "judge", shared, texts, judging.settings.reasoning
                        )
                        found |= self._settle(_named(identity, problems, texts, verdicts))
            finally:
                self._give_up(mine - found.keys())
            # Not sooner: whoever waits for others while others wait for him would wait for ever.
            for case, future in awaited.items():
                if (verdict := future.result()) is not None:
                    found[case] = verdict
        return [
            [
                judging.by_rule(problem, one.text) if case is None else found[case]
                for one, case in zip(group, own, strict=True)
            ]
            for problem, group, own in zip(problems, answers, cases, strict=True)
        ]

    def fill(self, judging: Judging, folder: store.Where) -> None:
        """Remember what a store of the run holds, finished or not, as long as there is room: of its latest answers, no
        more than can be remembered. judging: how it was judged."""
        if not judging.roles:
            return
        for one in itertools.islice(store.read_judged(folder), self._remembered):
            case = judging.case(one.source, one, one.text)
            with self._lock:
                if len(self._held) >= self._remembered:
                    return
                if case is not None and case not in self._held:
                    self._held[case] = Verdict(accuracy=one.accuracy, text=one.verdict, reasoning=one.reasoning)
                    self._held.move_to_end(case, last=False)  # what this call asks itself is newer

    def _claim(self, cases: set[Case]) -> tuple[dict[Case, Verdict], set[Case], dict[Case, Future[Verdict | None]]]:
        """The verdicts of those that are remembered; those that are the caller's to ask from now on; those that others
        ask."""
        with self._lock:
            held = {case: self._held[case] for case in cases if case in self._held}
            for case in held:
                self._held.move_to_end(case)
            awaited = {case: self._under_way[case] for case in cases if case in self._under_way}
            mine = cases - held.keys() - awaited.keys()
            self._under_way |= {case: Future() for case in mine}
        return held, mine, awaited

    def _settle(self, news: dict[Case, Verdict]) -> dict[Case, Verdict]:
        """Remember what was asked, and tell whoever waits for it."""
        with self._lock:
            self._held |= news
            while len(self._held) > self._remembered:
                self._held.popitem(last=False)
            waited = {case: self._under_way.pop(case) for case in news}
        for case, future in waited.items():
            future.set_result(news[case])
        return news

    def _give_up(self, cases: set[Case]) -> None:
        """Let others ask for those of the cases whose call failed."""
        with self._lock:
            failed = [self._under_way.pop(case) for case in cases if case in self._under_way]
        for future in failed:
            future.set_result(None)


def _case(judge: str, asked: Asked, text: str) -> Case:
    return Case(judge, with_choices(asked), ground_truth(asked), text)


def _once(cases: Sequence[Sequence[Case | None]], wanted: set[Case]) -> list[list[str]]:
    """The texts of the wanted cases, each once, by problem."""
    texts = []
    for group in cases:
        own = [case for case in dict.fromkeys(group) if case is not None and case in wanted]
        wanted = wanted.difference(own)
        texts.append([case.text for case in own])
    return texts


def _named(
    identity: str, problems: Sequence[Problem], texts: Sequence[Sequence[str]], verdicts: Sequence[Sequence[Verdict]]
) -> dict[Case, Verdict]:
    return {
        _case(identity, problem, text): verdict
        for problem, own, said in zip(problems, texts, verdicts, strict=True)
        for text, verdict in zip(own, said, strict=True)
    }
