"""A small model with a tied and a frozen weight takes steps of one to three micro-batches, a part of it used by only
some of them; once as planned, once with a poisoned step in between that is dropped. PyTorch alone takes the same."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.engine import StudentEngine

pytestmark = pytest.mark.e2e
CASES: list[dict[str, Any]] = [
    *({"dtype": "float32", "zero_stage": stage} for stage in range(4)),
    {"dtype": "float32", "zero_stage": 2, "offload": "optimizer"},
    {"dtype": "float32", "zero_stage": 3, "offload": "everything"},
    *({"dtype": "bfloat16", "zero_stage": stage} for stage in (1, 2, 3)),
]
PLAN = [[True, False], [False], [True, False, True], [False, False], [True]]
"""Micro-batches of each step: whether they use the part that not all use."""
POISONED = 2
RATE = 1e-2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(16, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.middle = nn.Linear(8, 8)
        self.sometimes = nn.Linear(8, 8)

    def forward(self, ids: Tensor, whole: bool) -> Tensor:
        states = self.middle(torch.tanh(self.frozen(self.embedding(ids))))
        if whole:
            states = states + self.sometimes(states)
        return states @ self.embedding.weight.T


def loss_of(model: Any, step: int, micro: int, rank: int, whole: bool) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    ids = torch.randint(0, 16, (4,), generator=generator)
    return model(ids, whole).float().log_softmax(-1)[:, 3].mean() * -1.0


def engine_of(settings: Learner) -> StudentEngine:
    return StudentEngine(Model(), settings, torch.device("cpu"))


def weights_of(engine: StudentEngine) -> list[Tensor]:
    return [one.float() for one in engine.whole_weights(keep=True).values()]


def trained(settings: Learner, rank: int, workers: int, poisoned: bool) -> tuple[list[Tensor], list[float]]:
    """Weights and gradient norms after the plan; the poisoned step is dropped or was never there."""
    engine = engine_of(settings)
    norms = []
    for step, micro_batches in enumerate(PLAN):
        if step == POISONED and not poisoned:
            continue
        for micro, whole in enumerate(micro_batches):
            loss = loss_of(engine, step, micro, rank, whole)
            if step == POISONED and micro == 0 and rank == workers - 1:
                loss = loss * float("nan")
            engine.add_gradient(loss)
        norm = engine.update(RATE)
        assert (norm is None) is (step == POISONED), f"{norm} on rank {rank}"
        if norm is not None:
            norms.append(norm)
    return weights_of(engine), norms


def assert_gone_on(settings: Learner, rank: int, folder: Path) -> None:
    """An engine that loads a checkpoint goes on as the one that wrote it, and refuses it once it names a program."""
    engines = [engine_of(settings) for _ in range(2)]

    def step(engine: StudentEngine, number: int) -> None:
        engine.add_gradient(loss_of(engine, number, 0, rank, whole=True))
        engine.update(RATE)

    step(engines[0], 0)
    engines[0].save(folder, {"random": torch.get_rng_state(), "told": {"steps": [{"loss": 1.0}]}})
    torch.distributed.barrier()
    assert engines[1].load(folder)["told"] == {"steps": [{"loss": 1.0}]}
    for engine in engines:
        step(engine, 1)
    assert farthest(*map(weights_of, engines)) == 0.0
    torch.distributed.barrier()
    if rank == 0:
        for file in folder.rglob("*.pt"):
            torch.save({"module": Program(folder / "ran")}, file)
    torch.distributed.barrier()
    with pytest.raises(LearnerError, match="is no checkpoint of the learner's; nothing of it was run"):
        engines[1].load(folder)
    assert not (folder / "ran").exists()


class Program:
    """Whoever unpickles it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._file}",)


def plainly(workers: int, clip: float) -> tuple[list[Tensor], list[float]]:
    """The same steps without DeepSpeed."""
    model = Model()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    norms = []
    for step, micro_batches in enumerate(PLAN):
        if step == POISONED:
            continue
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for micro, whole in enumerate(micro_batches):
            for rank in range(workers):
                (loss_of(model, step, micro, rank, whole) / workers).backward()
        norms.append(float(nn.utils.clip_grad_norm_(parameters, clip)))
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], norms


def farthest(ones: list[Tensor], others: list[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(ones, others, strict=True))


def assert_small_updates_add_up(settings: Learner, rank: int) -> None:
    """Steps far below a bfloat16 weight's resolution change few weights once, and many in sixty."""
    engine = engine_of(settings)
    start, moved = weights_of(engine), []
    for _ in range(60):
        engine.add_gradient(loss_of(engine, 0, 0, rank, whole=True))
        engine.update(2e-5)
        pairs = zip(start, weights_of(engine), strict=True)
        moved.append(sum(int((one != other).sum()) for one, other in pairs))
    assert moved[0] < 0.1 * moved[-1]


def run(rank: int, workers: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    for number, case in enumerate(CASES):
        print(f"{case}, rank {rank}", flush=True)
        settings = Learner(gradient_clipping=0.5, **case)
        never, norms = trained(settings, rank, workers, poisoned=False)
        dropped, norms_dropped = trained(settings, rank, workers, poisoned=True)
        plain, plain_norms = plainly(workers, settings.gradient_clipping)
        assert farthest(never, dropped) == 0.0 and norms == norms_dropped, "a dropped step leaves no trace"
        if settings.dtype == "float32":
            assert norms == pytest.approx(plain_norms, rel=2e-6)
            assert farthest(never, plain) < 2e-6
        else:  # Adam turns the sign of a gradient near zero into a whole step, so only the mean is close
            assert norms == pytest.approx(plain_norms, rel=3e-2)
            apart = [(one - other).abs().flatten() for one, other in zip(never, plain, strict=True)]
            assert torch.cat(apart).mean() < 0.2 * RATE
            assert_small_updates_add_up(settings, rank)
        assert_gone_on(settings, rank, folder / str(number))


@pytest.mark.parametrize("workers", [1, 2])
def test_steps_are_those_of_plain_pytorch_a_dropped_one_leaves_no_trace_and_a_checkpoint_is_gone_on_from(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run, args=(workers, port, tmp_path), nprocs=workers)
