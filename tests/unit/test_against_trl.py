"""The loss is TRL's: its own code runs on the same tensors, its conventions turned into ours where they differ."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import models
from bench.sides import CLIP, KL_BETA
from masters_ray.kernels.head import answer_terms
from masters_ray.method.grpo import OldPolicy, group_losses
from tests.tensors import loss_batch, loss_config, random, top_k

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")
LENGTHS = (5, 1, 3, 5, 2)
"""Tokens of each answer of a group."""
ANSWER_OF = torch.repeat_interleave(torch.tensor(LENGTHS))
MASK = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(-1)
"""Which of [answers, longest] are tokens."""


class Trl:
    """TRL's code: a real GRPOTrainer round a tiny Qwen3-VL, and GKD's divergence."""

    def __init__(self) -> None:
        from trl import import_utils

        with pytest.MonkeyPatch.context() as patch:
            # TRL 1.16 does not know this vLLM, and would load it for what is not tested here.
            patch.setattr(import_utils, "is_vllm_available", lambda *_, **__: False)
            from trl.experimental.gkd import GKDTrainer
            from trl.trainer.utils import selective_log_softmax

            from bench.trl_step import TrlStep
        self.divergence: Any = GKDTrainer.generalized_jsd_loss
        self.logprobs: Any = selective_log_softmax
        self.step = TrlStep(models.build(models.TINY))

    def advantages(self, rewards: Tensor) -> Tensor:
        """Of groups of equal size [groups, G], from the method that TRL samples and scores with.

        TRL divides by the sample's deviation + 1e-4, we by the population's σ + 1e-6. A sample's variance is G/(G−1) of
        the population's, so what TRL gives is multiplied by (√(G/(G−1))·σ + 1e-4) / (σ + 1e-6).
        """
        trainer, count = self.step.trainer, rewards.numel()
        given = {"prompt_ids": [[1]] * count, "completion_ids": [[1]] * count, "logprobs": None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "rollout_func", lambda *_: given)
            patch.setattr(trainer, "reward_funcs", [lambda **_: rewards.flatten().tolist()])
            patch.setattr(trainer, "num_generations", rewards.shape[1])
            patch.setattr(trainer, "beta", 0.0)  # no reference model is asked
            found = trainer._generate_and_score_completions([{"prompt": "-"}] * count)["advantages"]
        sigma = rewards.std(1, correction=0, keepdim=True)
        size = rewards.shape[1]
        return found.view_as(rewards) * (math.sqrt(size / (size - 1)) * sigma + 1e-4) / (sigma + 1e-6)

    def loss(self, new: Tensor, advantages: Tensor, reference: Tensor, old: Tensor | None = None) -> Tensor:
        """``_compute_loss`` on log-probabilities of all answers' tokens.

        TrlStep sets three conventions: loss_type "grpo" is the mean over an answer's tokens, then over answers;
        use_bias_correction_kl is off, or k3 would be multiplied by the ratio; beta is 0.1.
        """
        trainer = self.step.trainer
        assert (trainer.beta, trainer.epsilon_low, trainer.epsilon_high) == (KL_BETA, CLIP, CLIP)
        ids = MASK.long()
        inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": ids}
        inputs |= {"advantages": advantages, "ref_per_token_logps": padded(reference)}
        if old is not None:
            inputs["old_per_token_logps"] = padded(old)
        answer = padded(new), torch.zeros(MASK.shape), None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: answer)
            loss: Tensor = trainer._compute_loss(self.step.model, inputs)
        return loss


def padded(tokens: Tensor) -> Tensor:
    """[tokens] → [answers, longest]"""
    return torch.zeros(MASK.shape).masked_scatter(MASK, tokens)


@pytest.fixture(scope="module")
def trl() -> Trl:
    return Trl()


def assert_same_gradients(ours: Tensor, theirs: Tensor, by: Sequence[Tensor]) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    found, expected = (torch.autograd.grad(loss, by, retain_graph=True) for loss in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("moved", [False, True])
def test_the_whole_loss_is_trls_grpo_and_the_mean_of_its_divergences(trl: Trl, moved: bool) -> None:
    """From hidden states and rewards to one number, with the teacher's whole distributions. moved: the policy has, so
    that most ratios, 0.37 to 2.72, are outside 1 ± 0.2, of good answers and of bad ones."""
    tokens, width, vocabulary = sum(LENGTHS), 6, 40
    hidden, weight = random(tokens, width).requires_grad_(), random(vocabulary, width, seed=1).requires_grad_()
    teacher = (2 * random(tokens, vocabulary, seed=2)).log_softmax(-1)
    targets = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(3))
    logits = hidden @ weight.T
    new = trl.logprobs(logits, targets)
    reference = new.detach() + 0.3 * random(tokens, seed=4)
    accuracy = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])

    pairs = zip(logits.split(LENGTHS), teacher.split(LENGTHS), LENGTHS, strict=True)
    divergences = torch.stack([trl.divergence(*two, beta=0.5, num_items_in_batch=length) for *two, length in pairs])
    low, high = divergences.detach().aminmax()
    rewards = accuracy + (high - divergences.detach()) / (high - low)
    advantage = trl.advantages(rewards.unsqueeze(0))[0]
    before = new.detach() - torch.arange(tokens).mul(2.0).sin() if moved else None
    theirs = trl.loss(new, advantage, reference, before) + divergences.mean()

    scores = top_k(teacher, vocabulary)
    student = answer_terms(hidden, weight, None, targets, *scores, logits_bytes=2**20)
    batch = loss_batch(reference, ANSWER_OF, accuracy.tolist())
    old = None if before is None else OldPolicy(logprobs=before, advantages=advantage)
    found = group_losses(*loss_config(kl_beta=KL_BETA, clip_epsilon=CLIP), batch, student, tokens, old)
    assert torch.allclose(found.old.advantages, advantage, atol=2e-5)
    assert_same_gradients(found.loss.sum(), theirs, [hidden, weight])
    if moved:
        told = trl.step.trainer._metrics["train"]
        assert told["clip_ratio/low_mean"][-1] >= 2 / tokens and told["clip_ratio/high_mean"][-1] >= 2 / tokens
