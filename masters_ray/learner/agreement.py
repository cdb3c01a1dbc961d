"""Learner and engine must give the same log-probabilities where both hold the same student."""

from __future__ import annotations

from collections.abc import Sequence

from masters_ray.errors import LearnerError

_LARGEST_GAP = {"float32": 0.1, "bfloat16": 0.3}
"""Nats: mean difference between the learner's and the engine's log-probabilities of the untrained student's tokens
above which one of them must be wrong."""


def compared_with_engine(mean: float, dtype: str) -> str:
    """Before the first update the student is the reference policy, so learner and engine must give its tokens the same
    log-probabilities. mean: of their distance per token, nats. Returns a note; raises LearnerError when it is large."""
    if mean > _LARGEST_GAP[dtype]:
        raise LearnerError(
            f"the learner's log-probabilities of the untrained student differ from the stored ones by {mean:.3g} "
            f"nats per token; expected at most {_LARGEST_GAP[dtype]}. The student's checkpoint or its processor "
            "changed since the rollouts were made, or the learner does not run this model as the engine does."
        )
    return f"before the first step learner and engine agree to {mean:.1e} nats per answer token"


def check_on_policy(ages: Sequence[int], gap: float, dtype: str, number: int) -> None:
    """Fresh answers of the very weights that learn from them must have the same log-probabilities in learner and
    engine. gap: nats per token. Raises LearnerError when they differ by much."""
    if ages and max(ages) == 0 and gap > _LARGEST_GAP[dtype]:
        raise LearnerError(
            f"step {number}: the learner's log-probabilities of fresh answers differ from the engine's by {gap:.3g} "
            f"nats per token, though both hold the same weights; expected at most {_LARGEST_GAP[dtype]}. The engine "
            "does not compute what it was sent: try student.engine.enforce_eager=true or another dtype, or learn "
            "offline with rollout.online_fraction=0."
        )
