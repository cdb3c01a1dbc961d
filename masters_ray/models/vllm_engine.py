"""A vLLM engine that generates and scores answers as token ids. Only files named vllm_* import vLLM."""

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from masters_ray.config import Engine, Part, Sampling
from masters_ray.errors import ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.models.vllm_loop import EngineLoop
from masters_ray.records import Finish, Refused, Scored, TokenScores
from masters_ray.weight_sync.stream import Invitation

_MOST_BANNED = 1024
"""Maximum number of logit biases per vLLM request."""
_ROUNDING = 5e-4
"""Largest log-probability accepted: rounding may give a value above 0."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    token_ids: list[int]
    """Token ids with one placeholder per picture, not expanded."""
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    token_ids: tuple[int, ...]
    """Token ids, including the end-of-turn token if it was reached."""
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Parts of a checkpoint to mask, and the mask ratio."""

    parts: list[Part]
    ratio: float


class VllmEngine:
    """One model on one engine, which spans ``tensor_parallel`` GPUs of one node, or as many processes on its CPU.
    Methods are thread-safe: requests of all threads run in one batch (vllm_loop)."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        *,
        tensor_parallel: int = 1,
        top_k: int = 1,
        mask: Mask | None = None,
        banned: Sequence[int] = (),
        sleeps: bool = False,
    ) -> None:
        """Loads the checkpoint, masked if ``mask`` is given.

        top_k: largest ``top_k`` of later calls. banned: token ids that are never sampled; only the first 1,024 count.
        sleeps: the engine frees the GPUs' memory after loading and in ``sleep``, until the next call; no effect on CPU.
        """
        from vllm.platforms import current_platform

        from masters_ray.models.vllm_worker import MASKED

        self._folder = folder
        self._parts = None if mask is None else mask.parts
        self._report: MaskReport | None = None
        """Report of the loaded masked weights; None before the first ``mask`` and while weights are being loaded."""
        self._masking = threading.Lock()
        self._never = dict.fromkeys(banned[:_MOST_BANNED], -100.0)
        self._sleeps = sleeps and not current_platform.is_cpu()
        options: dict[str, Any] = {
            **dataclasses.asdict(engine),  # the fields have vLLM's option names, except max_pictures
            "model": str(folder),
            "tensor_parallel_size": tensor_parallel,
            "gpu_memory_utilization": engine.gpu_memory_utilization or 0.9,
            "limit_mm_per_prompt": {"image": engine.max_pictures, "video": 0},
            "skip_mm_profiling": engine.kv_cache_memory_bytes is not None,
            "max_logprobs": max(20, top_k),
            "worker_extension_cls": "masters_ray.models.vllm_worker.InPlaceLoading",
            "generation_config": "vllm",
            "disable_log_stats": True,
            "enable_sleep_mode": self._sleeps,
        }
        del options["max_pictures"]
        if mask is not None:
            extra = {"ratio": mask.ratio, "parts": mask.parts}
            options |= {"load_format": MASKED, "model_loader_extra_config": extra}
        if current_platform.is_cpu():
            # A seeded request whose prompt is split over two steps rewinds its generator; CPU generators cannot rewind.
            # 32 is the smallest block of CPU attention; small blocks let the prefix cache reuse more of a prompt.
            options |= {"enable_chunked_prefill": False, "block_size": 32}
        self.loop = EngineLoop(partial(_start, **options))
        # A replacement for a dead process may start while the student trains, which then needs the GPUs' memory.
        self.sleep()

    def sleep(self) -> None:
        """Frees the GPUs' memory if the engine was made with ``sleeps``: weights move to CPU memory, the KV cache is
        dropped. The next call wakes the engine. Raises ReplicaLostError when it does not fall asleep."""
        if self._sleeps:
            self.loop.sleep()

    def mask(self, ratio: float) -> MaskReport:
        """Loads the weights masked at ``ratio``, unless they are loaded, and drops all caches of the old weights.

        Raises ReplicaError when the engine was started without a mask, or when tensor-parallel workers report different
        weights.
        """
        if self._parts is None:
            raise ReplicaError(f"{self._folder}: this engine was started without a mask")
        with self._masking:
            if self._report is None or self._report.ratio != ratio:
                self._report = None
                self._report = MaskReport(**self._agreed("masked_at", str(self._folder), ratio, self._parts))
            return self._report

    def load(self, invitation: Invitation) -> dict[str, str]:
        """Loads the weights that the invitation's sender sends, named as in the student's checkpoint, and drops all
        caches of the old weights. Returns tensor name → ``tensor_digest``, computed as the tensor goes into the model.

        Raises ReplicaLostError when loading fails: the model may then hold a mix of old and new weights. Raises
        ReplicaError when tensor-parallel workers report different digests.
        """
        try:
            return self._agreed("load_student", dataclasses.asdict(invitation))
        except ReplicaError:
            raise
        except Exception as error:
            raise ReplicaLostError(
                f"{self._folder}: the student's weights were not taken in ({type(error).__name__}: {error})"
            ) from error

    def _agreed(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Calls a worker ``method`` that loads weights on all workers, while no request runs; drops all caches. Returns
        the workers' common answer. Raises ReplicaError when their answers differ."""

        def call(llm: Any) -> list[dict[str, Any]]:
            answers: list[dict[str, Any]] = llm.collective_rpc(method, args=arguments)
            llm.reset_prefix_cache()
            llm.llm_engine.reset_mm_cache()
            llm.llm_engine.reset_encoder_cache()
            return answers

        answers = self.loop.alone(call)
        for key in sorted(set().union(*answers)):
            said = [one.get(key) for one in answers]
            if any(one != said[0] for one in said):
                raise ReplicaError(
                    f"workers of one engine hold different weights of {self._folder}: {method} has {key} {said}"
                )
        return answers[0]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, answers: int, seeds: Sequence[int], top_k: int
    ) -> list[list[tuple[Completion, Scored]] | Refused]:
        """Samples ``answers`` answers per prompt; returns each with its scores, as ``score`` would give them.

        A prompt's answers depend on its seed, not on other prompts in the batch.
        """
        drawn = dataclasses.asdict(sampling) | {"n": answers, "logprobs": top_k, "flat_logprobs": True}
        outputs = self._generate(prompts, [drawn | {"seed": seed} for seed in seeds])
        return [output if isinstance(output, Refused) else _written(output, top_k) for output in outputs]

    def generate_greedy(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Completion | Refused]:
        """Returns the greedy answer to each prompt, of at most ``max_tokens`` tokens."""
        outputs = self._generate(prompts, [{"temperature": 0.0, "max_tokens": max_tokens}] * len(prompts))
        return [output if isinstance(output, Refused) else _completion(output.outputs[0]) for output in outputs]

    def _generate(self, prompts: Sequence[Prompt], options: list[dict[str, Any]]) -> list[Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"detokenize": False, "logit_bias": self._never or None, "output_kind": RequestOutputKind.FINAL_ONLY}
        parameters = [SamplingParams(**common, **option) for option in options]
        return self.loop.ask([(_request(prompt), one) for prompt, one in zip(prompts, parameters, strict=True)])

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], top_k: int) -> list[Scored | Refused]:
        """Returns next-token distributions at every token of ``answers[i]`` after ``prompts[i]``: temperature 1, no
        penalties. With top_k = 0 the distributions are empty, and only the answer's own tokens are scored.

        The first attempt uses the prefix cache. The engine does not score positions taken from the cache, nor sometimes
        those before a preemption; incomplete replies are requested again without the cache, then refused.
        """
        from vllm import SamplingParams

        found: dict[int, Scored | Refused] = {}
        left = list(range(len(answers)))
        for uncached in (False, True):
            parameters = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=top_k,
                flat_logprobs=True,
                detokenize=False,
                skip_reading_prefix_cache=uncached,
            )
            outputs = self.loop.ask([(_request(prompts[index], answers[index]), parameters) for index in left])
            for index, output in zip(left, outputs, strict=True):
                found[index] = output if isinstance(output, Refused) else _asked(output, answers[index], top_k)
            left = [index for index in left if isinstance(found[index], Refused)]
        return [found[index] for index in range(len(answers))]


def _request(prompt: Prompt, answer: Sequence[int] = ()) -> Any:
    request: dict[str, Any] = {"prompt_token_ids": [*prompt.token_ids, *answer]}
    if prompt.pictures:
        request["multi_modal_data"] = {"image": list(prompt.pictures)}
    return request


def _start(**options: Any) -> Any:
    from vllm import LLM

    return LLM(**options)


def _written(output: Any, top_k: int) -> list[tuple[Completion, Scored]] | Refused:
    found = []
    for answer in output.outputs:
        written = _completion(answer)
        scored = _scores(len(output.prompt_token_ids), answer.logprobs, written.token_ids, top_k)
        if isinstance(scored, Refused):
            return scored
        found.append((written, scored))
    return found


def _completion(answer: Any) -> Completion:
    """Converts vLLM's answer. Raises ReplicaError when the engine aborted it."""
    if answer.finish_reason not in get_args(Finish):
        raise ReplicaError(f"the engine ended an answer with {answer.finish_reason!r}, expected stop or length")
    return Completion(token_ids=tuple(answer.token_ids), finish=answer.finish_reason)


def _asked(output: Any, answer: Sequence[int], top_k: int) -> Scored | Refused:
    """Returns the scores of an answer that was sent as the end of a prompt."""
    prompt_tokens = len(output.prompt_token_ids) - len(answer)
    if output.num_cached_tokens >= prompt_tokens:  # their places may hold scores of an earlier request
        return Refused(reason="the engine took tokens of the answer from its cache and did not score them")
    return _scores(prompt_tokens, output.prompt_logprobs, answer, top_k)


def _scores(prompt_tokens: int, flat: Any, answer: Sequence[int], top_k: int) -> Scored | Refused:
    """Reads the answer's scores from vLLM's flat log-probs, which hold per position its own token, then the top k. The
    last positions are the answer's, but only if each has the answer's token: a reply that lacks earlier positions looks
    alike. Returns Refused with the reason when the reply is incomplete or has invalid numbers."""
    tokens = len(answer)
    own = np.full(tokens, np.nan, np.float32)
    top_ids = np.full((tokens, top_k), -1, np.int32)
    top_logprobs = np.full((tokens, top_k), np.nan, np.float32)
    there = 0
    for row, (start, end) in enumerate(zip(flat.start_indices[-tokens:], flat.end_indices[-tokens:], strict=True)):
        if end - start > top_k and flat.token_ids[start] == answer[row]:
            there += 1
            own[row] = flat.logprobs[start]
            top_ids[row] = flat.token_ids[start + 1 : end][:top_k]
            top_logprobs[row] = flat.logprobs[start + 1 : end][:top_k]
    if there < tokens:
        return Refused(reason=f"the engine scored {there} of the answer's {tokens} tokens")
    if not (np.isfinite(own).all() and (top_logprobs <= _ROUNDING).all() and (own <= _ROUNDING).all()):
        return Refused(
            reason="the engine gave a log-probability that is none (not a number, or infinite); is the checkpoint "
            "whole? If so, try engine.dtype=float32"
        )
    if (np.diff(np.sort(top_ids), axis=-1) == 0).any():
        return Refused(reason=f"the engine gave a token twice among the {top_k} likeliest")
    left_out = np.clip(1.0 - np.exp(top_logprobs.astype(np.float64)).sum(-1), 0.0, 1.0).astype(np.float32)
    scores = TokenScores(top_ids=top_ids, top_logprobs=top_logprobs, left_out=left_out)
    return Scored(prompt_tokens=prompt_tokens, top=scores, own=own)
