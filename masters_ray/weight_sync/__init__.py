"""Weight sync of online iterations: versions of the student go from the learner into the engines that write rollouts,
and the rows come back. The sequence:

    learner's workers              RolloutBroker        rollouts of the driver       a replica and its engine
    (WeightPublisher)                (an actor)           (OnlineRollouts)               (WeightReceiver)
      │ begin(steps learned) ──────────►│                        │                              │
      │ publish(version) ──────────────►│                        │                              │
      │                                 │◄────── next_order() ───│                              │
      │                                 │── Order(n, version) ──►│── hold(version) ────────────►│
      │                                 │                        │      object_store: read the pieces
      │ next_request() ────────────────►│◄───────────── nccl: fetch(version) ───────────────────│
      │ invite(address) ───────────────►│────────────── Invitation ────────────────────────────►│
      │ ═══════════════ TensorStream: each tensor from GPU to GPU ═════════════════════════════►│
      │                                 │                        │           compare all digests
      │                                 │                        │◄──────── answers, scores ────│
      │ take(n) ───────────────────────►│◄── deliver(n, rows) ───│                              │
      │◄─────────────── rows ───────────│                        │                              │

    student_weights    a version of the student: its digests, its pieces in the object store
    stream             sends tensors from one process into the workers of an engine
    broker             decides which version writes for which iteration; learner and rollouts wait in it
    publisher          gathers and publishes versions; sends them to replicas that request them
    receiver           loads a version, and compares what went into the model with what was published

An engine loads weights only from a TensorStream: from the learner over NCCL, or over gloo from the replica's own
process, which reads the object store. The publisher computes a SHA-256 of each tensor before sending it, the engine
when loading it: a changed bit stops the run. A restarted replica loads its version again. A request to a learner that
is gone ends in WeightsGoneError, and the iteration is ordered again.
"""
