"""What the engine makes of its workers' words; vLLM is stood in for."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from masters_ray.config import Engine
from masters_ray.errors import ReplicaError, ReplicaLostError
from masters_ray.models import vllm_engine
from masters_ray.models.vllm_engine import Mask, VllmEngine
from masters_ray.weight_sync.stream import Invitation


class FakeLlm:
    """Two workers that give ``answers``, or raise them; ``told`` is what they were asked and how it slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, on_cpu: bool = True) -> None:
        platform = SimpleNamespace(is_cpu=lambda: on_cpu)
        monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
        monkeypatch.setitem(sys.modules, "masters_ray.models.vllm_worker", SimpleNamespace(MASKED="masked"))
        monkeypatch.setattr(vllm_engine, "_start", self._started)
        self.told: list[Any] = []
        self.answers: Any = None
        self.llm_engine = SimpleNamespace(reset_mm_cache=lambda: None, reset_encoder_cache=lambda: None)

    def _started(self, *, enable_sleep_mode: bool, **_: Any) -> Any:
        self.told.append(enable_sleep_mode)
        return self

    def collective_rpc(self, name: str, args: tuple[Any, ...]) -> list[Any]:
        self.told.append(name)
        if isinstance(self.answers, Exception):
            raise self.answers
        return list(self.answers)

    def reset_prefix_cache(self) -> None:
        self.told.append("forgotten")

    def sleep(self, level: int) -> None:
        self.told.append(level)

    def wake_up(self) -> None:
        self.told.append("awake")


def reports(ratio: float, *digests: str) -> list[dict[str, Any]]:
    return [{"ratio": ratio, "sparsity": ratio, "digest": digest} for digest in digests]


def test_a_mask_is_put_on_whole_and_once_and_workers_that_mask_differently_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLlm(monkeypatch)
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2, mask=Mask(parts=["language"], ratio=0.1))
    llm.answers = reports(0.1, "a", "a")
    assert [engine.mask(0.1).digest for _ in range(2)] == ["a", "a"]
    assert llm.told == [False, "masked_at", "forgotten"]
    llm.answers = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        engine.mask(0.2)
    llm.answers = reports(0.1, "b", "b")
    assert engine.mask(0.1).digest == "b", "what was left half done is not taken for whole"
    llm.answers = reports(0.3, "a", "b")
    with pytest.raises(ReplicaError, match=rf"one engine hold different weights of {tmp_path}: .* digest \['a', 'b'\]"):
        engine.mask(0.3)
    with pytest.raises(ReplicaError, match="started without a mask"):
        VllmEngine(tmp_path, Engine()).mask(0.1)


def test_students_weights_are_taken_in_by_all_workers_or_the_engine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLlm(monkeypatch)
    invitation = Invitation(address="10.0.0.7", port=1234, ranks=2, backend="nccl")
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2)
    llm.answers = [{"w": "a"}, {"w": "a"}]
    assert engine.load(invitation) == {"w": "a"}
    assert llm.told == [False, "load_student", "forgotten"]
    llm.answers = [{"w": "a"}, {"w": "b"}]
    with pytest.raises(ReplicaError, match="workers of one engine hold different weights"):
        engine.load(invitation)
    llm.answers = RuntimeError("Connection closed by peer")
    with pytest.raises(ReplicaLostError, match=r"not taken in .RuntimeError: Connection closed by peer"):
        engine.load(invitation)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_an_engine_that_sleeps_does_so_once_it_is_loaded_and_never_on_a_cpu(
    on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLlm(monkeypatch, on_cpu=on_cpu)
    engine = VllmEngine(tmp_path, Engine(), sleeps=True)
    engine.sleep()
    engine.loop.alone(lambda _: None)
    engine.sleep()
    assert llm.told == ([False] if on_cpu else [True, 1, "awake", 1])
    llm.told.clear()
    VllmEngine(tmp_path, Engine()).sleep()
    assert llm.told == [False], "one that was not told to"
