"""Runs one vLLM engine in a thread: requests of many callers share its running batch."""

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from masters_ray.errors import ReplicaLostError
from masters_ray.records import Refused

T = TypeVar("T")


class EngineLoop:
    """Owns an engine and the only thread that uses it; requests join the running batch and leave it one by one. Nobody
    blocks forever: the thread outlives a broken engine and fails every later call."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        # (action, its outcome); an action that raises breaks the engine.
        self._inbox: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._under_way: dict[str, Future[Any]] = {}
        self._numbers = itertools.count()
        self._asleep = False
        threading.Thread(target=self._run, name="vllm", daemon=True).start()

    def ask(self, requests: Sequence[tuple[Any, Any]]) -> list[Any]:
        """Returns RequestOutput or Refused for each (prompt, SamplingParams); raises ReplicaLostError; thread-safe."""
        return [outcome.result() for outcome in self._done(lambda: self._add(requests))]

    def alone(self, action: Callable[[Any], T]) -> T:
        """Returns ``action(llm)``, run once all earlier requests are answered, or raises what the action raises."""
        return cast(T, self._done(lambda: self._act(action)).result())

    def restart(self, start: Callable[[], Any]) -> None:
        """Once all earlier requests are answered, replaces the engine by the one that ``start`` returns. Raises
        ReplicaLostError when it cannot be stopped or started."""
        self._done(lambda: self._replace(start))

    def stop(self) -> None:
        """Ends the engine once all earlier requests are answered; later calls raise ReplicaLostError."""
        self._done(lambda: self._replace(lambda: None))

    def sleep(self) -> None:
        """Frees the GPUs' memory once all earlier requests are answered; the next request or action wakes the engine.
        Raises ReplicaLostError when the engine broke, or does not fall asleep."""
        self._done(self._fall_asleep)

    def _done(self, action: Callable[[], Any]) -> Any:
        outcome: Future[Any] = Future()
        self._inbox.put((action, outcome))
        return outcome.result()

    def _run(self) -> None:
        outcome: Future[Any] = Future()
        try:
            while True:
                while not self._under_way or not self._inbox.empty():
                    action, outcome = self._inbox.get()
                    outcome.set_result(action())
                self._step()
        except BaseException as error:  # noqa: BLE001 - handed to every caller
            broken = error
        for waiting in itertools.chain([outcome], self._under_way.values(), iter(lambda: self._inbox.get()[1], None)):
            if not waiting.done():
                lost = ReplicaLostError(f"the engine broke: {type(broken).__name__}: {broken}")
                lost.__cause__ = broken
                waiting.set_exception(lost)

    def _add(self, requests: Sequence[tuple[Any, Any]]) -> list[Future[Any]]:
        from vllm.exceptions import VLLMValidationError

        self._wake()
        outcomes: list[Future[Any]] = [Future() for _ in requests]
        for (prompt, parameters), outcome in zip(requests, outcomes, strict=True):
            name = str(next(self._numbers))
            try:
                self._llm.llm_engine.add_request(name, prompt, parameters)
            except (ValueError, VLLMValidationError) as error:  # the engine rejected this request alone
                outcome.set_result(Refused(reason=_first_cause(error)))
            else:
                self._under_way[name] = outcome
        return outcomes

    def _act(self, action: Callable[[Any], T]) -> Future[T]:
        while self._under_way:
            self._step()
        self._wake()
        outcome: Future[T] = Future()
        try:
            outcome.set_result(action(self._llm))
        except Exception as error:  # noqa: BLE001 - handed to the caller
            outcome.set_exception(error)
        return outcome

    def _step(self) -> None:
        for output in self._llm.llm_engine.step():
            if output.finished:
                self._under_way.pop(output.request_id).set_result(output)

    def _replace(self, start: Callable[[], Any]) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        while self._under_way:
            self._step()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()
        self._llm, self._asleep = start(), False

    def _fall_asleep(self) -> None:
        while self._under_way:
            self._step()
        if not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False


def _first_cause(error: BaseException) -> str:
    """Returns the message of the innermost error: vLLM wraps it in errors whose text holds whole pictures."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
