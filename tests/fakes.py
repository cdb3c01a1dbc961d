"""Stand-ins for replicas, for tests of what is done with their answers."""

from typing import Any

import numpy as np
import pyarrow as pa

from masters_ray.method.masks import MaskReport
from masters_ray.records import Answer, Problem, Refused, Reply
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.model import ScoredBatch, TokenIds, WrittenBatch
from masters_ray.store import LOGPROBS, top_scores
from masters_ray.weight_sync.student_weights import StudentWeights
from tests.builders import scores


class Near:
    """An actor that lives in this process: ``near.method.remote(…)`` is its answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self._actor, method))})


class FakePool:
    """Replicas that answer "red" or "blue" and judge by what the test says."""

    most_calls_at_once = 2

    def __init__(
        self, role: str, verdicts: dict[str, int | None] | None = None, reports: int = 1, digest: str = "digest"
    ) -> None:
        self.role = role
        self.scored: list[TokenIds] = []
        self.judged: list[str] = []
        self.wrote: list[str] = []
        self.held: list[int] = []
        """Versions of the student that it was told to hold."""
        self.asleep = 0
        self.prompt_tokens = 17
        self.refuses: set[str] = set()
        self.says = ("red", "blue")
        self.cuts: set[str] = set()
        self.refuses_to_score: set[str] = set()
        self.rated: dict[str, float | None] = {}
        """Id of a question → how difficult it is."""
        self._verdicts = verdicts or {"red": 1, "blue": 0}
        self._reports = reports
        self._digest = digest

    def mask(self, ratio: float) -> list[MaskReport]:
        digests = (f"{self._digest} {number}" for number in range(self._reports))
        return [MaskReport(ratio=ratio, sparsity=ratio, digest=digest) for digest in digests]

    def hold(self, weights: StudentWeights) -> None:
        self.held.append(weights.version)

    def sleep(self) -> None:
        self.asleep += 1

    def call(self, method: str, *arguments: Any) -> Any:
        self.before_call(method, arguments)
        return getattr(self, method)(*arguments)

    call_again = call

    def share(self, thing: Any) -> Any:
        return thing

    def before_call(self, method: str, arguments: tuple[Any, ...]) -> None:
        """For a test to let a replica die."""

    def answer(self, problems: list[Problem], sampling: object, count: int, seeds: list[int | None]) -> WrittenBatch:
        first = 5 if self.role == "teacher" else 6  # the student's first answer is the teacher's second
        answers = tuple(
            Answer(
                source=self.role,  # type: ignore[arg-type]
                text=text,
                token_ids=(first + index, 1),
                finish="length" if text in self.cuts else "stop",
            )
            for index, text in enumerate((self.says * count)[:count])
        )
        asked = [problem.id for problem, seed in zip(problems, seeds, strict=True) if seed is not None]
        self.wrote += asked
        written = [answers if one.id in asked and one.id not in self.refuses else () for one in problems]
        token_ids = [[one.token_ids for one in group] for group in written]
        return WrittenBatch(answers=written, scored=self._batch(problems, token_ids, self.refuses & set(asked)))

    def score(self, problems: list[Problem], answers: list[list[TokenIds]]) -> ScoredBatch:
        self.scored += [token_ids for group in answers for token_ids in group]
        return self._batch(problems, answers, self.refuses_to_score)

    def _batch(self, problems: list[Problem], answers: list[list[TokenIds]], refuses: set[str]) -> ScoredBatch:
        refused = {index: Refused(reason="too long") for index, problem in enumerate(problems) if problem.id in refuses}
        given = [ids for index, group in enumerate(answers) if index not in refused for ids in group]
        if self.role == "teacher":
            tokens = top_scores([scores(len(ids), seed=ids[0]) for ids in given])
        else:
            tokens = pa.array([np.full(len(ids), -1.0, np.float32) for ids in given], LOGPROBS)
        return ScoredBatch(prompt_tokens=[self.prompt_tokens] * len(problems), refused=refused, tokens=tokens)

    def judge(self, problems: list[Problem], answers: list[list[str]], reasoning: bool) -> list[list[Verdict]]:
        self.judged += [text for group in answers for text in group]
        found = {
            text: Verdict(accuracy=accuracy, text="said", reasoning=accuracy if reasoning else None, tokens=3)
            for text, accuracy in self._verdicts.items()
        }
        return [[found[text] for text in group] for group in answers]

    def rate(self, problems: list[Problem]) -> list[float | None]:
        return [self.rated[one.id] for one in problems]

    def answer_greedily(self, problems: list[Problem], max_tokens: int) -> list[Reply | Refused]:
        return [
            Refused(reason="too long")
            if one.id in self.refuses
            else Reply(text=text, finish="length" if text in self.cuts else "stop")
            for one, text in ((one, "red" if int(one.id) % 2 else "blue") for one in problems)
        ]


class FakeReplicas:
    def __init__(self, **pools: FakePool) -> None:
        self.pools = {role: FakePool(role) for role in ("teacher", "student", "judge")} | pools
        self.closed = False

    def close(self) -> None:
        self.closed = True
