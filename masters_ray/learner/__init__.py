"""The learner: a Ray Train worker group on DeepSpeed that pulls stored groups from a Ray Dataset.

Nothing is imported here: the board's process, which only needs ``job``, starts without PyTorch and Ray Train.
"""
