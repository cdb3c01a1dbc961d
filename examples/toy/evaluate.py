"""Greedy accuracy on questions by kind, and how often a judge agrees with the exact rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from examples.toy.examples import QuestionPrompts, Triple, evaluation_pair, make_batch, parsing_pair
from examples.toy.forward import Features, Model, picture_hidden
from examples.toy.pictures import grid, to_patches
from masters_ray.method import marking, prompts
from masters_ray.records import Problem

ANSWER_TOKENS = 8
JUDGE_TOKENS = 64


@torch.no_grad()
def complete(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    limit: int,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
) -> list[str]:
    """Greedy completions of prompts of one length each, at most ``limit`` tokens, through the stock ``generate``."""
    encoded = tokenizer(list(texts), padding=True, padding_side="left", return_tensors="pt")
    extra: dict[str, torch.Tensor] = {}
    if pixel_values is not None and image_grid_thw is not None:
        types = (encoded["input_ids"] == model.config.image_token_id).int()
        extra = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw, "mm_token_type_ids": types}
    made = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=limit,
        do_sample=False,
        **extra,
    )
    return tokenizer.batch_decode(made[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def question_accuracy(
    model: Model,
    questions: QuestionPrompts,
    problems: Sequence[Problem],
    pixels: torch.Tensor,
    chunk: int = 100,
) -> dict[str, tuple[int, int]]:
    """(right, asked) by kind; row i of uint8 ``pixels`` (n, 3, 64, 64) belongs to problem i."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(problems), chunk):
        part = problems[at : at + chunk]
        texts = [questions.prompt(problem.question) for problem in part]
        answers = complete(
            model, questions.tokenizer, texts, ANSWER_TOKENS, to_patches(pixels[at : at + chunk]), grid(len(part))
        )
        for problem, answer in zip(part, answers, strict=True):
            counts[problem.kind].append(marking.matches(answer, problem.label))
    return {kind: (sum(right), len(right)) for kind, right in counts.items()}


@torch.no_grad()
def quick_accuracy(
    model: Model,
    questions: QuestionPrompts,
    rows: Sequence[tuple[str, str, str]],
    features: Features,
) -> dict[str, float]:
    """Accuracy by kind of (kind, question, label) rows by teacher forcing, which greedy decoding agrees with.

    An answer is right when every one of its tokens, the end included, is the likeliest after those before it.
    """
    batch = make_batch(questions.tokenizer, [(questions.prompt(question), label) for _, question, label in rows])
    asked = batch.targets >= 0
    right = torch.ones_like(asked)
    right[asked] = model.lm_head(picture_hidden(model, batch.ids, features)[asked]).argmax(-1) == batch.targets[asked]
    counts: dict[str, list[bool]] = defaultdict(list)
    for (kind, _, _), good in zip(rows, right.all(dim=1).tolist(), strict=True):
        counts[kind].append(good)
    return {kind: sum(good) / len(good) for kind, good in counts.items()}


def judge_agreement(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    triples: Sequence[Triple],
    chunk: int = 100,
) -> dict[str, float]:
    """Share of triples whose verdict, as written, is the exact rule's: of the first call, and of the second."""
    first, second = 0, 0
    for at in range(0, len(triples), chunk):
        part = triples[at : at + chunk]
        said = complete(model, tokenizer, [evaluation_pair(tokenizer, triple)[0] for triple in part], JUDGE_TOKENS)
        first += sum(prompts.EVALUATION.score(text) == triple.verdict for text, triple in zip(said, part, strict=True))
        said = complete(model, tokenizer, [parsing_pair(tokenizer, triple)[0] for triple in part], 4)
        second += sum(prompts.PARSING.score(text) == triple.verdict for text, triple in zip(said, part, strict=True))
    return {"evaluation": first / len(triples), "parsing": second / len(triples)}
