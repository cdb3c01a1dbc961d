"""Keeps one vLLM engine busy: requests of many callers in one running batch."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from masters_ray.errors import ReplicaLostError
from masters_ray.records import Refused

T = TypeVar("T")


@dataclass(eq=False)
class _Asked:
    """What a caller waits for: one outcome per request."""

    requests: Sequence[tuple[Any, Any]]
    outcomes: list[Any]
    missing: int
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass(eq=False)
class _Alone:
    """An action on the engine itself, while it has no request."""

    action: Callable[[Any], Any]
    wakes: bool = True
    """Whether the engine must be awake for it."""
    result: Any = None
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class EngineLoop:
    """Owns an engine and the only thread that touches it.

    A caller's requests join the batch that runs and leave it one by one, so the engine is full as long as all callers
    together ask for enough.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        """build: makes the vLLM LLM, on the loop's thread. Raises what it raises."""
        self._inbox: queue.SimpleQueue[_Asked | _Alone] = queue.SimpleQueue()
        self._under_way: dict[str, tuple[_Asked, int]] = {}
        self._numbers = itertools.count()
        self._broken: BaseException | None = None
        self._asleep = False
        self.busy_seconds = 0.0
        """Time in which the engine had requests and worked on them."""
        built: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(build, built), name="vllm", daemon=True).start()
        if error := built.get():
            raise error

    def ask(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """(prompt, SamplingParams) → vLLM's RequestOutput, or Refused, for each. Waits for all of them; may be called
        from several threads. Raises ReplicaLostError when the engine broke."""
        asked = _Asked(requests=requests, outcomes=[None] * len(requests), missing=len(requests))
        if requests:
            self._wait(asked)
        return asked.outcomes

    def alone(self, action: Callable[[Any], T]) -> T:
        """``action(llm)`` once all requests before it are answered."""
        waiting = _Alone(action)
        self._wait(waiting)
        result: T = waiting.result
        return result

    def sleep(self) -> None:
        """Have the engine give up the GPUs' memory once all requests before are answered; the next request or action
        wakes it. Needs an engine with vLLM's sleep mode. Raises ReplicaLostError when the engine broke."""
        self._wait(_Alone(self._fall_asleep, wakes=False))

    def _fall_asleep(self, llm: Any) -> None:
        if not self._asleep:
            llm.sleep(level=1)
            self._asleep = True

    def _wait(self, one: _Asked | _Alone) -> None:
        self._inbox.put(one)
        while not one.done.wait(timeout=1.0):
            if self._broken is not None:
                break
        error = one.error if one.done.is_set() else self._broken
        if isinstance(one, _Alone) and one.error is not None:
            raise one.error
        if error is not None:
            raise ReplicaLostError(f"the engine broke: {type(error).__name__}: {error}") from error

    def _run(self, build: Callable[[], Any], built: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            llm = build()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            built.put(error)
            return
        built.put(None)
        try:
            while True:
                self._turn(llm)
        except BaseException as error:  # noqa: BLE001 - handed to every caller
            self._broken = error
            for asked, _ in self._under_way.values():
                asked.error = error
                asked.done.set()

    def _turn(self, llm: Any) -> None:
        """Take in what has come; one step of the engine if it has anything to do."""
        if not self._under_way:
            self._begin(llm, self._inbox.get())
        while not self._inbox.empty():
            self._begin(llm, self._inbox.get())
        if self._under_way:
            self._step(llm)

    def _begin(self, llm: Any, one: _Asked | _Alone) -> None:
        if self._asleep and (isinstance(one, _Asked) or one.wakes):
            llm.wake_up()
            self._asleep = False
        if isinstance(one, _Asked):
            self._take(llm, one)
            return
        while self._under_way:
            self._step(llm)
        try:
            one.result = one.action(llm)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            one.error = error
        one.done.set()

    def _take(self, llm: Any, asked: _Asked) -> None:
        from vllm.exceptions import VLLMValidationError

        for place, (prompt, parameters) in enumerate(asked.requests):
            name = str(next(self._numbers))
            try:
                llm.llm_engine.add_request(name, prompt, parameters)
            except (ValueError, VLLMValidationError) as error:  # about this request, which the engine has not taken
                self._deliver(asked, place, Refused(reason=_first_cause(error)))
            else:
                self._under_way[name] = asked, place

    def _step(self, llm: Any) -> None:
        began = time.monotonic()
        outputs = llm.llm_engine.step()
        self.busy_seconds += time.monotonic() - began
        for output in outputs:
            if output.finished:
                asked, place = self._under_way.pop(output.request_id)
                self._deliver(asked, place, output)

    @staticmethod
    def _deliver(asked: _Asked, place: int, outcome: Any) -> None:
        asked.outcomes[place] = outcome
        asked.missing -= 1
        if not asked.missing:
            asked.done.set()


def _first_cause(error: BaseException) -> str:
    """What a processor said of a prompt: vLLM wraps it into errors that tell whole pictures."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
