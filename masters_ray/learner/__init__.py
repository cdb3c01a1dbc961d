"""The learner: a Ray Train worker group on DeepSpeed that reads stored groups from a Ray Dataset.

This file imports nothing, so that importing ``job`` alone does not load PyTorch and Ray Train.
"""
