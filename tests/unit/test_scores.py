"""What an engine says of an answer's tokens is taken whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from vllm.logprobs import FlatLogprobs, create_prompt_logprobs, create_sample_logprobs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.sample import prompt_logprob
from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

from masters_ray.config import Engine, Sampling
from masters_ray.errors import ReplicaError
from masters_ray.models import hf, vllm_engine, weights
from masters_ray.models.chat import Chat
from masters_ray.models.vllm_engine import Prompt, VllmEngine
from masters_ray.records import Refused, Scored
from masters_ray.replicas.model import ReplicaModel
from tests.builders import replica_spec
from tests.conftest import PAIR

PROMPT, ANSWER, K, CHUNK = 300, 600, 3, 640
LENGTH = PROMPT + ANSWER
TOKENS = torch.randint(0, 900, (LENGTH,), generator=torch.Generator().manual_seed(0))
TRUTH = -torch.rand(LENGTH, K + 1, generator=torch.Generator().manual_seed(1)) - 1
"""[position, own token and top k], of the token after each position."""


class Worker:
    """vLLM's own part that gathers the log-probabilities of a prompt, on its runner for GPUs; the model is TRUTH."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prompt_logprob, "get_prompt_logprobs_token_ids", lambda *_: torch.zeros(0))
        monkeypatch.setattr(prompt_logprob, "compute_prompt_logprobs_with_chunking", self._of_chunk)
        self._worker = PromptLogprobsWorker(1, torch.device("cpu"))
        self._at = 0

    def _of_chunk(self, _: Tensor, hidden: Tensor, *__: Any) -> tuple[Tensor, Tensor, Tensor]:
        positions = hidden[:, 0].long()
        own = TOKENS[(positions + 1).clamp(max=LENGTH - 1)].unsqueeze(-1)
        ids = torch.cat([own, torch.arange(1000, 1000 + K).expand(len(own), K)], -1)
        return ids, TRUTH[positions], torch.ones(len(own), dtype=torch.int64)

    def begin(self, parameters: SamplingParams, cached: int) -> None:
        """A request, or the rest of one that was preempted, comes with so many positions in the cache."""
        self._worker.remove_request("r")
        self._worker.add_request("r", 0, parameters)
        self._at = cached

    def step(self) -> LogprobsTensors | None:
        tokens = min(CHUNK, LENGTH - self._at)
        arrays = {"idx_mapping": [0], "num_computed_prefill_tokens": [self._at], "prefill_len": [LENGTH]}
        arrays |= {"query_start_loc": [0, tokens]}
        batch = SimpleNamespace(num_tokens=tokens, query_start_loc=None, idx_mapping=None, req_ids=["r"])
        batch.num_scheduled_tokens = np.array([tokens])
        vars(batch).update({f"{name}_np": np.array(values) for name, values in arrays.items()})
        hidden = torch.arange(self._at, self._at + tokens).unsqueeze(-1).float()
        self._at += tokens
        given = (None, hidden, batch, None, None, np.array([LENGTH]))
        found: dict[str, LogprobsTensors] = self._worker.compute_prompt_logprobs(*given)
        return found.get("r")


def flat(tensors: LogprobsTensors, begin: FlatLogprobs) -> Any:
    processor = LogprobsProcessor(None, None, begin, None, None, K)
    processor._update_prompt_logprobs(tensors)
    return processor.prompt_logprobs


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    monkeypatch.setattr(vllm_engine, "_start", lambda **_: None)
    return VllmEngine(tmp_path, Engine())


def replying(engine: VllmEngine, reply: Callable[[Any, SamplingParams], Any]) -> None:
    engine.loop.ask = lambda requests: [reply(*one) for one in requests]  # type: ignore[method-assign]


def output(logprobs: Any, cached: int = 0) -> Any:
    return SimpleNamespace(prompt_token_ids=TOKENS.tolist(), prompt_logprobs=logprobs, num_cached_tokens=cached)


def asked(engine: VllmEngine) -> Scored | Refused:
    [found] = engine.score([Prompt(token_ids=TOKENS[:PROMPT].tolist())], [TOKENS[PROMPT:].tolist()], K)
    return found


def test_a_preempted_request_is_asked_again_without_the_cache(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(monkeypatch)
    rows: list[int] = []

    def reply(_: Any, parameters: SamplingParams) -> Any:
        reads_cache = not parameters.skip_reading_prefix_cache
        worker.begin(parameters, 0)
        assert worker.step() is None
        worker.begin(parameters, CHUNK // 16 * 16 if reads_cache else 0)  # preempted, and back with its own blocks
        found = worker.step() or worker.step()
        assert found is not None
        rows.append(len(found.logprobs))
        return output(flat(found, create_prompt_logprobs(True)))

    replying(engine, reply)
    found = asked(engine)
    assert isinstance(found, Scored)
    assert rows == [LENGTH - CHUNK - 1, LENGTH - 1], "the first reply was short of the answer's 600 tokens"
    expected = TRUTH[PROMPT - 1 : LENGTH - 1].numpy()
    assert np.array_equal(found.own, expected[:, 0]) and np.array_equal(found.top.top_logprobs, expected[:, 1:])
    assert found.prompt_tokens == PROMPT


def whole(change: Callable[[Tensor, Tensor], object]) -> Any:
    ids = torch.cat([TOKENS[1:].unsqueeze(-1), torch.arange(1000, 1000 + K).expand(LENGTH - 1, K)], -1)
    logprobs = TRUTH[:-1].clone()
    change(ids, logprobs)
    tensors = LogprobsTensors(ids, logprobs, torch.ones(LENGTH - 1, dtype=torch.int64))
    return flat(tensors, create_prompt_logprobs(True))


Change = Callable[[Tensor, Tensor], object]
CHANGES: dict[str, Change] = {
    "own is not a number": lambda ids, logprobs: logprobs[-5, :1].fill_(torch.nan),
    "own is impossible": lambda ids, logprobs: logprobs[-5, :1].fill_(-torch.inf),
    "a top one is not a number": lambda ids, logprobs: logprobs[-5, 2:3].fill_(torch.nan),
    "a top one is above 0": lambda ids, logprobs: logprobs[-5, 2:3].fill_(1.0),
    "of another token": lambda ids, logprobs: ids[-5, :1].fill_(7000),
    "the same twice": lambda ids, logprobs: ids[-5, 1:3].fill_(1000),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_reply_that_is_no_score_refuses_its_answer(change: Change, engine: VllmEngine) -> None:
    tries: list[bool] = []

    def reply(_: Any, parameters: SamplingParams) -> Any:
        tries.append(bool(parameters.skip_reading_prefix_cache))
        return output(whole(change))

    replying(engine, reply)
    found = asked(engine)
    assert isinstance(found, Refused) and found.reason.startswith("the engine ")
    assert tries == [False, True], "asked again, once"


def test_a_probability_of_0_is_a_score(engine: VllmEngine) -> None:
    nothing = output(whole(lambda ids, logprobs: logprobs[-5, 3:].fill_(-torch.inf)))
    replying(engine, lambda *_: nothing)
    assert isinstance(asked(engine), Scored)


def test_an_answer_is_taken_with_the_scores_of_all_its_tokens_or_its_question_is_refused(engine: VllmEngine) -> None:
    def generated(*scored: int, finish: str = "stop") -> Any:
        told = create_sample_logprobs(True)
        for token in scored:
            told.append_fast([token, 1000, 1001], [-1.0, -0.5, -2.0], iter([3, 1, 2]), [None] * 3)
        answer = SimpleNamespace(token_ids=[11, 12, 13], logprobs=told, finish_reason=finish)
        replying(engine, lambda *_: SimpleNamespace(prompt_token_ids=[1, 2], outputs=[answer]))
        return engine.generate([Prompt(token_ids=[1, 2])], Sampling(), answers=1, seeds=[0], top_k=2)

    for finish in ("stop", "length"):
        [[(answer, scored)]] = generated(11, 12, 13, finish=finish)
        assert (answer.token_ids, answer.finish, scored.own.tolist()) == ((11, 12, 13), finish, [-1.0] * 3)
    [refused] = generated(12, 13)
    assert "scored 0 of the answer's 3 tokens" in refused.reason
    with pytest.raises(ReplicaError, match="ended an answer with 'abort', expected stop or length"):
        generated(11, 12, 13, finish="abort")


def test_tokens_without_a_row_in_some_model_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_start", lambda **_: None)
    monkeypatch.setattr(hf, "unexpected_weights", lambda _: [])  # it has two weights
    for file in (PAIR / "student").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").unlink()
    rows = weights.vocabulary(PAIR / "student")
    assert rows is not None
    tokens = max(Chat(PAIR / "student").tokenizer.get_vocab().values()) + 1
    padded = {"lm_head.weight": torch.zeros(rows + 64, 1), "model.embed_tokens.weight": torch.zeros(rows + 70, 1)}
    save_file(padded, tmp_path / "model.safetensors")

    def banned(folder: Path, common: int | None = None) -> set[int]:
        model = ReplicaModel(replica_spec("student", checkpoint=str(folder), common=common))
        replying(model.engine, lambda _, parameters: Refused(reason=repr(sorted(parameters.logit_bias))))
        [found] = model.engine.generate([Prompt(token_ids=[1])], Sampling(), answers=1, seeds=[0], top_k=0)
        assert isinstance(found, Refused)
        return set(json.loads(found.reason))

    usual = banned(PAIR / "student")
    assert usual & set(range(tokens, rows)) == set(range(tokens, rows))
    assert banned(tmp_path) == usual | set(range(tokens, rows + 64))
    assert banned(PAIR / "student", common=tokens - 5) == usual | set(range(tokens - 5, rows))
