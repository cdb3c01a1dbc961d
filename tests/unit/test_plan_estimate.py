"""Estimates from shapes beside the paper's times, a mixture's active parameters, and memory by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from masters_ray.config import Config, Engine, HostedModel, Judge, Learner, Lora, Rollout, Teacher
from masters_ray.method import schedule
from masters_ray.models import weights
from masters_ray.plan.estimate import Lengths, active_parameters, estimated, learner_operations
from masters_ray.plan.forecast import learning
from masters_ray.plan.memory import CARDS, engine_bytes, learner_bytes
from masters_ray.plan.rates import GroupMaking, Rates
from tests import facts
from tests.conftest import PAIR

exactly = pytest.approx
GPUS, SAMPLES, ANSWERS = 256, 1_500_000, 8
PAPER = Lengths(prompt=1500, answer=1500, picture_bytes=1)
"""The paper says neither; see docs/PLAN.md."""
TRAINING = {0.0: 49.0, 0.05: 73.0, 0.1: 97.0, 0.15: 119.0, 0.2: 148.0}
"""Online share → hours, Qwen3-VL-32B to 8B (appendix F.2)."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


def checkpoint(hub: Path, name: str) -> Path:
    return hub / name if (hub / name).exists() else facts.checkpoint(name, hub, PAIR / "student")


@pytest.mark.parametrize(
    ("name", "ranks", "least", "most"),
    [
        ("Qwen2.5-VL-72B-Instruct", 4, 36, 36),
        ("InternVL3-78B-hf", 4, 36, 36),
        ("Qwen3-VL-32B-Instruct", 2, 24, 24),
        ("InternVL3_5-38B-HF", 2, 24, 24),
        ("InternVL3-14B-hf", 1, 12, 16),
        ("Qwen3-VL-8B-Instruct", 1, 12, 16),
        ("Qwen2.5-VL-7B-Instruct", 1, 12, 16),
        ("Qwen3-VL-4B-Instruct", 1, 6, 9),
        ("Qwen2.5-VL-3B-Instruct", 1, 6, 9),
        ("Qwen3-VL-2B-Instruct", 1, 6, 9),
    ],
)
def test_pregeneration_takes_the_papers_hours(hub: Path, name: str, ranks: int, least: float, most: float) -> None:
    """Appendix F.9: hours for 1.5 million questions with 8 answers on 256 A100, within a factor of 1.5."""
    folder = checkpoint(hub, name)
    teacher = Teacher(checkpoint=str(folder), gpus=1, tensor_parallel=ranks)
    student = HostedModel(checkpoint=str(folder), gpus=1, tensor_parallel=ranks)
    rollout = Rollout(teacher_answers=ANSWERS, student_answers=0)
    config = Config(
        teacher=teacher, student=student, rollout=rollout, judge=Judge(of_teacher="rule", of_student="rule")
    )
    rates = estimated(config, {"teacher": folder, "student": folder}, PAPER, CARDS["a100-80gb"])
    hours = SAMPLES * rates.calls["answer"]["teacher"] / (GPUS / ranks) / 3600
    assert least / 1.5 <= hours <= 1.5 * most


def paper(hub: Path) -> tuple[Config, dict[str, Path]]:
    """The learner as the paper's seems to be: a live teacher, checkpointed activations."""
    folders = {"teacher": checkpoint(hub, "Qwen3-VL-32B-Instruct"), "student": checkpoint(hub, "Qwen3-VL-8B-Instruct")}
    learner = Learner(workers=GPUS, gpus=1, teacher="live", activation_checkpointing=True, groups_per_step=256)
    return Config(learner=learner), folders


def test_training_takes_the_papers_hours_at_every_online_share(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appendix F.2. Online: 1,000 samples take half an hour on 256 GPUs (F.9), in turns with the learner."""
    config, folders = paper(hub)
    rows = replace(weights.architecture(folders["student"]).family, layout="rows")
    monkeypatch.setattr("masters_ray.families.FAMILIES", {"qwen3_vl": rows})
    operations = learner_operations(config, folders, PAPER)
    seconds = operations / (0.35 * CARDS["a100-80gb"].operations)
    calls = {"answer": {"student": 1800 / 1000 * GPUS}}
    rates = Rates(group_seconds=seconds, calls=calls, publish_seconds=0, load_seconds=0)
    making = GroupMaking(rounds=[{"student": calls["answer"]["student"]}], replicas={"student": GPUS}, batch_rows=1)
    rollout = Rollout(max_staleness=0, max_wait_seconds=1e9, placement="turns")
    for share, hours in TRAINING.items():
        planned = [(schedule.Stage(index=0, ratio=0.0), range(SAMPLES))]
        iterations = schedule.iterations(planned, config.learner.groups_per_step, share)
        in_turns = making.seconds(256)
        found = learning(iterations, lambda _: in_turns, rates, rollout, GPUS).seconds / 3600  # noqa: B023
        assert hours / 1.5 <= found <= 1.5 * hours, share


def test_a_prompt_is_learned_once_a_group_and_adapters_need_one_pass_less(hub: Path) -> None:
    config, folders = paper(hub)
    size = weights.parameter_count(folders["student"])
    stored = replace(config, learner=Learner(activation_checkpointing=True))
    assert learner_operations(stored, folders, PAPER) == exactly(8 * size * (1500 + 8 * 1500))
    adapters = replace(config, learner=Learner(lora=Lora(rank=8)))
    assert learner_operations(adapters, folders, PAPER) == exactly(4 * size * (1500 + 8 * 1500))


def test_a_mixture_computes_with_the_experts_that_a_token_is_sent_to(hub: Path) -> None:
    """Qwen3-VL-30B-A3B: 8 of 128 experts of 48 layers with three matrices of 2048 × 768 each."""
    folder = checkpoint(hub, "Qwen3-VL-30B-A3B-Instruct")
    experts = 48 * 128 * 3 * 2048 * 768
    assert active_parameters(folder) == exactly(weights.parameter_count(folder) - experts * (1 - 8 / 128))


def test_memory_by_hand(hub: Path) -> None:
    """Qwen3-VL-8B in bfloat16 at ZeRO 3 over 8 workers; half of the engine's 80 GB are shared with another."""
    folder = checkpoint(hub, "Qwen3-VL-8B-Instruct")
    size = weights.parameter_count(folder)
    vision = sum(
        entry.shape[0] * (entry.shape[1] if len(entry.shape) > 1 else 1)
        for name, entry in weights.headers(folder).items()
        if weights.architecture(folder).part_of(name) == "vision" and len(entry.shape) < 3
    )
    learner = Learner(workers=8, gpus=1, zero_stage=3, activation_checkpointing=True, tokens_per_micro_batch=8192)
    found = learner_bytes(learner, folder)
    assert found.weights == exactly(2 * size / 8 + 2e9 * 7 / 8)
    assert found.optimizer == exactly(12 * (size - vision) / 8, rel=0.01)
    assert found.gradients == exactly(found.optimizer / 3)
    assert found.activations == exactly(8192 * 2 * (36 * 4096 + 4 * 4096 + 3 * 4096 + 3 * 1024 + 4 * 12288))
    engine = engine_bytes(Engine(max_num_batched_tokens=2048), folder, 2, 40e9)
    assert engine.weights == size
    assert engine.token == 2 * 36 * 1024 * 2 / 2
    assert engine.cache == exactly(0.9 * 40e9 - size - 1.5e9 - 2048 * 3e5)
    assert engine.sequences(1000) == exactly(engine.cache / engine.token / 1000)
