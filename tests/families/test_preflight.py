"""Broken pairs, each of which one check alone tells, on real engines and models in this process."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masters_ray.config import Config, Data, DataSource, Engine, HostedModel, Learner, MaskScope, Run, Schedule, Teacher
from masters_ray.errors import CheckError
from masters_ray.families import FAMILIES
from masters_ray.method.masks import MaskReport
from masters_ray.models import hf, weights
from masters_ray.preflight import Finding, engine_side, learner_side, refuse_failed
from masters_ray.records import Problem
from masters_ray.replicas import model as replica_model
from masters_ray.replicas.judge import Verdict
from masters_ray.replicas.model import ReplicaModel
from masters_ray.replicas.pool import Pool
from tests.conftest import PAIR
from tests.families.test_learner import problem
from tests.families.test_line import PARTS, end, engines_in_this_process, replica

__all__ = ["engines_in_this_process"]
PROBLEMS = [problem(place) for place in (0, 1, 3)]


class Here:
    """A pool of one replica in this process."""

    def __init__(self, model: ReplicaModel) -> None:
        self.model = model

    def mask(self, ratio: float) -> list[MaskReport]:
        return [self.model.engine.mask(ratio)]

    def call_again(self, method: str, *arguments: Any) -> Any:
        return getattr(self.model, method)(*arguments)


def pair(teacher: Path, student: Path, **mask: bool) -> Config:
    source = DataSource(path="no file")
    engine = Engine(dtype="float32")
    return Config(
        run=Run(dir="no directory"),
        data=Data(train=[source], held_out=[source]),
        teacher=Teacher(checkpoint=str(teacher), engine=engine, mask=MaskScope(**mask)),
        student=HostedModel(checkpoint=str(student), engine=engine),
        schedule=Schedule(max_ratio=0.2, step=0.2),
        learner=Learner(dtype="float32"),
    )


def examine(
    config: Config, toy_engine: Engine, *, engine_of_student: Path | None = None, engine_of_teacher: Path | None = None
) -> dict[str, Finding]:
    """All checks that load models, as the doctor makes them."""
    probe = learner_side.measure(config.student.checkpoint, config.learner, list(PROBLEMS))
    found = [engine_side.packing(probe), engine_side.export(probe)]
    student = replica(engine_of_student or Path(config.student.checkpoint), "student", toy_engine)
    pool = cast(Pool, Here(student))
    try:
        found += [engine_side.agreed(config, probe, pool, name) for name in ("agreement", "pictures")]
    finally:
        end(student)
    folder, parts = Path(config.teacher.checkpoint), PARTS
    masked = {
        ratio: learner_side._masked(str(folder), config.learner, ratio, frozenset(parts), probe.problems, probe.answers)
        for ratio in (0.2, 0.0)
    }
    teacher = replica(engine_of_teacher or folder, "teacher", toy_engine, masked=parts, ratio=0.2, ratios=(0.2, 0.0))
    pool = cast(Pool, Here(teacher))
    try:
        found.append(engine_side.masks(config, folder, pool, 0.2))
        found.append(engine_side.teacher(config, probe, pool, masked))
        found.append(engine_side.remask(probe, pool, 0.2, 0.0))
    finally:
        end(teacher)
    return {one.name: one for one in found}


def failed(found: dict[str, Finding]) -> set[str]:
    return {one.name for one in found.values() if one.verdict == "failed"}


def test_a_good_pair_passes_every_check(checkpoint: Callable[..., Path], toy_engine: Engine) -> None:
    config = pair(checkpoint("qwen2_5_vl", layers=4, seed=1), checkpoint("qwen2_5_vl"))
    found = examine(config, toy_engine)
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(found, "passed"), found
    refuse_failed(list(found.values()))


def test_a_recurrent_model_that_shares_prompts_fails_packing(
    checkpoint: Callable[..., Path], toy_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = dataclasses.replace(FAMILIES["qwen3_5"], layout="prompt_once")
    monkeypatch.setitem(FAMILIES, "qwen3_5", changed)
    probe = learner_side.measure(str(checkpoint("qwen3_5")), Learner(dtype="float32"), list(PROBLEMS))
    assert engine_side.export(probe).verdict == "passed"
    found = engine_side.packing(probe)
    assert found.verdict == "failed"
    with pytest.raises(CheckError, match=r"(?s)--skip packing goes on without.*expected that answers of one batch"):
        refuse_failed([found])


def test_a_tower_that_loses_its_prefix_fails_the_export(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = hf._named
    lost = lambda *arguments: {one.replace(".vision_model.", "."): held for one, held in named(*arguments).items()}  # noqa: E731
    monkeypatch.setattr(hf, "in_checkpoint", lambda *arguments: lost(*arguments))
    probe = learner_side.measure(str(checkpoint("llava_onevision")), Learner(dtype="float32"), list(PROBLEMS))
    assert engine_side.packing(probe).verdict == "passed"
    found = engine_side.export(probe)
    assert found.verdict == "failed" and "vision_tower." in found.figure


def test_weights_that_differ_between_engine_and_learner_fail_the_agreement(
    checkpoint: Callable[..., Path], toy_engine: Engine, tmp_path: Path
) -> None:
    folder = checkpoint("qwen2_5_vl")
    damaged = tmp_path / "damaged"
    state = dict(hf.load_model(folder, "float32").named_parameters())
    with torch.no_grad():
        name = next(one for one in state if one.endswith("layers.1.mlp.down_proj.weight"))
        state[name][3, 5] += 8.0
    hf.export(state, folder, damaged, "float32")
    probe = learner_side.measure(str(folder), Learner(dtype="float32"), list(PROBLEMS))
    student = replica(damaged, "student", toy_engine)
    try:
        config, pool = pair(folder, folder), cast(Pool, Here(student))
        assert engine_side.agreed(config, probe, pool, "agreement").verdict == "failed"
    finally:
        end(student)
    assert engine_side.packing(probe).verdict == engine_side.export(probe).verdict == "passed"


def test_a_picture_that_is_turned_fails_the_pictures_alone(
    checkpoint: Callable[..., Path], toy_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("qwen2_5_vl")
    decode = replica_model.decode
    monkeypatch.setattr(replica_model, "decode", lambda picture: decode(picture).rotate(90, expand=True))
    found = examine(pair(folder, folder), toy_engine)
    assert failed(found) >= {"pictures"} and found["agreement"].verdict == "passed"


def test_another_scope_of_the_mask_fails_the_masks_alone(checkpoint: Callable[..., Path], toy_engine: Engine) -> None:
    folder = checkpoint("qwen2_5_vl")
    assert failed(examine(pair(folder, folder, vision=True), toy_engine)) == {"masks"}


def test_experts_stored_the_other_way_round_fail_the_teacher(
    checkpoint: Callable[..., Path], toy_engine: Engine, tmp_path: Path
) -> None:
    folder = checkpoint("qwen3_vl_moe")
    turned = tmp_path / "turned"
    held = dict(weights.tensors(folder))
    for name, tensor in held.items():
        if name.endswith("experts.gate_up_proj"):
            held[name] = torch.cat(tensor.split(tensor.shape[2] // 2, 2)[::-1], 2).contiguous()
    _copy(folder, turned, held)
    student = checkpoint("qwen3_vl")
    found = examine(pair(folder, student), toy_engine, engine_of_teacher=turned)
    assert failed(found) == {"teacher"}


def _copy(source: Path, target: Path, held: dict[str, torch.Tensor]) -> None:
    shutil.copytree(source, target)
    save_file(held, target / "model.safetensors", {"format": "pt"})


def test_an_engine_that_cannot_change_its_mask_fails_remask(checkpoint: Callable[..., Path]) -> None:
    class Stuck(Here):
        def mask(self, ratio: float) -> list[MaskReport]:
            return [MaskReport(ratio=ratio, sparsity=0.2, digest=str(ratio))]

        def call_again(self, method: str, *arguments: Any) -> Any:
            return [[np.zeros(2, np.float32)] for _ in PROBLEMS]

    probe = learner_side.Probe(problems=PROBLEMS, answers=[], alone=[], together=[], dtype="float32", export_fault="")
    found = engine_side.remask(probe, cast(Pool, Stuck(cast(ReplicaModel, None))), 0.2, 0.0)
    assert found.verdict == "failed" and "the mask changes nothing" in found.figure


@pytest.mark.parametrize(("says", "verdict"), [("yes", "failed"), ("truth", "passed"), ("unreadable", "failed")])
def test_a_judge_that_says_right_to_everything_fails(says: str, verdict: str) -> None:
    asked = [
        dataclasses.replace(problem(2), id=str(number), label=label) for number, label in enumerate(("red", "blue"))
    ]

    class Judging(Here):
        def call_again(self, method: str, *arguments: Any) -> Any:
            problems, answers, _ = cast(tuple[list[Problem], list[list[str]], bool], arguments)
            right = [[int(text == one.label) for text in texts] for one, texts in zip(problems, answers, strict=True)]
            known = {"yes": lambda _: 1, "truth": lambda one: one, "unreadable": lambda _: None}[says]
            return [[Verdict(accuracy=known(one), text="") for one in own] for own in right]

    pool = cast(Pool, Judging(cast(ReplicaModel, None)))
    assert engine_side.judge(pair(PAIR / "teacher", PAIR / "student"), asked, pool).verdict == verdict
