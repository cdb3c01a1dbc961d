"""Chooses the questions that a run's report shows, with their answers, and counts how rewards rank answers."""

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import pyarrow.compute as pc

from masters_ray import data, store
from masters_ray.config import Config
from masters_ray.errors import StoreError
from masters_ray.evaluate import Marked
from masters_ray.files import read_records
from masters_ray.learner.job import GroupRewards
from masters_ray.method.marking import right
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.progress import warn
from masters_ray.records import JudgedAnswer, Picture, Problem, RolloutGroup
from masters_ray.report.summary import Example, OutrankedBy, RewardFacts

T = TypeVar("T")

_LOOKED_AT = 200  # most groups whose rewards are compared with the marks of their answers
_SHOWN = 960  # maximum length of a picture's longer side in a report, in pixels
_SHARP = 256  # pictures up to this length of the longer side, in pixels, are stored without loss, as PNG
_LEVEL = 1e-3  # advantages that differ by less are level


def learned(directory: RunDirectory, config: Config) -> tuple[list[Example], RewardFacts]:
    """Returns examples of groups, spread evenly over the run, with the rewards of their answers, and counts over many
    more groups. One example more is a group in which a wrong answer outranks a right one, if the others show none.
    Leaves out groups whose rows are gone or damaged, or whose rewards are incomplete."""
    file = directory.file("rewards.jsonl")
    rows = read_records(file, GroupRewards, "Delete it to do without examples.") if file.exists() else []
    rewards = {(row.stage, row.position): row for row in rows}
    read = lru_cache(1)(store.read_shard)
    looked_at: list[tuple[Problem, Example]] = []
    for row in _spread([rewards[place] for place in sorted(rewards)], _LOOKED_AT):
        try:
            for group in _groups(directory, row, read):
                if {len(row.divergences), len(row.distillation), len(row.advantages)} != {len(group.answers)}:
                    raise StoreError(f"{file}: not a number for each answer to {group.problem.id}")
                looked_at.append((group.problem, _marked(group, row, config)))
        except StoreError as error:
            warn(f"{error}: the report shows no example from it")
    shown = _spread(looked_at, config.evaluation.examples)
    outranked = [one for one in looked_at if one[1].outranked == "above"]
    if shown and not any(one.outranked == "above" for _, one in shown):
        shown += outranked[:1]
    examples = [one for _, one in looked_at]
    counts = Counter(one.outranked for one in examples)
    facts = RewardFacts(
        groups=len(examples),
        mixed=sum(any(_pairs(one.answers, one.by_rule)) for one in examples),
        above=counts["above"],
        level=counts["level"],
        reinforced=sum(bool(one.reinforced) for one in examples),
        idle=sum(one.outranked == "level" and not any(one.rewards.advantages) for one in examples if one.rewards),
        disputed=sum(bool(one.disputed) for one in examples),
        reasons=dict(sorted(Counter(reason for one in examples for reason in one.reasons).items())),
    )
    return [dataclasses.replace(one, pictures=[*map(seen, problem.pictures)]) for problem, one in shown], facts


def _groups(directory: RunDirectory, row: GroupRewards, read: Any) -> list[RolloutGroup]:
    """Returns the rewarded group from its stage's store, or from the store of the online iterations, which a killed run
    may not have closed; an empty list when it is gone. read: as ``store.read_shard``."""
    folder = directory.stage(row.stage) if row.version is None else directory.online(row.stage)
    before = [name for name in folder.names(store.SHARD) if store.first_position(name) <= row.position]
    if not before:
        return []
    table = read(folder, before[-1])
    found = store.groups(table.filter(pc.equal(table["position"], row.position)))
    return [group for group in found if group.version == row.version]


def _marked(group: RolloutGroup, rewards: GroupRewards, config: Config) -> Example:
    """Returns a group as an example without pictures."""
    answers = [one.judged for one in group.answers]
    by_rule = [right(one.answer.text, group.problem, config.judge.rule) for one in answers]
    told: dict[str, Any] = {"mask_ratio": group.mask_ratio, "answers": answers, "rewards": rewards}
    pairs = _pairs(answers, by_rule)
    gaps = [
        (rewards.advantages[wrong] - rewards.advantages[other], _reason(answers, rewards, wrong, other, config))
        for wrong, other in pairs
    ]
    raised = dict.fromkeys(answers[wrong].answer.text for wrong, _ in pairs if rewards.advantages[wrong] > _LEVEL)
    outranking = [(gap, reason) for gap, reason in gaps if gap > -_LEVEL]
    above = any(gap > _LEVEL for gap, _ in outranking)
    reasons = sorted({reason for gap, reason in outranking if gap > _LEVEL or not above})
    outranked: Any = "above" if above else "level" if outranking else ""
    return _example(group.problem, by_rule=by_rule, outranked=outranked, reasons=reasons, reinforced=[*raised], **told)


def _pairs(answers: Sequence[JudgedAnswer], by_rule: Sequence[bool]) -> list[tuple[int, int]]:
    """Returns the pairs (wrong answer, right answer) of a group: by the rule, or by the verdict where the rule calls
    all answers alike."""
    marks = by_rule if len(set(by_rule)) > 1 else [one.accuracy for one in answers]
    places = range(len(answers))
    return [(one, other) for one in places for other in places if not marks[one] and marks[other]]


def _reason(
    answers: Sequence[JudgedAnswer], rewards: GroupRewards, wrong: int, other: int, config: Config
) -> OutrankedBy:
    """Returns what raises the wrong answer's advantage to that of the right one or above."""
    one, better = answers[wrong], answers[other]
    if (one.accuracy or 0) >= (better.accuracy or 0):
        return "rewarded" if one.accuracy else "denied"
    cut = {"judge": [], "zero": [better], "mask": [one, better]}[config.reward.cut_answers]
    if any(each.answer.finish == "length" for each in cut):
        return "cut"
    return "distillation" if rewards.distillation[wrong] > rewards.distillation[other] else "reasoning"


def changed(held_out: Sequence[Problem], marks: Mapping[str, Sequence[Marked]], count: int) -> list[Example]:
    """Returns up to ``count`` held-out questions that the student answered correctly either before or after training:
    a third of them regressions, if there are so many, then improvements; spread over the kinds by their numbers."""
    before, after, teacher = (
        {one.id: one for one in marks[name]} for name in ("student_before", "student_after", "teacher")
    )
    kind = attrgetter("kind")
    regressed, improved = (
        [one.id for one in sorted(before.values(), key=kind) if (one.correct, after[one.id].correct) == change]
        for change in ((True, False), (False, True))
    )
    few = min(len(regressed), max(-(-count // 3), count - len(improved)))
    problems = {one.id: one for one in held_out}
    return [
        _example(
            problems[id],
            pictures=[*map(seen, problems[id].pictures)],
            before=before[id],
            after=after[id],
            teacher=teacher[id],
            answers=[],
        )
        for id in (*_spread(improved, count - few), *_spread(regressed, few))
    ]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most ``count`` of the items, evenly spread: each from the middle of an equal part."""
    taken = min(count, len(items))
    return [items[(2 * index + 1) * len(items) // (2 * taken)] for index in range(taken)]


def _example(problem: Problem, **more: Any) -> Example:
    asked = {"id": problem.id, "question": problem.question, "label": problem.label, "kind": problem.kind}
    return Example(**asked | {"pictures": []} | more)


def seen(picture: Picture) -> str:
    """Returns a picture as the models see it, scaled down to _SHOWN, as a data URI; or why it cannot be read."""
    try:
        pixels = data.decode(picture)
    except data.BadPictureError as error:
        return str(error)
    pixels.thumbnail((_SHOWN, _SHOWN))
    kind = "PNG" if max(pixels.size) <= _SHARP else "JPEG"
    content = io.BytesIO()
    pixels.save(content, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
