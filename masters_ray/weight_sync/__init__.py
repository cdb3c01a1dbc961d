"""Versions of the student that learns, on their way into the engines that write its rollouts, and the rows that come
back.

    learner's workers              RolloutBroker        rollouts of the driver       a replica and its engine
    (WeightPublisher)                (an actor)           (OnlineRollouts)               (WeightReceiver)
      │ begin(steps learned) ──────────►│                        │                              │
      │ publish(version) ──────────────►│                        │                              │
      │                                 │◄────── next_order() ───│                              │
      │                                 │── Order(n, version) ──►│── hold(version) ────────────►│
      │                                 │                        │      object_store: it reads the pieces
      │ next_request() ────────────────►│◄───────────── nccl: fetch(version) ───────────────────│
      │ invite(address) ───────────────►│────────────── Invitation ────────────────────────────►│
      │ ═══════════════ TensorStream: each tensor from GPU to GPU ═════════════════════════════►│
      │                                 │                        │           compare all digests
      │                                 │                        │◄──────── answers, scores ────│
      │ take(n) ───────────────────────►│◄── deliver(n, rows) ───│                              │
      │◄─────────────── rows ───────────│                        │                              │

    student_weights    a version of the student: its digests, its pieces in the object store
    stream             tensors from one process into the workers of an engine
    broker             which version writes for which iteration; who waits for whom, also in turns
    publisher          gathers and hands out versions; sends them to replicas that ask
    receiver           takes a version in, and compares what went into the model with what was published

An engine takes weights in from a TensorStream only: from the learner over NCCL, or from the replica's own process,
which reads the object store, over gloo. Publisher and engine compute a SHA-256 of each tensor, the one before it
leaves, the other as it goes into the model: a changed bit stops the run. A replica that was started again takes its
version in again. What a learner that is gone was asked for ends in WeightsGoneError, and the iteration is ordered anew.
"""
