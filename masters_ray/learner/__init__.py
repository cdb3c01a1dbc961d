"""The learner: a Ray Train worker group on DeepSpeed that pulls stored groups from a Ray Dataset."""

from masters_ray.learner.job import GroupRewards, LearnerJob, LiveSource, Pinned, StagePlan
from masters_ray.learner.measure import Divergence, divergences
from masters_ray.learner.trainer import fit

__all__ = ["Divergence", "GroupRewards", "LearnerJob", "LiveSource", "Pinned", "StagePlan", "divergences", "fit"]
