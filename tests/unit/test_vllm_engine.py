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

REPORT = {"ratio": 0.1, "sparsity": 0.1, "matrices": 7, "digest": "a"}


class FakeLlm(SimpleNamespace):
    """Two workers; remembers in ``told`` what they were asked and how it slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, on_cpu: bool = True) -> None:
        platform = SimpleNamespace(is_cpu=lambda: on_cpu)
        monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
        monkeypatch.setitem(sys.modules, "masters_ray.models.vllm_worker", SimpleNamespace(MASKED="masked"))
        monkeypatch.setattr(vllm_engine, "_start", self._started)
        self.told: list[Any] = []
        self.reports = [REPORT, REPORT]
        self.fails = False
        self.weights: Any = None
        """What the workers say of a student's weights, or what they raise."""
        self.llm_engine = self
        self.reset_mm_cache = self.reset_encoder_cache = lambda: None

    def _started(self, **options: Any) -> Any:
        self.told.append(options.get("enable_sleep_mode", False))
        return self

    def collective_rpc(self, name: str, args: tuple[Any, ...]) -> list[Any]:
        self.told.append(name)
        if self.fails:
            raise OSError("gone")
        if name == "masked_at":
            self.reports = [report | {"ratio": args[1]} for report in self.reports]
            return self.reports
        if isinstance(self.weights, Exception):
            raise self.weights
        return self.weights

    def reset_prefix_cache(self) -> None:
        self.told.append("forgotten")

    def sleep(self, level: int) -> None:
        self.told.append(level)

    def wake_up(self) -> None:
        self.told.append("awake")


def test_a_mask_is_put_on_whole_and_once_and_workers_that_mask_differently_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLlm(monkeypatch)
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2, mask=Mask(parts=["language"], ratio=0.1))
    for _ in range(2):
        assert vars(engine.mask(0.1)) == REPORT | {"masked": {}, "unmasked": {}}
    assert engine.mask(0.2).ratio == 0.2
    assert llm.told == [False, *["masked_at", "forgotten"] * 2]
    llm.fails = True
    with pytest.raises(OSError, match="gone"):
        engine.mask(0.1)
    llm.fails = False
    for ratio in (0.1, 0.2):
        assert engine.mask(ratio).ratio == ratio, "what was left half done is not taken for whole"
    llm.reports = [REPORT, REPORT | {"digest": "b"}]
    with pytest.raises(ReplicaError, match=rf"one engine hold different weights of {tmp_path}: .* digest \['a', 'b'\]"):
        engine.mask(0.3)
    with pytest.raises(ReplicaError, match="started without a mask"):
        VllmEngine(tmp_path, Engine()).mask(0.1)


@pytest.mark.parametrize(
    ("told", "raised"),
    [
        ([{"w": "a"}, {"w": "a"}], None),
        ([{"w": "a"}, {"w": "b"}], "workers of one engine hold different weights"),
        (RuntimeError("Connection closed by peer"), "not taken in .RuntimeError: Connection closed by peer"),
    ],
)
def test_students_weights_are_taken_in_by_all_workers_or_the_engine_is_lost(
    told: Any, raised: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLlm(monkeypatch)
    llm.weights = told
    invitation = Invitation(address="10.0.0.7", port=1234, ranks=2, backend="nccl")
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2)
    if raised is None:
        assert engine.load(invitation) == {"w": "a"}
        assert llm.told == [False, "load_student", "forgotten"]
    else:
        with pytest.raises(ReplicaError, match=raised) as caught:
            engine.load(invitation)
        assert isinstance(caught.value, ReplicaLostError) == isinstance(told, RuntimeError)


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
