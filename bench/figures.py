"""The figures: what is run for each, what number comes of it, what table stands behind it, and what it should be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from statistics import median
from typing import Any

from bench.aims import Aim, Figure, Outcome, Run
from bench.groups import Task
from bench.scale import at
from bench.timing import ratios, spread


def _against_trl(side: int) -> Callable[[Run, int], Outcome]:
    def take(run: Run, repeats: int) -> Outcome:
        raw = run("against_trl", repeats, side)
        faster = ratios(raw["seconds"]["trl"], raw["seconds"]["masters"])
        rows = [
            {"learner": name, "answer tokens per second": raw["tokens"] / median(seconds), **_seconds(seconds)}
            for name, seconds in raw["seconds"].items()
        ]
        also = {"gradient_difference": raw["gradient_difference"]}
        return Outcome(value=median(faster), rows=rows, raw=raw | {"ratios": faster}, also=also)

    return take


def _separate(run: Run, repeats: int) -> Outcome:
    raw = run("against_separate", repeats)
    faster = ratios(raw["seconds"]["each"], raw["seconds"]["once"])
    rows = [
        {"prompt": name, "tokens": raw["lengths"][name], **_seconds(seconds)}
        for name, seconds in raw["seconds"].items()
    ]
    return Outcome(value=median(faster), rows=rows, raw=raw | {"ratios": faster})


def _memory(run: Run, side: str, tokens: int, repeats: int) -> dict[str, Any]:
    raw = [run("memory", side, tokens) for _ in range(repeats)]
    grown, fixed = median(one["growth"] for one in raw), raw[0]["weights_and_gradients"]
    row = {"learner": side, "tokens of an answer": tokens, "peak MiB": grown / 2**20}
    row |= {"weights and gradients MiB": fixed / 2**20, "above them MiB": (grown - fixed) / 2**20}
    return {"growth": grown, "above": grown - fixed, "row": row, "raw": raw}


_MEMORY_REPEATS = 3
"""Two processes that do the same differ by a percent or two."""


def _memory_vs_trl(run: Run, repeats: int) -> Outcome:
    short, long = at((32, 128), (4, 8))
    times = {short: min(repeats, _MEMORY_REPEATS), long: 1}
    found = {
        (side, tokens): _memory(run, side, tokens, times[tokens]) for tokens in times for side in ("masters", "trl")
    }

    def ratio(entry: str, tokens: int) -> float:
        return found["masters", tokens][entry] / found["trl", tokens][entry]

    also = {
        "above_weights_and_gradients": ratio("above", short),
        "at_128_tokens": ratio("growth", long),
        "at_128_tokens_above_weights_and_gradients": ratio("above", long),
    }
    rows = [one["row"] for one in found.values()]
    raw = {f"{side}-{tokens}": one["raw"] for (side, tokens), one in found.items()}
    return Outcome(value=ratio("growth", short), rows=rows, raw=raw, also=also)


_LENGTHS = at((16, 32, 64, 128, 256, 512), (4, 8))
"""Tokens of an answer, each twice the one before."""
_LONGER = (*_LENGTHS, 2 * _LENGTHS[-1])


def _memory_by_length(run: Run, repeats: int) -> Outcome:
    found = {tokens: _memory(run, "masters", tokens, repeats) for tokens in _LENGTHS}
    above = [found[tokens]["above"] for tokens in _LENGTHS]
    also = {"largest_growth_when_answers_double": max(longer / shorter for shorter, longer in pairwise(above))}
    rows = [found[tokens]["row"] for tokens in _LENGTHS]
    raw = {str(tokens): one["raw"] for tokens, one in found.items()}
    return Outcome(value=above[-1] / above[0], rows=rows, raw=raw, also=also)


def _tensors_by_length(run: Run, _: int) -> Outcome:
    above = {tokens: run("tensors", tokens)["above"] for tokens in _LONGER}
    per_token = {longer: (above[longer] - above[shorter]) / (longer - shorter) for shorter, longer in pairwise(_LONGER)}
    rows = [
        {
            "tokens of an answer": tokens,
            "above weights and gradients MiB": size / 2**20,
            "KiB per further token": per_token[tokens] / 2**10 if tokens in per_token else "",
        }
        for tokens, size in above.items()
    ]
    return Outcome(value=per_token[_LONGER[-1]] / per_token[_LONGER[-2]], rows=rows, raw=above)


_WIDTHS = at((512, 1024, 2048), (512,))
_HEADLINE_WIDTH = _WIDTHS[-1]
_OTHER_WIDTHS_REPEATS = 3


def _matmul_share(run: Run, repeats: int) -> Outcome:
    times = {width: repeats if width == _HEADLINE_WIDTH else min(repeats, _OTHER_WIDTHS_REPEATS) for width in _WIDTHS}
    raw = {str(width): run("matmul_share", times[width], width) for width in _WIDTHS}
    rows, best = [], 0.0
    for width in _WIDTHS:
        for budget, one in raw[str(width)]["budgets"].items():
            speeds = ratios(one["operations"], one["seconds"])
            one["shares"] = ratios(speeds, one["rate"])
            share = median(one["shares"])
            if width == _HEADLINE_WIDTH:
                best = max(best, share)
            row = {"width": width, "million parameters": raw[str(width)]["parameters"] / 1e6}
            row |= {"groups of a step": raw[str(width)]["groups"], "groups of a micro-batch": int(budget)}
            row |= {"GFLOP/s": median(speeds) / 1e9, "one product GFLOP/s": median(one["rate"]) / 1e9}
            rows.append(row | {"share": share, "least": min(one["shares"]), "most": max(one["shares"])})
    return Outcome(value=best, rows=rows, raw=raw)


def _live_teacher(run: Run, repeats: int) -> Outcome:
    raw = run("live_teacher", repeats)
    shares = ratios(raw["seconds"]["stored"], raw["seconds"]["live"])
    rows = [{"teacher's scores": name, **_seconds(seconds)} for name, seconds in raw["seconds"].items()]
    return Outcome(value=median(shares), rows=rows, raw=raw | {"ratios": shares})


_COST_STEPS = {1: (1, 4, 16, 64), 4: (1, 4, 16)}
"""Groups of a micro-batch → groups of a step."""


def _cost(run: Run, repeats: int) -> Outcome:
    raw = {str(budget): run("cost_per_token", repeats, budget, *steps) for budget, steps in _COST_STEPS.items()}
    raw["1"]["ratios"] = [ratio / 64 for ratio in ratios(raw["1"]["seconds"]["64"], raw["1"]["seconds"]["1"])]
    rows = []
    for budget, one in raw.items():
        for groups, seconds in one["seconds"].items():
            row = {"groups of a micro-batch": int(budget), "groups of a step": int(groups), **_seconds(seconds)}
            rows.append(row | {"ms per answer token": 1e3 * median(seconds) / (int(groups) * one["tokens"])})
    return Outcome(value=median(raw["1"]["ratios"]), rows=rows, raw=raw)


def _seconds(values: list[float]) -> dict[str, float]:
    return {f"{name} s" if name == "median" else name: value for name, value in spread(values).items()}


@cache
def figures() -> dict[str, Figure]:
    """By key, in the order in which they are taken."""
    small, large = Task(side=at(14, 2)), Task(side=at(28, 4))
    trl = f"answer tokens per second against TRL, {small.answers} × {small.tokens} tokens, "
    return {
        "speed_vs_trl": Figure(
            says=f"{trl}{small.side**2} image tokens", aim=Aim(least=4), take=_against_trl(small.side)
        ),
        "speed_vs_trl_784": Figure(
            says=f"{trl}{large.side**2} image tokens", aim=Aim(least=6), take=_against_trl(large.side)
        ),
        "speed_vs_separate": Figure(
            says="speed against the same answers with a prompt each", aim=Aim(least=3), take=_separate
        ),
        "memory_vs_trl": Figure(
            says="peak memory over TRL's, vocabulary 151,936", aim=Aim(most=0.5), take=_memory_vs_trl
        ),
        "matmul_share": Figure(
            says="necessary operations per second over one large product's, width 2048",
            aim=Aim(least=0.75),
            take=_matmul_share,
        ),
        "stored_vs_live_teacher": Figure(
            says="seconds with stored scores over seconds with a live teacher", aim=Aim(), take=_live_teacher
        ),
        "cost_per_token_64_over_1": Figure(
            says="seconds per answer token, 64 groups a step over 1", aim=Aim(least=0.9, most=1.1), take=_cost
        ),
        "memory_512_over_16_answers": Figure(
            says="memory above weights and gradients, answers of 512 tokens over 16",
            aim=Aim(most=2, of="largest_growth_when_answers_double"),
            take=_memory_by_length,
        ),
        "memory_per_token_1024_over_512": Figure(
            says="bytes of tensors per further token of the answers, from 512 to 1024 over from 256 to 512",
            aim=Aim(most=1.02),
            take=_tensors_by_length,
        ),
    }
