"""What the engine makes of its workers' words; vLLM is stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from masters_ray.config import Engine, MaskScope
from masters_ray.engines import vllm_engine
from masters_ray.engines.handover_file import PREFIX
from masters_ray.engines.vllm_engine import Mask, VllmEngine
from masters_ray.errors import ReplicaError

REPORT = {"ratio": 0.1, "sparsity": 0.1, "matrices": 7, "digest": "a"}


@pytest.mark.parametrize(("of_second", "agree"), [(REPORT, True), (REPORT | {"digest": "b"}, False)])
def test_workers_that_are_masked_differently_make_no_engine(
    of_second: dict[str, Any], agree: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setitem(sys.modules, "masters_ray.engines.vllm_worker", SimpleNamespace(MASKED="masked"))
    llm = SimpleNamespace(collective_rpc=lambda name: [REPORT, of_second])
    monkeypatch.setattr(vllm_engine, "_start", lambda **options: llm)
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2, mask=Mask(scope=MaskScope(), ratio=0.1))
    if agree:
        assert vars(engine.mask(0.1)) == REPORT | {"masked": {}, "unmasked": {}}
    else:
        with pytest.raises(ReplicaError, match=f"workers of one engine masked {tmp_path} differently: .*'b'"):
            engine.mask(0.1)


def test_weights_that_arrive_are_read_from_a_directory_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setitem(sys.modules, "masters_ray.engines.vllm_worker", SimpleNamespace(MASKED="masked"))
    folders = []

    def read(_: str, args: tuple[str]) -> list[dict[str, str]]:
        folders.append(Path(args[0]))
        with safe_open(folders[0] / "model.safetensors", "pt") as file:
            return [dict.fromkeys(file.keys(), "digest")]

    nothing = SimpleNamespace(reset_mm_cache=lambda: None, reset_encoder_cache=lambda: None)
    llm = SimpleNamespace(collective_rpc=read, reset_prefix_cache=lambda: None, llm_engine=nothing)
    monkeypatch.setattr(vllm_engine, "_start", lambda **options: llm)
    found = VllmEngine(tmp_path, Engine()).load((name, torch.ones(3)) for name in "ab")
    assert found == {"a": "digest", "b": "digest"}
    assert folders[0].name.startswith(PREFIX) and not folders[0].exists()


def test_an_answer_is_told_with_how_it_ended_and_one_that_the_engine_gave_up_is_none() -> None:
    outputs = [SimpleNamespace(token_ids=[5, 6], finish_reason=reason) for reason in ("stop", "length", "abort")]
    completions = [vllm_engine._completion(output) for output in outputs[:2]]
    assert [(one.token_ids, one.finish) for one in completions] == [((5, 6), "stop"), ((5, 6), "length")]
    with pytest.raises(ReplicaError, match="ended an answer with 'abort', expected stop or length"):
        vllm_engine._completion(outputs[2])


@pytest.mark.parametrize("on_cpu", [False, True])
def test_an_engine_that_sleeps_does_so_once_it_is_loaded_and_never_on_a_cpu(
    on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: on_cpu)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setitem(sys.modules, "masters_ray.engines.vllm_worker", SimpleNamespace(MASKED="masked"))
    told: list[Any] = []
    llm = SimpleNamespace(sleep=lambda level: told.append(level), wake_up=lambda: told.append("awake"))

    def start(**options: Any) -> Any:
        told.append(options.get("enable_sleep_mode", False))
        return llm

    monkeypatch.setattr(vllm_engine, "_start", start)
    engine = VllmEngine(tmp_path, Engine(), sleeps=True)
    engine.sleep()
    engine.loop.alone(lambda _: None)
    engine.sleep()
    assert told == ([False] if on_cpu else [True, 1, "awake", 1])
    told.clear()
    VllmEngine(tmp_path, Engine()).sleep()
    assert told == [False], "one that was not told to"
