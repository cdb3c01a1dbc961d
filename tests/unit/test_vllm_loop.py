"""An engine's loop answers many callers from one batch, and tells each of them when the engine breaks."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from masters_ray.errors import ReplicaLostError
from masters_ray.models.vllm_loop import EngineLoop
from masters_ray.records import Refused


class FakeEngine:
    """Finishes its oldest request at each step."""

    def __init__(self) -> None:
        self.slept: list[str] = []
        self.llm_engine = self
        self.under_way: list[tuple[str, str]] = []
        self.most = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def sleep(self, level: int) -> None:
        assert not self.under_way
        self.slept.append(f"asleep at level {level}")

    def wake_up(self) -> None:
        self.slept.append("awake")

    def add_request(self, name: str, prompt: str, parameters: object) -> None:
        assert self.slept[-1:] in ([], ["awake"])
        if prompt == "long":
            raise ValueError("too long")
        self.under_way.append((name, prompt))
        self.most = max(self.most, len(self.under_way))

    def step(self) -> list[Any]:
        self.go_on.wait()
        name, prompt = self.under_way.pop(0)
        if prompt == "poison":
            fail(self)
        return [SimpleNamespace(request_id=name, finished=True, text=prompt.upper())]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def loop(engine: FakeEngine) -> EngineLoop:
    return EngineLoop(engine)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("out of memory")


def ask(loop: EngineLoop, *prompts: str) -> list[Any]:
    return [one if isinstance(one, Refused) else one.text for one in loop.ask([(prompt, None) for prompt in prompts])]


def test_requests_of_several_callers_run_together_and_each_gets_its_own(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.go_on.clear()
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(ask, loop, f"a{number}", f"b{number}") for number in range(3)]
        assert not any(call.done() for call in calls)
        engine.go_on.set()
        assert [call.result() for call in calls] == [[f"A{number}", f"B{number}"] for number in range(3)]
    assert engine.most > 2
    assert ask(loop) == []


def test_what_the_engine_refuses_does_not_touch_the_others(loop: EngineLoop) -> None:
    assert ask(loop, "a", "long", "b") == ["A", Refused(reason="too long"), "B"]


def test_a_broken_engine_tells_every_caller_then_and_later(engine: FakeEngine, loop: EngineLoop) -> None:
    engine.go_on.clear()
    with ThreadPoolExecutor(4) as threads:
        calls: list[Any] = [threads.submit(ask, loop, *prompts) for prompts in (("a", "poison", "b"), ("c",))]
        calls += [threads.submit(loop.alone, lambda _: None), threads.submit(loop.sleep)]
        engine.go_on.set()
        errors = [call.exception() for call in calls]
    assert {str(error) for error in errors if error} == {"the engine broke: RuntimeError: out of memory"}
    assert isinstance(errors[0], ReplicaLostError)
    for later in (lambda: ask(loop, "a"), lambda: loop.alone(lambda _: None), loop.sleep):
        with pytest.raises(ReplicaLostError, match="the engine broke: RuntimeError: out of memory"):
            later()


def test_an_action_on_the_engine_runs_when_nothing_is_under_way_and_may_fail_alone(loop: EngineLoop) -> None:
    assert ask(loop, "a") == ["A"]
    assert loop.alone(lambda llm: len(llm.under_way)) == 0
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.alone(fail)
    assert ask(loop, "a") == ["A"]


def test_an_engine_sleeps_when_it_has_answered_and_wakes_for_whatever_is_asked(
    engine: FakeEngine, loop: EngineLoop
) -> None:
    assert ask(loop, "a", "b") == ["A", "B"]
    loop.sleep()
    loop.sleep()
    assert engine.slept == ["asleep at level 1"]
    assert ask(loop, "a") == ["A"]
    loop.sleep()
    assert loop.alone(lambda llm: list(llm.slept)) == ["asleep at level 1", "awake"] * 2
    engine.sleep = fail  # type: ignore[method-assign]
    with pytest.raises(ReplicaLostError, match="the engine broke: RuntimeError: out of memory"):
        loop.sleep()
