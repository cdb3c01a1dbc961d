"""A checkpoint in a vLLM engine with its chat template: what all roles share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from masters_ray.data import BadPictureError, decode
from masters_ray.method.prompts import Message, question_messages
from masters_ray.models import hf, weights
from masters_ray.models.chat import Chat
from masters_ray.models.vllm_engine import Prompt, VllmEngine
from masters_ray.records import Problem, Refused, Reply
from masters_ray.replicas.spec import ReplicaSpec

T = TypeVar("T")
Messages = Callable[[Problem], Sequence[Message]]


class ReplicaModel:
    def __init__(self, spec: ReplicaSpec) -> None:
        """Raises as VllmEngine does, and CheckpointError when weights are missing."""
        folder = weights.locate(spec.checkpoint)
        hf.unexpected_weights(folder)  # raises for missing weights: vLLM, which fuses matrices, does not notice one
        self.chat = Chat(folder)
        engine, vocabulary = spec.engine, weights.vocabulary(folder)
        known = max(self.chat.tokenizer.get_vocab().values()) + 1
        # Vocabulary rows that stand for no token, or for a token that not all models of the run have.
        padding = range(known if spec.common is None else min(known, spec.common), vocabulary or 0)
        if 0 < spec.share < 1 and engine.gpu_memory_utilization is None:
            engine = replace(engine, gpu_memory_utilization=0.9 * spec.share)
        never = {*self.chat.placeholder_ids(), *spec.never}
        self.engine = VllmEngine(
            folder,
            engine,
            tensor_parallel=spec.tensor_parallel,
            parts=spec.masked,
            ratio=spec.ratio,
            banned=[*sorted(one for one in never if vocabulary is None or one < vocabulary), *padding],
            sleeps=spec.sleeps,
        )

    def prompt(self, problem: Problem, messages: Messages = question_messages) -> Prompt | Refused:
        """Returns the engine's prompt for ``messages(problem)``, pictures decoded; Refused for a bad picture."""
        try:
            pictures = tuple(decode(picture) for picture in problem.pictures)
        except BadPictureError as error:
            return Refused(reason=str(error), kind="picture")
        return Prompt(token_ids=self.chat.token_ids(messages(problem)), pictures=pictures)

    def greedy(self, problems: Sequence[Problem], messages: Messages, max_tokens: int) -> list[Reply | Refused]:
        """Returns the greedy answer to ``messages(problem)`` for each problem."""
        return self._greedy([self.prompt(one, messages) for one in problems], max_tokens)

    def reply(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply | Refused]:
        """Returns the greedy answer to each conversation; conversations have no pictures."""
        return self._greedy([Prompt(token_ids=self.chat.token_ids(messages)) for messages in conversations], max_tokens)

    def _greedy(self, prompts: Sequence[Prompt | Refused], max_tokens: int) -> list[Reply | Refused]:
        said = iter(self.engine.generate_greedy([one for one in prompts if isinstance(one, Prompt)], max_tokens))
        outcomes = [one if isinstance(one, Refused) else next(said) for one in prompts]
        return [
            one if isinstance(one, Refused) else Reply(text=self.chat.decode(one.token_ids), finish=one.finish)
            for one in outcomes
        ]


def sorted_out(outcomes: Mapping[int, T | Refused]) -> tuple[dict[int, T], dict[int, Refused]]:
    return (
        {index: one for index, one in outcomes.items() if not isinstance(one, Refused)},
        {index: one for index, one in outcomes.items() if isinstance(one, Refused)},
    )
