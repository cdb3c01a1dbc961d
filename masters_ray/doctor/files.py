"""Checks of files, tokens and prompts. They read headers and the first questions, and start nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from masters_ray.checks import pair, rows
from masters_ray.checks.context import CheckContext
from masters_ray.checks.prompts import PROMPT_CHECKS
from masters_ray.method.prompts import question_messages
from masters_ray.models import weights
from masters_ray.models.chat import Chat
from masters_ray.preflight import chosen
from masters_ray.preflight.findings import Finding, judged, passed

_FROM = "template and processor files of one model: copy them from the other, if they are meant to be equal"


def of_context(name: str, context: CheckContext, good: str, *checks: Callable[[CheckContext], None]) -> Finding:
    """Runs checks that leave complaints in a context. good: what is said when they leave none."""
    own = replace(context, complaints=[])
    for check in checks:
        with own.guarded(name, "a good one"):
            check(own)
    found = "; ".join(f"{one.where}: {one.found}" for one in own.complaints)
    return judged(name, not found, found or good, " ".join(one.remedy for one in own.complaints))


def checkpoints(context: CheckContext) -> Finding:
    good = ", ".join(
        f"{name} {weights.parameter_count(folder) / 1e6:,.0f} M" for name, folder in context.folders.items()
    )
    return of_context("checkpoints", context, f"parameters: {good}", pair.models, pair.maskable)


def tokenizer(context: CheckContext) -> Finding:
    return of_context("tokenizer", context, "the same ids", partial(_with_teachers, pair.same_tokenizer))


def _with_teachers(check: Callable[[CheckContext, str, Path, Path], None], context: CheckContext) -> None:
    for name in _teachers(context):
        check(context, name, context.folders[name], context.folders["student"])


def _teachers(context: CheckContext) -> list[str]:
    return [name for name in context.folders if name != "student"]


def vocabulary(context: CheckContext) -> Finding:
    """Compares the tokenizer's largest id with the rows of each model's embeddings."""
    told, faults = [], []
    for name, folder in context.folders.items():
        tokens = max(Chat(folder).tokenizer.get_vocab().values()) + 1
        width = weights.vocabulary(folder)
        told.append(f"{name} {width} rows for {tokens} tokens")
        if width is not None and width < tokens:
            faults.append(f"{name} has {width} rows for {tokens} tokens")
    return judged("vocabulary", not faults, "; ".join(faults or told))


def template(context: CheckContext) -> Finding:
    problem = context.loaded["train"][0]
    texts = {name: Chat(folder).text(question_messages(problem)) for name, folder in context.folders.items()}
    other = [name for name in _teachers(context) if texts[name] != texts["student"]]
    figure = f"{', '.join(other)} asks {problem.id} in other words" if other else "one text in all models"
    return judged("template", not other, figure, f"Look at the {_FROM}; --skip template goes on with both.")


def data(context: CheckContext) -> Finding:
    found = of_context("data", context, "", *(partial(rows.source, name=name) for name in ("train", "held_out")))
    counts = ", ".join(f"{len(loaded)} {name}" for name, loaded in context.loaded.items())
    return replace(found, figure=found.figure or f"{counts} questions were read")


def prompt(name: str, context: CheckContext) -> Finding:
    """Makes one of the ``PROMPT_CHECKS`` for each model and the chosen questions."""
    problems = chosen(context.loaded["train"])
    for of, folder in context.folders.items():
        chat = Chat(folder)
        for problem in problems:
            try:
                PROMPT_CHECKS[name](chat, problem)
            except Exception as error:  # noqa: BLE001 - processors raise errors of any kind
                return judged(name, False, f"{of}, {problem.id}: {error}", f"Look at the {_FROM}.")
    if (
        name == "end_token"
        and (found := of_context(name, context, "", partial(_with_teachers, pair.common_end))).figure
    ):
        return found
    return passed(name, f"{len(problems)} questions, {len(context.folders)} models")


NEEDS = {"prompt": ("data", "picture_tokens", "start_token"), "checkpoints": (), "data": ()}
"""Check → others that must not have failed before; of those that are not named: data."""
FILES: dict[str, Callable[[CheckContext], Finding]] = {
    "checkpoints": checkpoints,
    "tokenizer": tokenizer,
    "vocabulary": vocabulary,
    "data": data,
    "template": template,
    **{name: partial(prompt, name) for name in PROMPT_CHECKS},
}
