"""A step of the learner on stored rows is METHOD 4 to 6, written out in plain PyTorch."""

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from masters_ray.config import Aggregation, Learner, Reward
from masters_ray.data.pictures import encoded
from masters_ray.learner.job import LearnerJob, StagePlan, TakenStep
from masters_ray.records import Problem, RolloutGroup, TokenScores
from tests.builders import group, iterations, problem, scored, table_of
from tests.conftest import PAIR
from tests.tensors import random, top_k

ALPHA, RHO, BETA = 0.7, 0.4, 0.2
"""None is the default, so that a step that does not read its settings is seen."""


class Plain:
    """The student in float64, and the loss of a step, one answer at a time."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(PAIR / "student", dtype=torch.float64)
        self.first: dict[int, tuple[list[Tensor], Tensor]] = {}
        """Position → log-probabilities and advantages when the loss of the row was first asked for."""
        self.clipped: list[bool] = []
        """Of every answer token since the list was last emptied."""
        self._processor = AutoProcessor.from_pretrained(PAIR / "student")

    def prompt(self, asked: Problem) -> dict[str, Tensor]:
        content = [{"type": "image"}] * len(asked.pictures) + [{"type": "text", "text": asked.question}]
        messages = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(io.BytesIO(encoded(one))).convert("RGB") for one in asked.pictures]
        return dict(self._processor(text=[text], images=pictures, return_tensors="pt"))

    def logprobs(self, prompt: dict[str, Tensor], ids: Tensor) -> Tensor:
        """[tokens, vocabulary]: the distributions from which the answer's tokens ``ids`` [tokens] are drawn."""
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
        whole = {name: torch.cat([prompt[name], one.unsqueeze(0)], 1) for name, one in more.items()}
        return self.model(**prompt | whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)

    def loss(self, rows: Sequence[RolloutGroup], aggregation: Aggregation) -> Tensor:
        """L of a step: every answer of a group weighs the same, or every answer token of the step does."""
        found = [self.losses(row) for row in rows]
        if aggregation == "token":
            return torch.cat([one for answers in found for one in answers]).mean()
        return torch.stack([torch.stack([one.mean() for one in answers]).mean() for answers in found]).mean()

    def gradients(self, rows: Sequence[RolloutGroup], aggregation: Aggregation) -> tuple[float, dict[str, Tensor]]:
        """A step's loss, and its gradient by every weight that is trained."""
        self.model.zero_grad()
        loss = self.loss(rows, aggregation)
        loss.backward()
        found = {name: one.grad for name, one in self.model.named_parameters() if one.grad is not None}
        return loss.item(), {name: one for name, one in found.items() if "visual" not in name or "merger" in name}

    def losses(self, row: RolloutGroup) -> list[Tensor]:
        """What each token of each answer of a group adds to L. The teacher's probabilities are those that a store
        keeps: roots in 511 steps (METHOD 5)."""
        prompt = self.prompt(row.problem)
        new, reference, divergences = [], [], []
        for answer in row.answers:
            ids = torch.tensor(answer.judged.answer.token_ids)
            logprobs = self.logprobs(prompt, ids)
            new.append(logprobs.gather(1, ids.unsqueeze(1)).squeeze(1))
            reference.append(torch.from_numpy(answer.reference_logprobs).double())
            # METHOD 5: teacher and student on k + 1 outcomes
            top = torch.from_numpy(answer.teacher.top_logprobs).double().exp()
            p = torch.cat([top, torch.from_numpy(answer.teacher.left_out).double().unsqueeze(1)], 1)
            p = (511 * p.sqrt()).round() ** 2
            p = p / p.sum(1, keepdim=True)
            q = logprobs.gather(1, torch.from_numpy(answer.teacher.top_ids).long()).exp()
            q = torch.cat([q, 1 - q.sum(1, keepdim=True)], 1)
            m = (p + q) / 2
            divergences.append((torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).sum(1) / 2)
        # METHOD 4
        d = torch.stack([one.detach().mean() for one in divergences])
        spread = d.max() - d.min()
        distillation = (d.max() - d) / spread if spread > 1e-6 else torch.zeros_like(d)
        judged = [answer.judged for answer in row.answers]
        accuracy, reasoning = ([getattr(one, name) for one in judged] for name in ("accuracy", "reasoning"))
        reward = torch.tensor(accuracy) + ALPHA * distillation + RHO * torch.tensor(reasoning)
        # METHOD 6
        flat = reward.max() - reward.min() < 1e-4
        advantage = (reward - reward.mean()) / (reward.std(correction=0) + 1e-6) * (not flat)
        old, advantage = self.first.setdefault(row.position, ([one.detach() for one in new], advantage))
        answers = []
        for a, one, was, before, divergence in zip(advantage, new, old, reference, divergences, strict=True):
            ratio = (one - was).exp()
            self.clipped += (((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))).tolist()
            kl = (before - one).exp() - (before - one) - 1
            answers.append(-(torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) - BETA * kl) + divergence)
        return answers


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


ANSWERS = (
    ((3, 1, 0), (2, 0, 1), (5, 0, 0), (1, 1, 1)),
    ((4, 1, 0), (1, 1, 0), (2, 1, 1)),
    ((7, 0, 0), (3, 1, 0)),
    ((2, 0, 1), (2, 1, 1), (6, 0, 0)),
    ((3, 1, 1), (3, 1, 1)),
)
"""Tokens, accuracy and reasoning of each group's answers; the two of the last group are alike in everything."""


@pytest.fixture(scope="module")
def rows(plain: Plain, questions: list[Problem]) -> list[RolloutGroup]:
    """Teacher and reference are near the student, whose distributions they vary; one question has two pictures."""
    asked = [*questions[:3], problem(id="two", pictures=2), questions[3]]
    found = []
    for position, of in enumerate(asked):
        prompt = plain.prompt(of)
        answers = []
        for place, (length, accuracy, reasoning) in enumerate(ANSWERS[position]):
            seed = 10 * position + (place if position < 4 else 0)
            answer = scored([40 + seed + token for token in range(length - 1)] + [2], accuracy=accuracy)
            token_ids = torch.tensor(answer.judged.answer.token_ids)
            with torch.no_grad():
                logprobs = plain.logprobs(prompt, token_ids)
            noise = random(*logprobs.shape, seed=seed)
            ids, top, left_out = top_k((logprobs + noise).log_softmax(-1).float(), 6)
            own = logprobs.gather(1, token_ids.unsqueeze(1)).squeeze(1)
            reference = (own + 0.12 * torch.arange(seed, seed + length).sin()).float().numpy()
            judged = replace(answer.judged, reasoning=reasoning)
            teacher = TokenScores(top_ids=ids.int().numpy(), top_logprobs=top.numpy(), left_out=left_out.numpy())
            answers.append(replace(answer, judged=judged, teacher=teacher, reference_logprobs=reference))
        row = group(answers, position=position, of=of)
        found.append(replace(row, prompt_tokens=prompt["input_ids"].shape[1]))
    return found


class Worker:
    """The learner's own worker on stored rows: its model, packing, head, loss and DeepSpeed; Ray is stood in for."""

    def __init__(self, folder: Path, rows: Sequence[RolloutGroup], patch: pytest.MonkeyPatch) -> None:
        import ray.train.torch
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        from masters_ray.learner import loop

        self.told: list[TakenStep] = []
        self._kept: dict[str, Tensor] = {}
        self._moves: list[Callable[[Any], None]] = []
        shard = SimpleNamespace(iter_batches=lambda **_: iter([table_of(rows)]))
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(ray.train, "get_dataset_shard", lambda _: shard)
        patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        for name, value in alone.items():
            patch.setenv(name, value)
        set_accelerator(CPU_Accelerator())
        usual: dict[str, Any] = {"dtype": "float32", "zero_stage": 0, "gradient_clipping": 1e9}
        job = LearnerJob(
            checkpoint=str(PAIR / "student"),
            settings=Learner(groups_per_step=len(rows), kl_beta=BETA, **usual),
            reward=Reward(alpha=ALPHA, rho=RHO),
            seed=0,
            stages=(StagePlan(stage=0, ratio=0.2, rows=len(rows)),),
            iterations=iterations((len(rows),), len(rows)),
            export_to=folder / "student",
            storage=folder / "learner",
        )
        news: Any = SimpleNamespace(put=self.told.append)
        self._worker: Any = loop._Worker(job, news, None)
        self._engine = self._worker._engine._engine
        self.model = self._engine.module.model
        patch.setattr(self._engine.optimizer, "step", self._keep)

    def gradient(
        self, *moves: Callable[[Any], None], workers: int = 1, multiple_of: int = 1, **settings: Any
    ) -> dict[str, Tensor]:
        """Of a step's last update, the mean over ``workers``, as DeepSpeed takes it, of what each adds up. The weights
        stay as they are, but for ``moves``, one after each update."""
        worker = self._worker
        chosen = replace(worker._job.settings, updates_per_step=max(1, len(moves)), **settings)
        worker._job = replace(worker._job, settings=chosen)
        worker._workers, worker._collator._multiple = workers, multiple_of
        kept = []
        for rank in range(workers):
            worker._rank, self._moves = rank, list(moves)
            worker.step(worker.parts(0, 1))
            kept.append(self._kept)
        return {name: torch.stack([one[name] for one in kept]).mean(0) for name in kept[0]}

    def close(self) -> None:
        torch.distributed.destroy_process_group()

    def _keep(self) -> None:
        """In place of the optimizer's step."""
        self._kept = {name: one.grad.clone() for name, one in self.model.named_parameters() if one.grad is not None}
        if self._moves:
            self._moves.pop(0)(self.model)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, rows: list[RolloutGroup]) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        made = Worker(tmp_path_factory.mktemp("step"), rows, patch)
        yield made
        made.close()


SPLITS: dict[str, dict[str, Any]] = {
    "at once": {"tokens_per_micro_batch": 10_000},
    "one by one, padded": {"tokens_per_micro_batch": 1, "multiple_of": 128},
    "two workers": {"tokens_per_micro_batch": 150, "workers": 2},
    "more workers than groups, padded": {"tokens_per_micro_batch": 10_000, "workers": 8, "multiple_of": 7},
}


@pytest.mark.parametrize("aggregation", ["answer", "token"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_step_takes_the_gradient_of_the_loss_that_the_method_says(
    worker: Worker, plain: Plain, rows: list[RolloutGroup], split: str, aggregation: Aggregation
) -> None:
    loss, gradients = plain.gradients(rows, aggregation)
    found = worker.gradient(aggregation=aggregation, **SPLITS[split])
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # the learner reads divergences to 1e-6 nats where it compares them, the plain loss does not
        assert (found[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name
    if "workers" not in SPLITS[split]:
        told = worker.told[-1].metrics
        norm = torch.stack([one.norm() for one in gradients.values()]).norm()
        # where longer answers weigh more, advantages do not cancel and carry those 1e-6 nats into the loss
        assert told.loss == pytest.approx(loss, rel=1e-6 if aggregation == "answer" else 1e-5)
        assert told.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Afterwards the weights are what they were."""
    before = copy.deepcopy(model.state_dict())
    yield
    model.load_state_dict(before)


def move(model: Any) -> None:
    """Far enough that a good part of the ratios leaves 1 ± 0.2."""
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "language_model.layers" in name:
                one += 0.004 * torch.arange(one.numel()).reshape(one.shape).sin()


def test_a_second_update_is_clipped_against_the_first(worker: Worker, plain: Plain, rows: list[RolloutGroup]) -> None:
    loss, _ = plain.gradients(rows, "answer")
    with restored(worker.model), restored(plain.model):
        found = worker.gradient(move, lambda _: None, tokens_per_micro_batch=200, aggregation="answer")
        move(plain.model)
        plain.clipped.clear()
        _, gradients = plain.gradients(rows, "answer")
    for name, gradient in found.items():
        assert (gradient - gradients[name]).abs().max() <= 1e-4 * gradients[name].abs().max(), name
    told = worker.told[-1].metrics
    per_group = torch.tensor(plain.clipped).split([sum(length for length, *_ in answers) for answers in ANSWERS])
    assert told.clip_fraction == pytest.approx(float(torch.stack([one.float().mean() for one in per_group]).mean()))
    assert 0.1 < told.clip_fraction < 0.9
    assert told.loss == pytest.approx(loss, rel=1e-6), "what is told is the first update's"
