"""Replicas: processes that hold a model and play roles. Plain classes; Ray is put on where they are spawned (spawn.py).

processes   which processes each phase runs, and what one of them reserves
placement   whether a cluster's nodes hold them, beside the learner or in turns with it
spec        what each process loads; in turns: which GPUs it uses
spawn       spawns them as Ray actors and stops them
actor       such a process: model, rollout and judge say what it does
pool        the driver's side: calls to the replicas of a role, whatever dies on the way
"""
