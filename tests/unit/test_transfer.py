"""vLLM's weight transfer with vLLM's own classes; only what needs a GPU is stood in for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from ray.exceptions import RayActorError
from torch import Tensor
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer import ipc_engine, nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from masters_ray.config import Transfer
from masters_ray.engines import vllm_transfer
from masters_ray.engines.vllm_transfer import Source, backend, connect
from masters_ray.errors import LearnerError
from masters_ray.learner import sender
from masters_ray.learner.requests import Request
from masters_ray.learner.sender import Sender
from masters_ray.weights import tensor_digest

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.tensor([1.0, -2.0], dtype=torch.bfloat16)}
NAMES: dict[str, Any] = {
    "names": list(TENSORS),
    "dtype_names": ["float32", "bfloat16"],
    "shapes": [list(one.shape) for one in TENSORS.values()],
}


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.loaded.update(weights)


def receiving(transfer: Transfer, model: Model) -> Any:
    """vLLM's receiving side, made as a worker makes it."""
    settings = SimpleNamespace(parallel_config=SimpleNamespace(rank=0), model_config=None)
    return WeightTransferEngineFactory.create_engine(
        WeightTransferConfig(backend=backend(transfer)), settings, torch.device("cpu"), model
    )


def over_nccl(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    def consumer(*, post_unpack_func: Callable[[Any], None], **_: Any) -> None:
        for name, tensor in TENSORS.items():
            post_unpack_func([(name, tensor)])

    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_consumer", consumer)
    engine.packed, engine.model_update_group = True, object()
    engine.receive_weights(engine.parse_update_info(NAMES))


def over_ipc(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    monkeypatch.setattr(ipc_engine, "packed_ipc_consumer", lambda **_: list(TENSORS.items()))
    engine.init_transfer_engine(engine.parse_init_info({"packed": True}))
    engine.receive_weights(engine.parse_update_info({**NAMES, "ipc_handles": {}, "tensor_sizes": [24, 4]}))


@pytest.mark.parametrize(("transfer", "receive"), [("nccl", over_nccl), ("ipc", over_ipc)])
def test_digests_are_those_of_what_the_model_is_given(
    monkeypatch: pytest.MonkeyPatch, transfer: Transfer, receive: Callable[[pytest.MonkeyPatch, Any], None]
) -> None:
    model = Model()
    engine = receiving(transfer, model)
    for _ in range(2):
        engine.start_weight_update()
        assert engine.digests == {}
        receive(monkeypatch, engine)
        assert engine.model is model
        assert engine.digests == {name: tensor_digest(name, one) for name, one in TENSORS.items()}
    assert all(torch.equal(model.loaded[name], one) for name, one in TENSORS.items())


@pytest.mark.parametrize("transfer", ["nccl", "ipc"])
def test_a_gpus_learner_starts_vllms_own_sending_side(monkeypatch: pytest.MonkeyPatch, transfer: Transfer) -> None:
    started: list[Any] = []
    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", lambda start, **_: started.append(start))
    large = {"head": torch.empty(300 * 2**20, dtype=torch.uint8)}
    connect(transfer, object(), Source(large, torch.device("cpu")), address="10.0.0.7", ranks=4)
    [start] = started
    assert (start.backend, start.rank, start.is_sender, start.packed) == (transfer, 0, True, True)
    if transfer == "nccl":
        assert (start.master_address, start.world_size) == ("10.0.0.7", 5)
        assert start.packed_buffer_size_bytes == vllm_transfer._BUFFER
    else:
        assert start.packed_buffer_size_bytes == 300 * 2**20, "vLLM refuses a tensor that the buffer does not hold"


class Replica:
    """A replica's actor whose steps are called at once."""

    def __init__(self, engine: Any) -> None:
        self._actor_id = id(self)
        self.take_in = SimpleNamespace(remote=lambda step, *arguments: self._step(step, arguments))
        self.engine = engine
        self.dies = False

    def _step(self, step: str, arguments: tuple[Any, ...]) -> None:
        if self.dies:
            raise RayActorError
        if step == "init_weight_transfer_engine":
            self.engine.init_transfer_engine(self.engine.parse_init_info(*arguments))
        else:
            getattr(self.engine, step)(*arguments)


class Exchange:
    """Asks for what the test says; an actor whose methods are called at once."""

    def __init__(self) -> None:
        self.wanted: list[Request] = []
        self.answers: dict[int, str | None] = {}
        self.next_request = SimpleNamespace(remote=self._next)
        self.answered = SimpleNamespace(remote=self.answers.__setitem__)
        self.stopped: list[str] = []
        self.stop_learner = SimpleNamespace(remote=self.stopped.append)

    def _next(self, _: float) -> Request | None:
        time.sleep(0.01)
        return self.wanted.pop(0) if self.wanted else None

    def ask(self, number: int, version: int, replica: Replica, process: str = "first") -> str | None:
        """What comes of it."""
        self.wanted.append(Request(number=number, version=version, replica=replica, process=process, ranks=1))
        until = time.monotonic() + 20
        while number not in self.answers and time.monotonic() < until:
            time.sleep(0.01)
        return self.answers[number]


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch) -> Exchange:
    fake = SimpleNamespace(get=lambda result: result, util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))
    monkeypatch.setattr(sender, "ray", fake)
    return Exchange()


@pytest.fixture
def sending(exchange: Exchange) -> Iterator[Sender]:
    one = Sender("gloo", exchange, torch.device("cpu"))
    yield one
    one.close()


def gloo_replica() -> tuple[Replica, Model]:
    model = Model()
    return Replica(receiving("gloo", model)), model


def test_every_replica_that_asks_is_sent_the_version_again_when_its_process_is_another_one(
    exchange: Exchange, sending: Sender
) -> None:
    sending.keep(0, TENSORS)
    (first, one), (second, other) = gloo_replica(), gloo_replica()
    assert exchange.ask(0, 0, first) is None and exchange.ask(1, 0, second) is None
    first.engine = receiving("gloo", anew := Model())
    assert exchange.ask(2, 0, first, process="second") is None
    moved = {name: tensor + 1 for name, tensor in TENSORS.items()}
    sending.keep(3, moved)
    assert exchange.ask(3, 3, first, process="second") is None
    assert all(torch.equal(model.loaded[name], TENSORS[name]) for model in (one, other) for name in TENSORS)
    assert all(torch.equal(anew.loaded[name], moved[name]) for name in TENSORS)
    assert first.engine.digests == {name: tensor_digest(name, tensor) for name, tensor in moved.items()}


def test_versions_that_nobody_needs_are_dropped_but_not_the_one_that_replicas_hold(
    exchange: Exchange, sending: Sender
) -> None:
    replica, _ = gloo_replica()
    for version in (0, 1, 2):
        sending.keep(version, TENSORS)
    assert exchange.ask(0, 0, replica) is None
    sending.drop_all_but([2])
    assert exchange.ask(1, 1, replica) == "", "it is not there"
    assert exchange.ask(2, 0, replica) is None and exchange.ask(3, 2, replica) is None


def test_a_replica_that_fails_before_anything_is_sent_is_told_so_and_another_one_is_served(
    exchange: Exchange, sending: Sender
) -> None:
    sending.keep(0, TENSORS)
    (bad, _), (good, _) = gloo_replica(), gloo_replica()
    assert exchange.ask(0, 0, bad) is None
    bad.dies = True
    told = exchange.ask(1, 0, bad)
    assert told is not None and told.startswith("RayActorError")
    assert exchange.ask(2, 0, good) is None
    sending.check()


def lost(
    exchange: Exchange, sending: Sender, monkeypatch: pytest.MonkeyPatch, where: Literal["connect", "send"]
) -> str | None:
    """What a replica is told that dies while the learner connects to it or sends to it, which does not end."""
    monkeypatch.setattr(sender, "_PATIENCE", 0.05)
    monkeypatch.setattr(sender, "_SECONDS_AFTER_A_LOSS", 0.1)
    never = threading.Event()

    def connected(transfer: str, client: Any, source: Source, **_: Any) -> Any:
        def hang() -> None:
            with pytest.raises(RayActorError):
                client.start_weight_update()
            never.wait(20)

        if where == "connect":
            hang()
        return SimpleNamespace(send_weights=hang, shutdown=lambda: None)

    monkeypatch.setattr(vllm_transfer, "connect", connected)
    sending.keep(0, TENSORS)
    replica, _ = gloo_replica()
    replica.dies = True
    told = exchange.ask(0, 0, replica)
    never.set()
    return told


def test_a_transfer_that_does_not_end_after_its_replica_died_stops_the_learner(
    exchange: Exchange, sending: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = lost(exchange, sending, monkeypatch, "send")
    assert told is not None and "died while it was sent weights over gloo" in told
    assert exchange.stopped == [told.removeprefix("LearnerError: ")], "workers that wait are told at once"
    with pytest.raises(LearnerError, match="goes on from the last checkpoint"):
        sending.check()
    assert exchange.ask(1, 0, gloo_replica()[0]) == exchange.stopped[0], "and whoever asks later"


def test_a_replica_that_dies_before_anything_is_sent_stops_nobody(
    exchange: Exchange, sending: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        told = lost(exchange, sending, broken, "connect")
    assert told == "LearnerError: the replica was lost before anything was sent"
    sending.check()
    assert exchange.ask(1, 0, gloo_replica()[0]) is None and exchange.stopped == []
