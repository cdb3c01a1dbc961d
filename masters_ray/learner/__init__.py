"""The learner: a Ray Train worker group on DeepSpeed that pulls stored groups from a Ray Dataset.

Nothing is imported here: who only needs ``job`` starts without PyTorch and Ray Train.
"""
