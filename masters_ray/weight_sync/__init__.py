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

An engine loads weights only from a TensorStream: from the learner over NCCL, or over gloo from the replica's own
process, which reads the object store. A restarted replica loads its version again. A request to a learner that is gone
ends in WeightsGoneError, and the iteration is ordered again.
"""
