"""Estimates rates from shapes, lengths and a card's data sheet, where nothing has been measured.

A step of an engine takes the longer of reading its weights and computing its sequences' tokens, then reads their KV
cache, and costs the host some time per sequence. Prompts and scores are computed as products alone. The learner's
operations are those of ``learner.work``. Constants below are usual fractions of what data sheets promise, and two that
are fitted to the only published times of this workload (appendix F.9, bench/paper.py): expect a factor of two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

from masters_ray.config import Config, HostedModel
from masters_ray.models import weights
from masters_ray.plan.memory import BYTES, Card, engine_bytes, token_bytes
from masters_ray.plan.rates import Rates
from masters_ray.records import Source

_PRODUCTS, _READS, _LEARNING = 0.5, 0.7, 0.35
"""Fractions of a card's operations (engines), of its bandwidth, and of its operations while learning."""
_HOST_SECONDS = 0.3e-3
"""Of an engine's host, per sequence and step: scheduling, sampling, log-probs. Fitted to appendix F.9."""
_SCORED_SECONDS = 14e-6  # of an engine's host, per scored token
_PICTURE_SECONDS = 0.08  # of an engine's host, per question with pictures
_VERDICT_PROMPT, _VERDICT = 350, 120  # tokens of a judge's prompt beside the answer, and of its reply
_DISK = 1e9  # bytes per second at which a rank reads weights
_LINK = 25e9  # bytes per second from the learner to an engine: a link of 200 Gbit/s
_START, _ONCE = 90.0, {"checks": 60.0, "everything else": 60.0}
"""Seconds of an engine's or the learner's start beside reading weights; of what a run does once."""
_STORED, _TEXT = 1.92, 16.0
"""Bytes of a stored token: per entry of the top k, and of the rest (docs/BENCHMARKS.md, store)."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Means of the data."""

    prompt: float  # tokens of a question with its pictures
    answer: float  # tokens of an answer
    picture_bytes: float = 0.0  # encoded bytes of a question's pictures


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """A replica of a model on its cards."""

    parameters: float  # that a token passes: of a mixture, those of the experts that it is sent to
    weights: float  # bytes of all its ranks
    token: float  # bytes of a token in the KV cache
    room: float  # tokens that the KV cache holds
    sequences: int
    operations: float
    bandwidth: float

    def prompt(self, tokens: float) -> float:
        """Returns the seconds of computing so many tokens at once."""
        return 2 * self.parameters * tokens / self.operations

    def write(self, context: float, tokens: float) -> float:
        """Returns the seconds of a sequence's ``tokens``, written after ``context`` beside as many other sequences as
        the engine takes."""
        at_once = max(1.0, min(self.sequences, self.room / (context + tokens)))
        products = 2 * self.parameters * at_once / self.operations
        cache = at_once * (context + tokens / 2) * self.token / self.bandwidth
        step = max(products, self.weights / self.bandwidth) + cache + _HOST_SECONDS * at_once
        return tokens * step / at_once


@cache
def active_parameters(folder: Path) -> float:
    """Returns the parameters that a token passes."""
    architecture = weights.architecture(folder)
    experts = int(architecture.text.get("num_experts") or 1)
    used = int(architecture.text.get("num_experts_per_tok") or experts) / experts
    sizes = {name: prod(entry.shape) for name, entry in weights.headers(folder).items()}
    return sum(size * (used if ".experts." in name else 1.0) for name, size in sizes.items())


def _engine(model: HostedModel, folder: Path, card: Card, share: float = 1.0) -> _Engine:
    """share: fraction of each card that the model's replica reserves."""
    ranks = model.tensor_parallel
    held = engine_bytes(model.engine, folder, ranks, card.memory * share)
    return _Engine(
        parameters=active_parameters(folder),
        weights=held.weights * ranks,
        token=token_bytes(folder, model.engine.dtype),
        room=max(held.sequences(1), 1.0),
        sequences=model.engine.max_num_seqs,
        operations=card.operations * _PRODUCTS * ranks * share,
        bandwidth=card.bandwidth * _READS * ranks * share,
    )


def estimated(config: Config, folders: Mapping[str, Path], lengths: Lengths, card: Card) -> Rates:
    """folders: key of ``config.models`` → its checkpoint's directory."""
    student = _engine(config.student, folders["student"], card, min(1.0, config.student.gpus or 1.0))
    keys = [key for key in config.models if key != "student"]
    hosts = [config.models[key] for key in keys]
    teachers = [
        _engine(model, folders[key], card, min(1.0, model.gpus or 1.0)) for key, model in zip(keys, hosts, strict=True)
    ]
    rollout, evaluated = config.rollout, min(lengths.answer, config.evaluation_tokens)

    def writes(engine: _Engine, answers: int) -> float:
        if not answers:
            return 0.0
        reads = engine.prompt(lengths.prompt) + _PICTURE_SECONDS * bool(lengths.picture_bytes)
        return reads + answers * engine.write(lengths.prompt / answers, lengths.answer)

    def scores(engine: _Engine, answers: int) -> float:
        tokens = answers * lengths.answer
        return engine.prompt(lengths.prompt + tokens) + _SCORED_SECONDS * tokens if answers else 0.0

    def judges(engine: _Engine, answers: int) -> float:
        asked = _VERDICT_PROMPT + lengths.answer
        return answers * (engine.prompt(asked) + engine.write(asked, _VERDICT))

    models = {"student": student, "teacher": teachers[0]}
    verdicts: dict[Source, int] = {"teacher": rollout.teacher_answers, "student": rollout.student_answers}
    judged = sum(
        judges(models[by], count)
        for source, count in verdicts.items()
        if (by := config.judge.of(source)) != "rule" and by in config.judges
    )
    calls = {
        "answer": {
            "teacher": _mean([writes(one, rollout.teacher_answers) for one in teachers]),
            "student": writes(student, rollout.student_answers),
        },
        "judge": {"judge": judged},
        "score": {
            "teacher": _mean([scores(one, rollout.student_answers) for one in teachers]),
            "student": scores(student, rollout.teacher_answers),
        },
    }
    online = calls | {"score": calls["score"] | {"reference": scores(student, config.group_size)}}
    held = weights.parameter_count(folders["student"]) * BYTES[config.learner.dtype]
    largest = max(one.weights / model.tensor_parallel for one, model in zip(teachers, hosts, strict=True))
    marking = judges(student, 1) if config.marks_by_judge else 0.0
    asking = student.prompt(lengths.prompt) + student.write(lengths.prompt, evaluated) + _PICTURE_SECONDS
    return Rates(
        group_seconds=learner_operations(config, folders, lengths) / (card.operations * _LEARNING),
        calls=calls,
        online_calls=online,
        publish_seconds=held / _LINK,
        load_seconds=held / _LINK,
        start_seconds=_START + held / _DISK,
        engines_seconds=_START + largest / _DISK,
        mask_seconds=largest / _DISK,
        evaluation_seconds=(asking + marking) / config.student.replicas,
        measuring_seconds=_START + held / _DISK,
        once=_ONCE,
        row_bytes=row_bytes(config, lengths),
    )


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def learner_operations(config: Config, folders: Mapping[str, Path], lengths: Lengths) -> float:
    """Returns the operations of a group: 2 per parameter and token forward, 4 backward (2 with adapters), 2 more when
    activations are computed again; the live teacher's 2."""
    learner, answers = config.learner, config.group_size * lengths.answer
    rows = weights.architecture(folders["student"]).family.layout == "rows"
    tokens = answers + lengths.prompt * (config.group_size if rows else 1)
    passes = 2 + (2 if learner.lora.rank else 4) + 2 * learner.activation_checkpointing
    found = tokens * passes * active_parameters(folders["student"]) * learner.updates_per_step
    if learner.teacher == "live":
        found += tokens * 2 * active_parameters(folders["teacher"])
    return found


def row_bytes(config: Config, lengths: Lengths) -> float:
    """Returns the bytes of a stored row."""
    tokens = config.group_size * lengths.answer
    pictures = lengths.picture_bytes if config.rollout.pictures == "embed" else 0.0
    return tokens * (_STORED * config.teacher.top_k + _TEXT) + pictures
