"""Where a plan's rates and counts come from: a run, a probe, a file, or shapes and a card's data sheet."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from masters_ray.config import Config
from masters_ray.data import count
from masters_ray.errors import CheckpointError, Complaint, ConfigError
from masters_ray.models import weights
from masters_ray.pipeline import inputs
from masters_ray.plan import probe
from masters_ray.plan.estimate import Lengths, estimated
from masters_ray.plan.memory import CARDS, engine_bytes, learner_bytes
from masters_ray.plan.rates import Rates
from masters_ray.records import Problem

_LOOKED_AT = 32  # questions whose tokens are counted
_ASKED = "Name rates (--rates), measure them (--probe), or set cluster.gpu for an estimate."


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command's words."""

    rates: Path | None = None
    probes: bool = False
    questions: int | None = None
    shares: str = ""  # online fractions with commas between; "": that of the configuration
    replicas: Sequence[str] = ()
    prompt_tokens: float | None = None
    answer_tokens: float | None = None

    def fractions(self, config: Config) -> list[float]:
        """Returns the online fractions to forecast. Raises ConfigError for one that is not a number."""
        words = self.shares.split(",") if self.shares else []
        try:
            return [config.rollout.online_fraction, *map(float, words)]
        except ValueError as error:
            raise ConfigError([Complaint("--shares", "numbers with commas between", self.shares)]) from error


@dataclass(frozen=True, kw_only=True)
class Source:
    told: str  # what the rates are, in words
    place: Path | None  # the run or file that the rates are of
    rates: Rates
    rates_of: Callable[[Config], Rates]
    """The rates at which a changed configuration is forecast: estimates depend on it, measured rates do not."""
    questions: int
    held_out: int
    room: float  # bytes of a GPU's memory; 0 where no GPU is used or named
    folders: Mapping[str, Path]
    remarks: list[str] = field(default_factory=list)


def source(config: Config, load: Callable[[Sequence[str]], Config], file: str, asked: Asked) -> Source:
    """Finds rates in the order: those named, a probe, the run in run.dir, an estimate. Raises ConfigError when there
    are none, StoreError for rates that cannot be read."""
    here = _folders(config)
    card = CARDS.get(config.cluster.gpu or "")
    counted: dict[str, Any] = {
        "questions": asked.questions or count(config.data.train, config.data.train_rows),
        "held_out": count(config.data.held_out, config.data.held_out_rows),
        "room": card.memory if card else 0.0,
        "folders": here,
    }
    run = Path(config.run.dir)
    if asked.rates or asked.probes or (run / "metrics.jsonl").is_file():
        place, told = asked.rates or run, "of"
        if asked.probes and not asked.rates:
            place = probe.measure(load(probe.words(config, max(asked.fractions(config)))), file)
            told = "measured by a probe,"
            if config.growth:
                counted["remarks"] = ["the probe measured the first teacher; larger ones take longer than is forecast"]
        rates = Rates.load(place)
        return Source(told=f"{told} {place}", place=place, rates=rates, rates_of=lambda _: rates, **counted)
    if card is None:
        raise ConfigError([Complaint("rates", "a run that was measured, or a card", "none", _ASKED)])
    if missing := config.models.keys() - here.keys():
        name = sorted(missing)[0]
        told = f"{name}.checkpoint: {config.models[name].checkpoint} is not on this machine, and its shapes are needed"
        raise CheckpointError(f"{told}. Download it (its config.json and weights), or name measured rates (--rates).")
    lengths, remarks = _lengths(config, here, asked)
    told = f"estimated from shapes and the data sheet of {config.cluster.gpu}; nothing was measured (--probe measures)"

    def rates_of(changed: Config) -> Rates:
        return estimated(changed, here, lengths, card)

    return Source(told=told, place=None, rates=rates_of(config), rates_of=rates_of, remarks=remarks, **counted)


def _folders(config: Config) -> dict[str, Path]:
    """Returns the directories of the checkpoints that are on this machine: measured rates need none."""
    found = {}
    for name, model in config.models.items():
        with suppress(CheckpointError):
            if (folder := weights.locate_locally(model.checkpoint)) is not None:
                found[name] = folder
    return found


def _lengths(config: Config, folders: Mapping[str, Path], asked: Asked) -> tuple[Lengths, list[str]]:
    """Returns the lengths of the estimate, and what they rest on."""
    remarks = []
    answer = asked.answer_tokens
    if answer is None:
        answer = config.rollout.sampling.max_tokens / 2
        remarks.append(f"answers are taken to have {answer:g} tokens, half of the most (--answer-tokens)")
    if asked.prompt_tokens is not None:
        return Lengths(prompt=asked.prompt_tokens, answer=answer), remarks
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        spool = Path(scratch) / "train.spool"
        loaded = inputs.load_source(config, "train", [*folders.values()], spool, 1.0, _LOOKED_AT)
        problems = list(loaded)
        tokens = fmean(_tokens(folders["student"], problems))
        size = fmean(sum(len(one.data or b"") for one in problem.pictures) for problem in problems)
    remarks.append(f"the first {len(problems)} questions have {tokens:.0f} tokens each with their pictures")
    return Lengths(prompt=tokens, answer=answer, picture_bytes=size), remarks


def _tokens(folder: Path, problems: Sequence[Problem]) -> list[int]:
    from masters_ray.data import decode
    from masters_ray.method.prompts import question_messages
    from masters_ray.models.chat import Chat

    chat = Chat(folder)
    return [
        chat.inputs(question_messages(one), [decode(picture) for picture in one.pictures])["input_ids"].shape[1]
        for one in problems
    ]


def memory_of(config: Config, found: Source) -> dict[str, Any]:
    """Returns ``Plan.engines`` and ``Plan.learner``."""
    engines = {
        name: engine_bytes(
            model.engine, found.folders[name], model.tensor_parallel, found.room * min(1.0, model.gpus or 1.0)
        )
        for name, model in config.models.items()
        if name in found.folders and (found.room or model.engine.kv_cache_memory_bytes)
    }
    student = found.folders.get("student")
    return {"engines": engines, "learner": learner_bytes(config.learner, student) if student else None}
