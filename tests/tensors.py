"""Small makers of the tensors that tests of the loss need."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from masters_ray.config import Learner, Reward
from masters_ray.data import decode
from masters_ray.errors import UnreadableRowError
from masters_ray.kernels.packing import PackedBatch, PromptTensors, pack
from masters_ray.learner.batches import Step
from masters_ray.learner.collate import Collator, WorkerStep, worker_steps
from masters_ray.method.divergence import jsd, with_rest
from masters_ray.method.prompts import question_messages
from masters_ray.models import hf
from masters_ray.models.chat import Chat
from masters_ray.records import Problem, RolloutGroup


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def top_k(logprobs: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and log-probabilities of the k likeliest tokens and the mass of all others, as rollouts would keep them
    exactly; nested for all k, ties or not. logprobs: [tokens, vocabulary]."""
    values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    return ids[:, :k], values[:, :k], (1 - values[:, :k].exp().sum(-1)).clamp(min=0)


def top_k_jsd(student_logprobs: Tensor, ids: Tensor, logprobs: Tensor, left_out: Tensor) -> Tensor:
    """JSD per token on the teacher's ``top_k`` and all others. student_logprobs: [tokens, vocabulary]."""
    return jsd(with_rest(logprobs.exp(), left_out), with_rest(student_logprobs.gather(-1, ids).exp()))


def loss_config(**weights: Any) -> tuple[Learner, Reward]:
    """Of weights of the learner's section or the rewards', wherever they belong."""
    rewards = {name: weights.pop(name) for name in list(weights) if name in Reward.__dataclass_fields__}
    return Learner(**weights), Reward(**rewards)


def loss_batch(reference: Tensor, answer_of: Tensor, accuracy: Sequence[float], **more: Any) -> Any:
    """What a loss reads of a batch: by default one group of answers that end and were written before training."""
    accuracies = reference.new_tensor(accuracy)
    answers = torch.zeros(len(accuracies), dtype=torch.bool)
    usual = {"group_of": answers.long(), "reasoning": torch.zeros_like(accuracies), "cut": answers, "fresh": answers}
    usual |= {"reference_logprobs": reference, "behaviour_logprobs": torch.zeros_like(reference)}
    return SimpleNamespace(**usual | {"answer_of": answer_of, "accuracy": accuracies} | more)


def prompt_of(model: Any, chat: Chat, problem: Problem) -> PromptTensors:
    pictures = [decode(picture) for picture in problem.pictures]
    return hf.prompt_tensors(model, chat, question_messages(problem), pictures)


def prompt(length: int, axes: int = 3, patches: int = 0) -> PromptTensors:
    """Tokens 100, 101, …; with pictures if it has patches."""
    vision = {"pixel_values": torch.ones(patches, 4)} if patches else {}
    count = torch.arange(length)
    return PromptTensors(input_ids=100 + count, positions=count.expand(axes, length), vision=vision)


def packed(groups: Sequence[RolloutGroup]) -> PackedBatch:
    return pack(groups, [prompt(row.prompt_tokens) for row in groups], pad_id=0)


class FakeCollator(Collator):
    """Reads all rows but those at some positions."""

    def __init__(self, *unreadable: int) -> None:
        self.pad_id, self._multiple, self._unreadable = 0, 1, unreadable
        self.layout, self._padded, self._always_pictured = "prompt_once", (), False

    def prompt(self, group: RolloutGroup) -> PromptTensors:
        if group.position in self._unreadable:
            raise UnreadableRowError("its picture is gone")
        return prompt(group.prompt_tokens)


def own_steps(steps: Iterable[Step], *unreadable: int, rank: int = 0, workers: int = 1) -> list[WorkerStep]:
    """A worker's part of steps with some unreadable rows, in micro-batches of 60 tokens."""
    return list(worker_steps(steps, FakeCollator(*unreadable), rank=rank, workers=workers, budget=60))
