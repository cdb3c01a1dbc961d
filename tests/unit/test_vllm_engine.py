"""An engine answers many callers from one batch; what its workers say and its scores are taken whole or not at all."""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.logprobs import create_prompt_logprobs, create_sample_logprobs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors

from masters_ray.config import Engine, Sampling
from masters_ray.errors import ReplicaError, ReplicaLostError
from masters_ray.models import vllm_engine, weights
from masters_ray.models.chat import Chat
from masters_ray.models.vllm_engine import Prompt, VllmEngine
from masters_ray.models.vllm_loop import EngineLoop
from masters_ray.records import Refused, Scored
from masters_ray.replicas.model import ReplicaModel
from masters_ray.weight_sync.stream import Invitation
from tests.builders import replica_spec
from tests.conftest import PAIR


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


@pytest.fixture(autouse=True)
def a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def loop(fake: FakeEngine) -> EngineLoop:
    return EngineLoop(fake)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("out of memory")


def ask(loop: EngineLoop, *prompts: str) -> list[Any]:
    return [one if isinstance(one, Refused) else one.text for one in loop.ask([(prompt, None) for prompt in prompts])]


def test_requests_run_together_and_one_that_is_refused_touches_no_other(fake: FakeEngine, loop: EngineLoop) -> None:
    fake.go_on.clear()
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(ask, loop, f"a{number}", f"b{number}") for number in range(3)]
        assert not any(call.done() for call in calls)
        fake.go_on.set()
        assert [call.result() for call in calls] == [[f"A{number}", f"B{number}"] for number in range(3)]
    assert fake.most > 2
    assert ask(loop) == []
    assert ask(loop, "a", "long", "b") == ["A", Refused(reason="too long"), "B"]


def test_a_broken_engine_tells_every_caller_then_and_later(fake: FakeEngine, loop: EngineLoop) -> None:
    fake.go_on.clear()
    with ThreadPoolExecutor(4) as threads:
        calls: list[Any] = [threads.submit(ask, loop, *prompts) for prompts in (("a", "poison", "b"), ("c",))]
        calls += [threads.submit(loop.alone, lambda _: None), threads.submit(loop.sleep)]
        fake.go_on.set()
        errors = [call.exception() for call in calls]
    assert {str(error) for error in errors if error} == {"the engine broke: RuntimeError: out of memory"}
    assert isinstance(errors[0], ReplicaLostError)
    for later in (lambda: ask(loop, "a"), lambda: loop.alone(lambda _: None), loop.sleep):
        with pytest.raises(ReplicaLostError, match="the engine broke: RuntimeError: out of memory"):
            later()


def test_an_engine_sleeps_when_it_has_answered_and_wakes_for_what_is_asked(fake: FakeEngine, loop: EngineLoop) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.alone(fail)
    assert ask(loop, "a", "b") == ["A", "B"]
    loop.sleep()
    loop.sleep()
    assert fake.slept == ["asleep at level 1"]
    assert ask(loop, "a") == ["A"]
    loop.sleep()
    assert loop.alone(lambda llm: list(llm.slept)) == ["asleep at level 1", "awake"] * 2
    fake.sleep = fail  # type: ignore[method-assign]
    with pytest.raises(ReplicaLostError, match="the engine broke: RuntimeError: out of memory"):
        loop.sleep()


class FakeLlm:
    """Two workers that give ``answers``, or raise them; ``told`` is what was asked of them."""

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

    def __getattr__(self, name: str) -> Any:
        return lambda **_: self.told.append(name)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLlm:
    return FakeLlm(monkeypatch)


def reports(ratio: float, *digests: str) -> list[dict[str, Any]]:
    return [{"ratio": ratio, "sparsity": ratio, "digest": digest} for digest in digests]


def test_a_mask_is_put_on_whole_and_once_and_workers_that_differ_are_refused(llm: FakeLlm, tmp_path: Path) -> None:
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2, parts=["language"], ratio=0.1)
    llm.answers = reports(0.1, "a", "a")
    assert [engine.mask(0.1).digest for _ in range(2)] == ["a", "a"]
    assert llm.told == [False, "masked_at", "reset_prefix_cache"]
    llm.answers = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        engine.mask(0.2)
    llm.answers = reports(0.1, "b", "b")
    assert engine.mask(0.1).digest == "b", "what was left half done is not taken for whole"
    llm.answers = reports(0.3, "a", "b")
    with pytest.raises(ReplicaError, match=rf"one engine hold different weights of {tmp_path}: .* digest \['a', 'b'\]"):
        engine.mask(0.3)


def test_an_engine_that_does_not_take_in_the_students_weights_is_lost(llm: FakeLlm, tmp_path: Path) -> None:
    invitation = Invitation(address="10.0.0.7", port=1234, ranks=2, backend="nccl")
    engine = VllmEngine(tmp_path, Engine(), tensor_parallel=2)
    llm.answers = [{"w": "a"}, {"w": "a"}]
    assert engine.load(invitation) == {"w": "a"}
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
    assert llm.told == ([False] if on_cpu else [True, "sleep", "wake_up", "sleep"])


PROMPT, ANSWER, K = 300, 600, 3
LENGTH = PROMPT + ANSWER
TOKENS = torch.randint(0, 900, (LENGTH,), generator=torch.Generator().manual_seed(0))
TRUTH = -torch.rand(LENGTH, K + 1, generator=torch.Generator().manual_seed(1)) - 1
"""[position, own token and top k], of the token after each position."""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    monkeypatch.setattr(vllm_engine, "_start", lambda **_: None)
    return VllmEngine(tmp_path, Engine())


def replying(engine: VllmEngine, reply: Callable[[Any, SamplingParams], Any]) -> None:
    engine.loop.ask = lambda requests: [reply(*one) for one in requests]  # type: ignore[method-assign]


def asked(engine: VllmEngine) -> Scored | Refused:
    [found] = engine.score([Prompt(token_ids=TOKENS[:PROMPT].tolist())], [TOKENS[PROMPT:].tolist()], K)
    return found


def reply(change: Callable[[Tensor, Tensor], object] = lambda *_: None, first: int = 0, cached: int = 0) -> Any:
    """vLLM's own record of the prompt's log-probabilities from position ``first`` on."""
    ids = torch.cat([TOKENS[1:].unsqueeze(-1), torch.arange(1000, 1000 + K).expand(LENGTH - 1, K)], -1)
    logprobs = TRUTH[:-1].clone()
    change(ids, logprobs)
    processor = LogprobsProcessor(None, None, create_prompt_logprobs(True), None, None, K)
    tensors = LogprobsTensors(ids, logprobs, torch.ones(LENGTH - 1, dtype=torch.int64))
    processor._update_prompt_logprobs(LogprobsTensors(*(one[first:] for one in tensors[:3])))
    found = {"prompt_logprobs": processor.prompt_logprobs, "num_cached_tokens": cached}
    return SimpleNamespace(prompt_token_ids=TOKENS.tolist(), **found)


@pytest.mark.parametrize(
    ("first", "cached", "again"), [(640, 0, True), (0, PROMPT - 1, False), (0, PROMPT, True), (0, PROMPT + 16, True)]
)
def test_a_reply_that_lacks_positions_or_took_some_from_the_cache_is_asked_for_again_without_it(
    first: int, cached: int, again: bool, engine: VllmEngine
) -> None:
    """A request that was preempted comes back with its own blocks, whose positions the engine does not score. vLLM
    leaves the places of cached tokens unwritten: the memory may hold an earlier request's scores of the same tokens."""
    tries: list[bool] = []

    def answer(_: Any, parameters: SamplingParams) -> Any:
        tries.append(bool(parameters.skip_reading_prefix_cache))
        if tries[-1]:
            return reply()
        return reply(lambda _, logprobs: logprobs[PROMPT - 1 : max(PROMPT - 1, cached)].fill_(-0.5), first, cached)

    replying(engine, answer)
    found = asked(engine)
    assert isinstance(found, Scored)
    assert tries == [False, True][: 1 + again]
    expected = TRUTH[PROMPT - 1 : LENGTH - 1].numpy()
    assert np.array_equal(found.own, expected[:, 0]) and np.array_equal(found.top.top_logprobs, expected[:, 1:])
    assert found.prompt_tokens == PROMPT


CHANGES: dict[str, tuple[Callable[[Tensor, Tensor], object], type]] = {
    "own is not a number": (lambda ids, logprobs: logprobs[-5, :1].fill_(torch.nan), Refused),
    "own is impossible": (lambda ids, logprobs: logprobs[-5, :1].fill_(-torch.inf), Refused),
    "a top one is not a number": (lambda ids, logprobs: logprobs[-5, 2:3].fill_(torch.nan), Refused),
    "a top one is above 0": (lambda ids, logprobs: logprobs[-5, 2:3].fill_(1.0), Refused),
    "a top one is impossible": (lambda ids, logprobs: logprobs[-5, 3:].fill_(-torch.inf), Scored),
    "of another token": (lambda ids, logprobs: ids[-5, :1].fill_(7000), Refused),
    "the same twice": (lambda ids, logprobs: ids[-5, 1:3].fill_(1000), Refused),
}


@pytest.mark.parametrize(("change", "kind"), CHANGES.values(), ids=CHANGES)
def test_a_reply_that_is_no_score_refuses_its_answer(change: Any, kind: type, engine: VllmEngine) -> None:
    replying(engine, lambda *_: reply(change))
    assert isinstance(asked(engine), kind)


def test_an_answer_is_taken_with_the_scores_of_all_its_tokens_or_its_question_is_refused(engine: VllmEngine) -> None:
    def generated(*scored: int, finish: str = "stop") -> Any:
        told = create_sample_logprobs(True)
        for token in scored:
            told.append_fast([token, 1000, 1001], [-1.0, -0.5, -2.0], iter([3, 1, 2]), [None] * 3)
        answer = SimpleNamespace(token_ids=[11, 12, 13], logprobs=told, finish_reason=finish)
        replying(engine, lambda *_: SimpleNamespace(prompt_token_ids=[1, 2], outputs=[answer]))
        return engine.generate([Prompt(token_ids=[1, 2])], Sampling(), answers=1, seeds=[0], top_k=2)

    [[(answer, scored)]] = generated(11, 12, 13, finish="length")
    assert (answer.token_ids, answer.finish, scored.own.tolist()) == ((11, 12, 13), "length", [-1.0] * 3)
    [refused] = generated(12, 13)
    assert "scored 0 of the answer's 3 tokens" in refused.reason
    with pytest.raises(ReplicaError, match="ended an answer with 'abort', expected stop or length"):
        generated(11, 12, 13, finish="abort")


def test_tokens_without_a_row_in_some_model_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_start", lambda **_: None)
    tokens = max(Chat(PAIR / "student").tokenizer.get_vocab().values()) + 1

    def banned(rows: int, common: int | None = None) -> set[int]:
        monkeypatch.setattr(weights, "vocabulary", lambda _: rows)
        model = ReplicaModel(replica_spec("student", checkpoint=str(PAIR / "student"), common=common))
        replying(model.engine, lambda _, parameters: Refused(reason=repr(sorted(parameters.logit_bias))))
        [found] = model.engine.generate([Prompt(token_ids=[1])], Sampling(), answers=1, seeds=[0], top_k=0)
        assert isinstance(found, Refused)
        return set(json.loads(found.reason))

    usual = banned(tokens)
    assert banned(tokens + 64) == usual | set(range(tokens, tokens + 64))
    assert banned(tokens + 64, common=tokens - 5) == usual | set(range(tokens - 5, tokens + 64))
