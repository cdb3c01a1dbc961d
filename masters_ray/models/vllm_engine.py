"""A vLLM engine that generates and scores answers as token ids. Only files named vllm_* import vLLM."""

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from masters_ray.config import Engine, Part, Sampling
from masters_ray.errors import ReplicaError, ReplicaLostError
from masters_ray.method.masks import MaskReport
from masters_ray.models import weights
from masters_ray.models.vllm_loop import EngineLoop
from masters_ray.records import Finish, Refused, Scored, TokenScores
from masters_ray.weight_sync.stream import Invitation

_ROUNDING = 5e-4  # largest log-probability accepted: rounding may give a value above 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    token_ids: list[int]  # with one placeholder per picture, not expanded
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    token_ids: tuple[int, ...]  # includes the end-of-turn token if it was reached
    finish: Finish


class VllmEngine:
    """One model on one engine, which spans ``tensor_parallel`` GPUs of one node, or as many processes on its CPU.
    Methods are thread-safe: requests of all threads run in one batch (vllm_loop)."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        *,
        tensor_parallel: int = 1,
        parts: Sequence[Part] | None = None,
        ratio: float = 0.0,
        ratios: Sequence[float] = (),
        banned: Sequence[int] = (),
        sleeps: bool = False,
    ) -> None:
        """Loads the checkpoint, with ``parts`` masked at ``ratio``, which ``mask`` changes.

        ratios: those to come; the first reading finds the thresholds of all.
        banned: token ids that are never sampled; only the first 1,024 count, vLLM's limit. sleeps: the engine frees the
        GPUs' memory after loading and in ``sleep``; no effect on CPU.
        """
        from vllm.platforms import current_platform

        from masters_ray.models.vllm_worker import MASKED

        self._folder, self._parts, self._ratios = folder, parts, tuple(ratios)
        self._report: MaskReport | None = None  # of the loaded weights
        self._ratio, self._family = ratio, weights.architecture(folder).family
        self._masking = threading.Lock()
        self._never = dict.fromkeys(banned[:1024], -100.0) or None
        self._sleeps = sleeps and not current_platform.is_cpu()
        options: dict[str, Any] = {
            **dataclasses.asdict(engine),  # the fields have vLLM's option names, except max_pictures
            "model": str(folder),
            "tensor_parallel_size": tensor_parallel,
            "gpu_memory_utilization": engine.gpu_memory_utilization or 0.9,
            "limit_mm_per_prompt": {"image": engine.max_pictures, "video": 0},
            "skip_mm_profiling": engine.kv_cache_memory_bytes is not None,
            "max_logprobs": -1,
            "worker_extension_cls": "masters_ray.models.vllm_worker.InPlaceLoading",
            "generation_config": "vllm",
            "disable_log_stats": True,
            "enable_sleep_mode": self._sleeps,
        }
        del options["max_pictures"]
        if parts is not None:
            options |= {"load_format": MASKED, "model_loader_extra_config": self._mask_at(ratio)}
        if not self._family.caches_prefixes:
            options["enable_prefix_caching"] = False
        if current_platform.is_cpu():
            # A seeded request whose prompt is split over two steps rewinds its generator; CPU generators cannot rewind.
            # 32 is the smallest block of CPU attention; small blocks let the prefix cache reuse more of a prompt.
            options |= {"enable_chunked_prefill": False, "block_size": 32}
        self._options = options
        self.loop = EngineLoop(_start(**options))
        # A replacement for a dead process may start while the student trains, which then needs the GPUs' memory.
        self.sleep()

    def sleep(self) -> None:
        """With ``sleeps``: moves weights to CPU memory and drops the KV cache. The next call wakes the engine."""
        if self._sleeps:
            self.loop.sleep()

    def mask(self, ratio: float) -> MaskReport:
        """Loads the weights masked at ``ratio``, unless they are loaded, and drops all caches of the old weights; an
        engine of a family that cannot load in place starts anew. Raises ReplicaError when tensor-parallel workers
        report different weights."""
        with self._masking:
            if self._report is None or self._report.ratio != ratio:
                self._report = None
                if self._family.remask == "restart" and self._ratio != ratio:
                    self._options["model_loader_extra_config"] = self._mask_at(ratio)
                    self.loop.restart(lambda: _start(**self._options))
                    self._ratio = ratio
                self._report = MaskReport(**self._agreed("masked_at", str(self._folder), ratio))
            return self._report

    def _mask_at(self, ratio: float) -> dict[str, Any]:
        return {"ratio": ratio, "ratios": self._ratios, "parts": self._parts}

    def load(self, invitation: Invitation) -> dict[str, str]:
        """Loads the student's weights that the invitation's sender sends, and drops all caches of the old weights.
        Returns what ``load_student`` returns (vllm_worker). Raises ReplicaLostError when loading fails or
        tensor-parallel workers differ: the model may then hold a mix of old and new weights."""
        try:
            return self._agreed("load_student", dataclasses.asdict(invitation))
        except Exception as error:
            told = f"the student's weights were not taken in ({type(error).__name__}: {error})"
            raise ReplicaLostError(f"{self._folder}: {told}") from error

    def _agreed(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Calls a ``method`` that loads weights on all workers. Returns their common answer."""

        def call(llm: Any) -> list[dict[str, Any]]:
            answers: list[dict[str, Any]] = llm.collective_rpc(method, args=arguments)
            llm.reset_prefix_cache()
            llm.llm_engine.reset_mm_cache()
            llm.llm_engine.reset_encoder_cache()
            return answers

        first, *others = self.loop.alone(call)
        if differs := [key for key in first if any(one[key] != first[key] for one in others)]:
            said = f"{method} has {differs[0]} {[one[differs[0]] for one in (first, *others)]}"
            raise ReplicaError(f"workers of one engine hold different weights of {self._folder}: {said}")
        return first

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, answers: int, seeds: Sequence[int], top_k: int
    ) -> list[list[tuple[Completion, Scored]] | Refused]:
        """Samples ``answers`` answers per prompt, which depend on its seed and not on other prompts in the batch;
        returns each with its scores, as ``score`` would give them."""
        common = dataclasses.asdict(sampling) | {"n": answers, "logprobs": top_k, "logit_bias": self._never}
        outputs = self._ask(prompts, [common | {"seed": seed} for seed in seeds])
        return [output if isinstance(output, Refused) else _written(output, top_k) for output in outputs]

    def generate_greedy(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Completion | Refused]:
        options = {"temperature": 0.0, "max_tokens": max_tokens, "logit_bias": self._never}
        outputs = self._ask(prompts, [options] * len(prompts))
        return [output if isinstance(output, Refused) else _completion(output.outputs[0]) for output in outputs]

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], top_k: int) -> list[Scored | Refused]:
        """Returns next-token distributions at every token of ``answers[i]`` after ``prompts[i]``: temperature 1, no
        penalties. With top_k = 0 the distributions are empty, and only the answer's own tokens are scored.

        The first attempt uses the prefix cache. The engine does not score positions taken from the cache, nor sometimes
        those before a preemption; incomplete replies are requested again without the cache, then refused.
        """
        whole = [
            dataclasses.replace(prompt, token_ids=[*prompt.token_ids, *answer])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        found: dict[int, Scored | Refused] = {}
        left = list(range(len(whole)))
        for uncached in (False, True):
            options = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": top_k}
            options["skip_reading_prefix_cache"] = uncached
            outputs = self._ask([whole[index] for index in left], [options] * len(left))
            for index, output in zip(left, outputs, strict=True):
                found[index] = output if isinstance(output, Refused) else _asked(output, answers[index], top_k)
            left = [index for index in left if isinstance(found[index], Refused)]
        return [found[index] for index in range(len(whole))]

    def _ask(self, prompts: Sequence[Prompt], options: Sequence[dict[str, Any]]) -> list[Any]:
        """Returns vLLM's output, or Refused, for each prompt. options: of its SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"detokenize": False, "flat_logprobs": True, "output_kind": RequestOutputKind.FINAL_ONLY}
        parameters = [SamplingParams(**common, **option) for option in options]
        return self.loop.ask([(_request(prompt), one) for prompt, one in zip(prompts, parameters, strict=True)])


def _request(prompt: Prompt) -> Any:
    pictures = {"multi_modal_data": {"image": list(prompt.pictures)}} if prompt.pictures else {}
    return {"prompt_token_ids": prompt.token_ids, **pictures}


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
    if answer.finish_reason not in get_args(Finish):
        raise ReplicaError(f"the engine ended an answer with {answer.finish_reason!r}, expected stop or length")
    return Completion(token_ids=tuple(answer.token_ids), finish=answer.finish_reason)


def _asked(output: Any, answer: Sequence[int], top_k: int) -> Scored | Refused:
    prompt_tokens = len(output.prompt_token_ids) - len(answer)
    if output.num_cached_tokens >= prompt_tokens:  # their places may hold scores of an earlier request
        return Refused(reason="the engine took tokens of the answer from its cache and did not score them")
    return _scores(prompt_tokens, output.prompt_logprobs, answer, top_k)


def _scores(prompt_tokens: int, flat: Any, answer: Sequence[int], top_k: int) -> Scored | Refused:
    """Reads the answer's scores from vLLM's flat log-probs, which hold per position its own token, then the top k. The
    last positions are the answer's, but only if each has the answer's token: a reply that lacks earlier positions looks
    alike. Returns Refused for an incomplete reply or invalid numbers."""
    spans = [slice(*span) for span in zip(flat.start_indices, flat.end_indices, strict=True)][-len(answer) :]
    ids = [flat.token_ids[span][: top_k + 1] for span in spans]
    logprobs = [flat.logprobs[span][: top_k + 1] for span in spans]
    scored = sum(len(own) > top_k and own[0] == token for own, token in zip(ids, answer, strict=False))
    if scored < len(answer):
        return Refused(reason=f"the engine scored {scored} of the answer's {len(answer)} tokens")
    own, top_logprobs = np.split(np.array(logprobs, np.float32), [1], axis=1)
    top_ids = np.array(ids, np.int32)[:, 1:]
    if not (np.isfinite(own).all() and (own <= _ROUNDING).all() and (top_logprobs <= _ROUNDING).all()):
        none = "a log-probability that is not finite, or above 0"
        return Refused(reason=f"the engine gave {none}; is the checkpoint whole? If so, try engine.dtype=float32")
    if (np.diff(np.sort(top_ids), axis=-1) == 0).any():
        return Refused(reason=f"the engine gave a token twice among the {top_k} likeliest")
    left_out = np.clip(1.0 - np.exp(top_logprobs.astype(np.float64)).sum(-1), 0.0, 1.0).astype(np.float32)
    scores = TokenScores(top_ids=top_ids, top_logprobs=top_logprobs, left_out=left_out)
    return Scored(prompt_tokens=prompt_tokens, top=scores, own=own.ravel())
