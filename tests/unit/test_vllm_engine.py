"""What the engine makes of its workers' words; vLLM is stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from masters_ray.config import Engine, MaskScope
from masters_ray.engines import vllm_engine
from masters_ray.engines.vllm_engine import Mask, VllmEngine
from masters_ray.errors import ReplicaError, ReplicaLostError
from masters_ray.weight_sync.stream import Invitation

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


@pytest.mark.parametrize(
    ("told", "raised"),
    [
        ([{"w": "a"}, {"w": "a"}], None),
        ([{"w": "a"}, {"w": "b"}], "workers of one engine took in different weights"),
        (RuntimeError("Connection closed by peer"), "not taken in .RuntimeError: Connection closed by peer"),
    ],
)
def test_students_weights_are_taken_in_by_all_workers_or_the_engine_is_lost(
    told: Any, raised: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setitem(sys.modules, "masters_ray.engines.vllm_worker", SimpleNamespace(MASKED="masked"))
    invitation = Invitation(address="10.0.0.7", port=1234, ranks=2, backend="nccl")
    llm = MagicMock()
    llm.collective_rpc = MagicMock(side_effect=[told])
    monkeypatch.setattr(vllm_engine, "_start", lambda **options: llm)
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2)
    if raised is None:
        assert engine.load(invitation) == {"w": "a"}
        llm.collective_rpc.assert_called_once_with("load_student", args=(vars(invitation),))
        llm.reset_prefix_cache.assert_called_once()
    else:
        with pytest.raises(ReplicaError, match=raised) as caught:
            engine.load(invitation)
        assert isinstance(caught.value, ReplicaLostError) == isinstance(told, RuntimeError)


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
