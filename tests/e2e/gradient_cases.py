"""What DeepSpeed makes of a step, in processes of its own: ``python -m tests.e2e.gradient_cases WORKERS`` prints JSON.

For every ZeRO stage and precision a small model with a tied and a frozen weight takes steps of one to three
micro-batches, a part of it used by only some of them; once as planned, once with a poisoned step in between that is
dropped. PyTorch alone takes the same steps. A checkpoint is written and gone on from.
"""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masters_ray.config import Learner
from masters_ray.errors import LearnerError
from masters_ray.learner.engine import StudentEngine

CASES: dict[str, dict[str, Any]] = {
    "float32 stage 0": {"zero_stage": 0},
    "float32 stage 1": {"zero_stage": 1},
    "float32 stage 2": {"zero_stage": 2},
    "float32 stage 3": {"zero_stage": 3},
    "float32 stage 2, optimizer on the CPU": {"zero_stage": 2, "offload": "optimizer"},
    "float32 stage 3, everything on the CPU": {"zero_stage": 3, "offload": "everything"},
    "bfloat16 stage 1": {"zero_stage": 1, "dtype": "bfloat16"},
    "bfloat16 stage 2": {"zero_stage": 2, "dtype": "bfloat16"},
    "bfloat16 stage 3": {"zero_stage": 3, "dtype": "bfloat16"},
}
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


def gone_on(settings: Learner, rank: int, folder: Path) -> dict[str, Any]:
    """How far weights and next step of an engine that loads a checkpoint are from those of the one that wrote it, and
    what it says of the checkpoint once a file of it names a program."""
    engines = [engine_of(settings) for _ in range(2)]

    def step(engine: StudentEngine, number: int) -> None:
        engine.add_gradient(loss_of(engine, number, 0, rank, whole=True))
        engine.update(RATE)

    step(engines[0], 0)
    engines[0].save(folder, {"random": torch.get_rng_state(), "told": {"steps": [{"loss": 1.0}]}})
    torch.distributed.barrier()
    told = engines[1].load(folder)["told"]
    for engine in engines:
        step(engine, 1)
    torch.distributed.barrier()
    if rank == 0:
        for file in folder.rglob("*.pt"):
            torch.save({"module": Program(folder / "ran")}, file)
    torch.distributed.barrier()
    refusal = ""
    try:
        engines[1].load(folder)
    except LearnerError as error:
        refusal = str(error)
    return {
        "loaded_against_written": farthest(*map(weights_of, engines)),
        "told": told,
        "refusal": refusal,
        "ran": (folder / "ran").exists(),
    }


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


def mean_distance(ones: list[Tensor], others: list[Tensor]) -> float:
    pairs = zip(ones, others, strict=True)
    return float(torch.cat([(one - other).abs().flatten() for one, other in pairs]).mean())


def small_updates_add_up(settings: Learner, rank: int) -> list[int]:
    """Weights that differ from the start after 1 and after 60 steps far below a bfloat16 weight's resolution."""
    engine = engine_of(settings)
    start = weights_of(engine)
    moved = []
    for _ in range(60):
        engine.add_gradient(loss_of(engine, 0, 0, rank, whole=True))
        engine.update(2e-5)
        pairs = zip(start, weights_of(engine), strict=True)
        moved.append(sum(int((one != other).sum()) for one, other in pairs))
    return [moved[0], moved[-1]]


def run(rank: int, workers: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for number, (name, chosen) in enumerate(CASES.items()):
        settings = Learner(**{"dtype": "float32", "gradient_clipping": 0.5, **chosen})
        never, norms = trained(settings, rank, workers, poisoned=False)
        dropped, norms_dropped = trained(settings, rank, workers, poisoned=True)
        plain, plain_norms = plainly(workers, settings.gradient_clipping)
        found[name] = {
            "dropped_against_never": farthest(never, dropped),
            "norms_dropped_against_never": max(abs(a - b) for a, b in zip(norms, norms_dropped, strict=True)),
            "against_plain": farthest(never, plain),
            "mean_against_plain": mean_distance(never, plain),
            "norms_against_plain": max(abs(a - b) / b for a, b in zip(norms, plain_norms, strict=True)),
        }
        found[name] |= gone_on(settings, rank, Path(folder) / str(number))
        if settings.dtype == "bfloat16":
            found[name]["moved"] = small_updates_add_up(settings, rank)
    if rank == 0:
        print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        chosen_port = free.getsockname()[1]
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        torch.multiprocessing.spawn(run, args=(count, chosen_port, temporary), nprocs=count)
