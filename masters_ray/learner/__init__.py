"""The learner: a Ray Train worker group on DeepSpeed that pulls stored groups from a Ray Dataset."""

from masters_ray.learner.job import GroupRewards, LearnerJob, Pinned, StagePlan
from masters_ray.learner.trainer import fit

__all__ = ["GroupRewards", "LearnerJob", "Pinned", "StagePlan", "fit"]
