"""Replicas: processes that hold a model and play roles. Plain classes; spawn.py alone makes Ray actors of them.

processes   which processes each phase runs, and what each reserves
placement   whether a cluster's nodes have room for them, beside the learner or in turns with it
spec        what each process loads, and the GPUs it uses in turns with the learner
spawn       starts the processes as Ray actors and stops them
actor       the process itself; model and judge hold what it does
pool        the driver's side: calls to the replicas of a role, and replicas that die
"""
