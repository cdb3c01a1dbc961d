"""What is measured: each function runs in a process of its own and returns what came out, repeat by repeat."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import models, sides, timing
from bench.groups import Question, Task, packed, question
from bench.memory import allocated, growth
from masters_ray.method.grpo import advantages
from masters_ray.models import hf

Raw = dict[str, Any]

_AGREEMENT = 1e-4
"""Largest difference between two learners' gradients of one weight matrix, relative to its largest entry."""
_STEPS_OF_MEMORY = 2
_LEAST_GROUPS = 8
"""Groups that a repeat of ``cost_per_token`` takes, in as many steps as that makes."""
SHARE_BUDGETS = (1, 2, 4)
"""Micro-batches of so many groups."""
SHARE_GROUPS = {512: 8, 1024: 4, 2048: 4}
"""Groups of one optimizer step, by width."""
_SHARE_SIZES = {512: models.NARROW, 1024: models.WIDE, 2048: models.WIDEST}


def against_trl(repeats: int, side: int) -> Raw:
    """One group, forward and backward, and TRL's on a copy of the model; refused if their gradients differ."""
    task = Task(side=side)
    ours = sides.Masters(models.build(models.STUDENT))
    asked = question(ours.model, task)
    batch = packed([asked])
    trl = sides.Trl(models.build(models.STUDENT))
    outputs = ours.backward(batch, jsd_weight=0.0)
    inputs = sides.Trl.inputs(asked, outputs.old.advantages)
    trl.backward(inputs)
    difference = _gradient_difference(ours.model, trl.model)
    if not difference < _AGREEMENT:
        raise RuntimeError(f"the learners compute different gradients: they differ by {difference:.1e}")
    seconds = timing.in_turn({"masters": lambda: ours.backward(batch), "trl": lambda: trl.backward(inputs)}, repeats)
    return {"seconds": seconds, "gradient_difference": difference, "tokens": task.answers * task.tokens}


def against_separate(repeats: int) -> Raw:
    """One group with its prompt once, and as answers that each have the prompt of their own."""
    ours = sides.Masters(models.build(models.STUDENT))
    asked = question(ours.model, Task())
    once, each = packed([asked]), packed(asked.alone())
    seconds = timing.in_turn({"once": lambda: ours.backward(once), "each": lambda: ours.backward(each)}, repeats)
    return {"seconds": seconds, "lengths": {"once": once.layout.length, "each": each.layout.length}}


def memory(side: str, tokens: int) -> Raw:
    """Peak growth of a few steps over a large vocabulary, from before the model is built."""
    sizes: dict[str, int] = {}

    def steps(size: models.Size, task: Task) -> None:
        model = models.build(size)
        sizes["parameters"], sizes["trained"] = models.parameters(model)
        asked = question(model, task)
        step = _one_step(side, model, asked)
        for _ in range(_STEPS_OF_MEMORY):
            step()

    steps(models.TINY, Task(side=2, answers=8, tokens=4))  # what is loaded and compiled on first use
    grown = growth(lambda: steps(models.LARGE_VOCABULARY, Task(tokens=tokens)))
    return {"growth": grown, "weights_and_gradients": 4 * (sizes["parameters"] + sizes["trained"])}


def tensors(tokens: int) -> Raw:
    """The most that tensors weigh during a step over a large vocabulary, beyond weights and gradients."""
    model = models.build(models.LARGE_VOCABULARY)
    step = _one_step("masters", model, question(model, Task(tokens=tokens)))
    step()
    model.zero_grad(set_to_none=True)
    return {"above": allocated(step) - 4 * models.parameters(model)[1]}


def matmul_share(repeats: int, width: int) -> Raw:
    """Whole optimizer steps at several micro-batch sizes, each beside the processor's rate at one large product."""
    optimizer = sides.Optimizer(models.build(_SHARE_SIZES[width]))
    questions = _questions(optimizer.model, SHARE_GROUPS[width])
    budgets = {budget: optimizer.batches(questions, budget * Task().sequence) for budget in SHARE_BUDGETS}
    found: dict[str, Any] = {str(budget): {"seconds": [], "operations": [], "rate": []} for budget in budgets}
    for budget in budgets:
        optimizer.step(optimizer.batches(questions[:budget], budget * Task().sequence))
    for _ in range(repeats):
        for budget, batches in budgets.items():
            record = found[str(budget)]
            record["rate"].append(timing.matmul_rate())
            started = time.perf_counter()
            record["operations"].append(optimizer.step(batches))
            record["seconds"].append(time.perf_counter() - started)
    return {"budgets": found, "groups": len(questions), "parameters": models.parameters(optimizer.model)[0]}


def live_teacher(repeats: int) -> Raw:
    """A step on stored scores, and the same step against a teacher that reads the same packed batch first."""
    ours = sides.Masters(models.build(models.STUDENT))
    teacher = models.build(models.TEACHER, seed=1).eval()
    hf.read_packed(teacher, "teacher")
    batch = packed([question(ours.model, Task())])
    actions: dict[str, Callable[[], object]] = {
        "stored": lambda: ours.backward(batch),
        "live": lambda: ours.backward(batch, teacher=teacher),
    }
    sizes = {"student": models.parameters(ours.model)[0], "teacher": models.parameters(teacher)[0]}
    return {"seconds": timing.in_turn(actions, repeats), "parameters": sizes}


def cost_per_token(repeats: int, budget: int, *counts: int) -> Raw:
    """Seconds of a whole optimizer step of so many groups, in micro-batches of ``budget`` groups; short ones are taken
    several times in a row."""
    optimizer = sides.Optimizer(models.build(models.STUDENT))
    questions = _questions(optimizer.model, max(counts))
    batches = {count: optimizer.batches(questions[:count], budget * Task().sequence) for count in counts}
    in_a_row = {count: max(1, _LEAST_GROUPS // count) for count in counts}

    def steps(count: int) -> None:
        for _ in range(in_a_row[count]):
            optimizer.step(batches[count])

    optimizer.step(batches[counts[1]])
    taken = timing.in_turn({str(count): partial(steps, count) for count in counts}, repeats, warm_ups=0)
    seconds = {str(count): [one / in_a_row[count] for one in taken[str(count)]] for count in counts}
    return {"seconds": seconds, "tokens": Task().answers * Task().tokens}


def _questions(model: Any, count: int) -> list[Question]:
    return [question(model, Task(), seed) for seed in range(count)]


def _one_step(side: str, model: Any, asked: Question) -> Callable[[], object]:
    if side == "masters":
        ours, batch = sides.Masters(model), packed([asked])
        return lambda: ours.backward(batch)
    trl = sides.Trl(model)
    inputs = sides.Trl.inputs(asked, advantages(packed([asked]).accuracy))
    return lambda: trl.backward(inputs)


def _gradient_difference(one: Any, other: Any) -> float:
    """The worst over all parameters; infinite when not the same ones have a gradient."""
    mine, theirs = (
        {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        for model in (one, other)
    )
    if mine.keys() != theirs.keys():
        return float("inf")
    return max(
        float((gradient - mine[name]).abs().max() / gradient.abs().max().clamp(min=1e-30))
        for name, gradient in theirs.items()
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *words = sys.argv[1:]
    print(json.dumps(globals()[name](*(int(word) if word.isdigit() else word for word in words))), flush=True)
    os._exit(0)  # what was printed is all: gloo's threads may abort at exit
