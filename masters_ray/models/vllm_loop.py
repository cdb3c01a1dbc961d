"""Keeps one vLLM engine busy: requests of many callers in one running batch."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from masters_ray.errors import ReplicaLostError
from masters_ray.records import Refused

T = TypeVar("T")


class EngineLoop:
    """Owns an engine and the only thread that touches it.

    A caller's requests join the batch that runs and leave it one by one, so the engine is full as long as all callers
    together ask for enough. Nobody waits for ever: the thread outlives the engine, and fails whatever it is asked then.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        """build: makes the vLLM LLM, on the loop's thread. Raises what it raises."""
        self._inbox: queue.SimpleQueue[tuple[Callable[[Any], None], list[Future[Any]]]] = queue.SimpleQueue()
        """What the thread has to do with the engine, and what is waited for."""
        self._under_way: dict[str, Future[Any]] = {}
        self._numbers = itertools.count()
        self._asleep = False
        self.busy_seconds = 0.0
        """Time in which the engine had requests and worked on them."""
        built: Future[None] = Future()
        threading.Thread(target=self._run, args=(build, built), name="vllm", daemon=True).start()
        built.result()

    def ask(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """(prompt, SamplingParams) → vLLM's RequestOutput, or Refused, for each. Waits for all of them; may be called
        from several threads. Raises ReplicaLostError when the engine broke."""
        outcomes: list[Future[Any]] = [Future() for _ in requests]
        if requests:
            self._inbox.put((partial(self._add, requests, outcomes), outcomes))
        return [outcome.result() for outcome in outcomes]

    def alone(self, action: Callable[[Any], T], *, wakes: bool = True) -> T:
        """``action(llm)`` once all requests before it are answered. Raises what it raises, and ReplicaLostError when
        the engine broke. wakes: it needs an engine that is awake."""
        outcome: Future[T] = Future()
        self._inbox.put((partial(self._act, action, wakes, outcome), [outcome]))
        return outcome.result()

    def sleep(self) -> None:
        """Have the engine give up the GPUs' memory once all requests before are answered; the next request or action
        wakes it. Needs an engine with vLLM's sleep mode. Raises as ``alone``."""
        self.alone(self._fall_asleep, wakes=False)

    def _run(self, build: Callable[[], Any], built: Future[None]) -> None:
        try:
            llm = build()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            built.set_exception(error)
            return
        built.set_result(None)
        taken: list[Future[Any]] = []
        try:
            while True:
                while not self._under_way or not self._inbox.empty():
                    begin, taken = self._inbox.get()
                    begin(llm)
                self._step(llm)
        except BaseException as error:  # noqa: BLE001 - handed to every caller
            broken = error
        taken += self._under_way.values()
        while True:
            for outcome in taken:
                if not outcome.done():
                    lost = ReplicaLostError(f"the engine broke: {type(broken).__name__}: {broken}")
                    lost.__cause__ = broken
                    outcome.set_exception(lost)
            _, taken = self._inbox.get()

    def _add(self, requests: Sequence[tuple[Any, Any]], outcomes: Sequence[Future[Any]], llm: Any) -> None:
        from vllm.exceptions import VLLMValidationError

        self._wake(llm)
        for (prompt, parameters), outcome in zip(requests, outcomes, strict=True):
            name = str(next(self._numbers))
            try:
                llm.llm_engine.add_request(name, prompt, parameters)
            except (ValueError, VLLMValidationError) as error:  # about this request, which the engine has not taken
                outcome.set_result(Refused(reason=_first_cause(error)))
            else:
                self._under_way[name] = outcome

    def _act(self, action: Callable[[Any], T], wakes: bool, outcome: Future[T], llm: Any) -> None:
        while self._under_way:
            self._step(llm)
        if wakes:
            self._wake(llm)
        try:
            outcome.set_result(action(llm))
        except Exception as error:  # noqa: BLE001 - handed to the caller
            outcome.set_exception(error)

    def _step(self, llm: Any) -> None:
        began = time.monotonic()
        outputs = llm.llm_engine.step()
        self.busy_seconds += time.monotonic() - began
        for output in outputs:
            if output.finished:
                self._under_way.pop(output.request_id).set_result(output)

    def _fall_asleep(self, llm: Any) -> None:
        if not self._asleep:
            llm.sleep(level=1)
            self._asleep = True

    def _wake(self, llm: Any) -> None:
        if self._asleep:
            llm.wake_up()
            self._asleep = False


def _first_cause(error: BaseException) -> str:
    """What a processor said of a prompt: vLLM wraps it into errors that tell whole pictures."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
