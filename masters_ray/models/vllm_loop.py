"""Runs one vLLM engine in a thread: requests of many callers share its running batch."""

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
    """Owns an engine and the only thread that uses it.

    A caller's requests join the running batch and leave it one by one, so the engine is full while all callers together
    have enough requests. No caller blocks forever: the thread outlives a broken engine and fails every later call.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        """build: makes the vLLM LLM, in the loop's thread; its errors are raised here."""
        self._inbox: queue.SimpleQueue[tuple[Callable[[Any], None], list[Future[Any]]]] = queue.SimpleQueue()
        """(action on the engine, futures that wait for it)."""
        self._under_way: dict[str, Future[Any]] = {}
        self._numbers = itertools.count()
        self._asleep = False
        self.busy_seconds = 0.0
        """Total time in engine steps, seconds."""
        built: Future[None] = Future()
        threading.Thread(target=self._run, args=(build, built), name="vllm", daemon=True).start()
        built.result()

    def ask(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Returns vLLM's RequestOutput, or Refused, for each (prompt, SamplingParams). Waits for all; thread-safe.
        Raises ReplicaLostError when the engine broke."""
        outcomes: list[Future[Any]] = [Future() for _ in requests]
        if requests:
            self._inbox.put((partial(self._add, requests, outcomes), outcomes))
        return [outcome.result() for outcome in outcomes]

    def alone(self, action: Callable[[Any], T]) -> T:
        """Returns ``action(llm)``, run once all earlier requests are answered. Raises what the action raises, and
        ReplicaLostError when the engine broke."""
        outcome: Future[T] = Future()
        self._inbox.put((partial(self._act, action, outcome), [outcome]))
        return outcome.result()

    def sleep(self) -> None:
        """Frees the GPUs' memory once all earlier requests are answered; the next request or action wakes the engine.
        Needs vLLM's sleep mode. Raises ReplicaLostError when the engine broke, or does not fall asleep."""
        outcome: Future[None] = Future()
        self._inbox.put((partial(self._fall_asleep, outcome), [outcome]))
        outcome.result()

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
            except (ValueError, VLLMValidationError) as error:  # the engine rejected this request alone
                outcome.set_result(Refused(reason=_first_cause(error)))
            else:
                self._under_way[name] = outcome

    def _act(self, action: Callable[[Any], T], outcome: Future[T], llm: Any) -> None:
        self._finish(llm)
        self._wake(llm)
        try:
            outcome.set_result(action(llm))
        except Exception as error:  # noqa: BLE001 - handed to the caller
            outcome.set_exception(error)

    def _finish(self, llm: Any) -> None:
        while self._under_way:
            self._step(llm)

    def _step(self, llm: Any) -> None:
        began = time.monotonic()
        outputs = llm.llm_engine.step()
        self.busy_seconds += time.monotonic() - began
        for output in outputs:
            if output.finished:
                self._under_way.pop(output.request_id).set_result(output)

    def _fall_asleep(self, outcome: Future[None], llm: Any) -> None:
        self._finish(llm)
        if not self._asleep:
            llm.sleep(level=1)
            self._asleep = True
        outcome.set_result(None)

    def _wake(self, llm: Any) -> None:
        if self._asleep:
            llm.wake_up()
            self._asleep = False


def _first_cause(error: BaseException) -> str:
    """Returns the message of the innermost error: vLLM wraps it in errors whose text holds whole pictures."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
