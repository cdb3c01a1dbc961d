"""Tensors of a student on their way into engines: real process groups over gloo, stand-ins for actors and engines."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo

from masters_ray.errors import LearnerError, WeightsGoneError, WeightSyncError
from masters_ray.method.masks import tensor_digest
from masters_ray.weight_sync import publisher, stream, student_weights
from masters_ray.weight_sync.broker import RolloutBroker
from masters_ray.weight_sync.publisher import WeightPublisher, WeightSender
from masters_ray.weight_sync.receiver import WeightReceiver
from masters_ray.weight_sync.stream import Invitation, TensorStream, received
from masters_ray.weight_sync.student_weights import StudentWeights
from tests.fakes import Near

CPU = torch.device("cpu")
TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3).t(),
    "b.bias": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "scale": torch.tensor(3),
}
MOVED = {name: tensor + 1 for name, tensor in TENSORS.items()}


def digests(tensors: Mapping[str, Tensor] = TENSORS) -> dict[str, str]:
    return {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}


def weights(version: int = 0, **more: Any) -> StudentWeights:
    told: dict[str, Any] = {"digests": digests(), "pieces": tuple(student_weights.pieces(TENSORS.items()))}
    return StudentWeights(version=version, seconds=0.0, **told | more)


class ToyEngine:
    """An engine whose workers are threads."""

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        self.loaded: list[list[dict[str, str]]] = []
        """Digests of what each worker took in, each time."""

    def load(self, invitation: Invitation) -> dict[str, str]:
        assert invitation.ranks == self.ranks
        with ThreadPoolExecutor(self.ranks) as workers:
            tensors = workers.map(lambda rank: dict(received(invitation, rank, CPU)), range(self.ranks))
            self.loaded.append([digests(one) for one in tensors])
        return self.loaded[-1][0]


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    itself, util = lambda one: one, SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    fake = SimpleNamespace(get=itself, put=itself, util=util)
    for module in ("broker", "publisher", "receiver"):
        monkeypatch.setattr(f"masters_ray.weight_sync.{module}.ray", fake)
    monkeypatch.setattr(publisher, "_PATIENCE", 0.05)


def test_what_fails_at_the_sender_is_told_to_the_workers() -> None:
    def failing() -> Iterator[tuple[str, Tensor]]:
        yield from TENSORS.items()
        raise OSError("a piece is lost")

    sending = TensorStream("127.0.0.1", 1, "gloo")
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(sending.send, failing())
        with pytest.raises(RuntimeError, match="sender of the weights failed: OSError: a piece is lost"):
            ToyEngine().load(sending.invitation)
        with pytest.raises(OSError, match="a piece is lost"):
            sent.result()


def test_over_nccl_all_is_the_same_but_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Nccl:
        Options = SimpleNamespace

        def __new__(cls, store: Any, rank: int, size: int, options: Any) -> Any:
            made.append((rank, size, options._timeout > stream._SILENCE))
            return ProcessGroupGloo(store, rank, size, options._timeout)

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Nccl)
    sending = TensorStream("127.0.0.1", 1, "nccl")
    with ThreadPoolExecutor(1) as thread:
        loaded = thread.submit(ToyEngine().load, sending.invitation)
        sending.send(TENSORS.items(), CPU)
        assert loaded.result() == digests()
    assert sorted(made) == [(0, 2, True), (1, 2, True)], "its watchdog comes after our own patience"


def test_a_sender_that_falls_silent_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_SILENCE", timedelta(seconds=2))
    goes_on = threading.Event()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from TENSORS.items()
        goes_on.wait(20)

    sending = TensorStream("127.0.0.1", 1, "gloo")
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(sending.send, tensors())
        with pytest.raises(RuntimeError, match="timeout"):
            list(received(sending.invitation, 0, CPU))
        goes_on.set()
        with pytest.raises(RuntimeError):
            sent.result(20)


def test_a_version_from_the_object_store_is_taken_in_once_whatever_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_weights, "_PIECE", 20)
    one = weights()
    assert len(one.pieces) == 2
    engine = ToyEngine(ranks=2)
    replica = WeightReceiver(engine.load, 2)
    for _ in range(2):
        replica.hold(one)
    assert engine.loaded == [[digests()] * 2]
    replica.hold(weights(version=1))
    assert len(engine.loaded) == 2


def test_a_bit_that_changed_on_the_way_is_told_with_both_values_and_nothing_is_held() -> None:
    [piece] = weights().pieces
    damaged = weights(7, pieces=(piece[:-1] + bytes([piece[-1] ^ 1]),))
    engine = ToyEngine()
    replica = WeightReceiver(engine.load, 1)
    for _ in range(2):
        with pytest.raises(WeightSyncError, match="version 7 of the student arrived with other weights: ") as caught:
            replica.hold(damaged)
    [[arrived], _] = engine.loaded
    [bad] = [name for name, digest in digests().items() if arrived[name] != digest]
    told = f"1 of 3 tensors differ, such as {bad}: {digests()[bad][:16]} sent, {arrived[bad][:16]} received"
    assert told in str(caught.value)
    for found, told in ((digests() | {"more": "f" * 64}, "nothing sent, ffff"), ({}, "sent, nothing received")):
        with pytest.raises(WeightSyncError, match=told):
            damaged.check(found)


@pytest.fixture
def broker() -> RolloutBroker:
    made = RolloutBroker([1, 2, 3, 4], 0, 30.0)
    made.begin(0, {})
    return made


@pytest.fixture
def sender(broker: RolloutBroker) -> Iterator[WeightSender]:
    one = WeightSender(Near(broker), CPU, "gloo")
    yield one
    one.close()


def asked(broker: RolloutBroker, version: int, tensors: Mapping[str, Tensor] = TENSORS, ranks: int = 1) -> ToyEngine:
    """The engine of a replica that was told to hold a version."""
    engine = ToyEngine(ranks)
    told = weights(version, digests=digests(tensors), pieces=(), broker=Near(broker))
    WeightReceiver(engine.load, ranks).hold(told)
    return engine


def test_every_replica_that_asks_is_sent_the_version_that_it_holds(broker: RolloutBroker, sender: WeightSender) -> None:
    sender.retain(0, TENSORS, 0)
    sender.retain(1, TENSORS, 0)
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(asked, broker, 0, ranks=ranks) for ranks in (1, 2)]
        assert [engine.result().loaded for engine in found] == [[[digests()]], [[digests()] * 2]]
    sender.retain(3, MOVED, 2)
    assert asked(broker, 0).loaded == [[digests()]], "by a process that takes another's place"
    assert asked(broker, 3, MOVED).loaded == [[digests(MOVED)]]
    with pytest.raises(WeightsGoneError, match="version 1 of the student is gone"):
        asked(broker, 1)


def test_a_lost_replica_stops_nobody(
    broker: RolloutBroker, sender: WeightSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_SILENCE", timedelta(seconds=1))
    sender.retain(0, TENSORS, 0)
    broker.fetch(0, 1)  # and never comes
    arriving = received(broker.fetch(0, 1), 0, CPU)
    next(arriving)
    arriving.close()
    asked(broker, 0)


def test_a_learner_that_cannot_send_is_told_so(broker: RolloutBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ValueError("no port")

    monkeypatch.setattr(publisher, "TensorStream", full)
    sender = WeightSender(Near(broker), CPU, "gloo")
    sender.retain(0, TENSORS, 0)
    with pytest.raises(LearnerError, match="cannot be sent: ValueError: no port"):
        broker.fetch(0, 1)


def test_rank_0_publishes_the_versions_that_write_and_all_gather_them() -> None:
    """Iterations 2 and 4 are online, at most one step behind: versions 0 and 2 write."""
    broker = RolloutBroker([2, 4], 1, 30.0)
    gathered: list[int] = []

    def gather(rank: int) -> dict[str, Tensor] | None:
        gathered.append(rank)
        return TENSORS if rank == 0 else None

    usual: dict[str, Any] = {"online": [2, 4], "max_staleness": 1, "barrier": lambda: None, "sender": None}
    kept = []
    for rank in (0, 1):
        one = WeightPublisher(Near(broker), gather=partial(gather, rank), rank=rank, **usual)
        one.begin(0)
        for number in range(1, 5):
            one.publish(number)
            kept.append(list(one.students))
    assert gathered == [0, 0, 1, 1]
    assert kept == [[0], [2], [2], [], [], [], [], []], "on rank 0, those whose rows are not too stale"
    order = broker.next_order(0.0)
    assert order is not None and order.weights.version == 0
    WeightReceiver(ToyEngine().load, 1).hold(order.weights)
