"""Checks of a configuration against the world: files, checkpoints, tokenizers, the cluster. Starts nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from masters_ray import checkpoints, data, placement, schedule, weight_files, weights
from masters_ray.config import Config, read
from masters_ray.engines import prompt_check
from masters_ray.errors import CheckpointError, Complaint, ConfigError, DataError, StoreError
from masters_ray.progress import say
from masters_ray.store import Folder

_SHOWN = 12
"""Numbers in a list that a person reads."""


def load(file: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration, checked by itself and against data files and checkpoints (headers only, no weights).

    Raises ConfigError with every complaint of both kinds.
    """
    config, complaints = examined(file, overrides)
    if complaints:
        raise ConfigError(complaints)
    return config


def examined(file: str | Path, overrides: list[str] | None = None) -> tuple[Config, list[Complaint]]:
    """Like ``load``, with the complaints beside the configuration. Raises ConfigError when the file cannot be read."""
    config, complaints = read(file, overrides)
    known = {complaint.where for complaint in complaints}
    complaints += [one for one in (*_data(config), *_checkpoints(config), *_stores(config)) if one.where not in known]
    return config, complaints


def online_schedule(config: Config) -> str | None:
    """Which iterations are online, in a sentence; None when there are none."""
    fraction = config.rollout.online_fraction
    if fraction == 0:
        return None
    rows = config.data.train.rows
    if rows is None:
        first = [str(number) for number in itertools.islice(filter(_online_at(fraction), itertools.count(1)), _SHOWN)]
        return f"online iterations: {', '.join(first)}, … ({fraction:.1%} of all; data.train.rows is not set)"
    plan = schedule.plan(config.schedules, rows)
    iterations = schedule.iterations(plan, config.learner.groups_per_step, fraction)
    online = [str(one.number) for one in iterations if one.online]
    shown = online if len(online) <= _SHOWN else [*online[: _SHOWN - 1], "…", online[-1]]
    share = f"{len(online)} of {len(iterations)}, {len(online) / len(iterations):.1%}"
    return f"online iterations: {', '.join(shown)} ({share}, with {rows} questions)"


def _online_at(fraction: float) -> Callable[[int], bool]:
    return lambda number: schedule.is_online(number, fraction)


def check_cluster(config: Config, *, learns: bool = True) -> placement.Turns | None:
    """Where learner and rollouts of online iterations take turns; None when they need not. learns: false for commands
    that make rollouts only. Raises ConfigError when the connected cluster, or each of its nodes, is too small for what
    is asked for at one time and does not grow, or when weights cannot go the way that conf says."""
    import ray
    from ray._private.state import state

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    reported = state.get_cluster_config()
    grows = config.cluster.grows or bool(reported and reported.node_group_configs)
    return placed(config, nodes, learns=learns, grows=grows)


def placed(
    config: Config, nodes: placement.Nodes, *, learns: bool = True, grows: bool = False
) -> placement.Turns | None:
    """``check_cluster`` of a cluster with these nodes. grows: it may get others."""
    turns, complaints = placement.decide(config, nodes, learns)
    if complaints and not grows:
        raise ConfigError(complaints)
    for one in complaints:
        say(f"the cluster has to grow, which is waited for: {one.where} is {one.found}, its nodes hold {one.expected}")
    if learns:
        placement.transfer(config, turns)
    return turns


def _data(config: Config) -> list[Complaint]:
    complaints = []
    for name, source in (("train", config.data.train), ("held_out", config.data.held_out)):
        if source.format == "easy_vqa":
            if find_spec("easy_vqa") is None:
                complaints.append(
                    Complaint(
                        where=f"data.{name}.format",
                        expected="the package easy-vqa",
                        found="not installed",
                        remedy="pip install easy-vqa==1.0",
                    )
                )
        elif source.path:
            try:
                found, _, remedy = (data.in_place_of(source) or "").partition(". ")
            except DataError as error:
                found, remedy = str(error), ""
            if found:
                where, expected = f"data.{name}.path", f"a {source.format} file"
                found = f"{source.path}: {found}"
                complaints.append(Complaint(where=where, expected=expected, found=found, remedy=remedy))
    return complaints


def _stores(config: Config) -> list[Complaint]:
    complaints = []
    named = [("rollout.store", config.rollout.store), *(("rollout.reuse", one) for one in config.rollout.reuse)]
    for key, where in named:
        try:
            Folder(where or ".")
        except StoreError as error:
            expected = "a path, or an address such as s3://bucket/folder or gs://bucket/folder"
            complaints.append(Complaint(where=key, expected=expected, found=repr(where), remedy=str(error)))
    return complaints


def _checkpoints(config: Config) -> list[Complaint]:
    folders, complaints = _located(config)
    student = folders.get("student")
    if student is not None:
        complaints += [*_one_matrix(config, student), *checkpoints.student(student)]
    for name, place in folders.items():
        complaints += checkpoints.context(config, name, place)
    for number, name in enumerate(config.models):
        folder = folders.get(name)
        if name == "student" or folder is None:
            continue
        complaints += checkpoints.teacher(config, number, folder)
        complaints += _top_k(f"{name}.top_k", config.of_teacher(number).teacher.top_k, folder)
        if student is not None:
            complaints += [*_tokenizers(folder, student), *_ends(name, folder, student)]
            complaints += _live(config, name, folder, student)
    return complaints


def _located(config: Config) -> tuple[dict[str, Path], list[Complaint]]:
    """The directories of the checkpoints that are here and whole, by the model's key, and what is wrong with others."""
    complaints: list[Complaint] = []
    folders: dict[str, Path] = {}
    for name, model in config.models.items():
        key, checkpoint = f"{name}.checkpoint", model.checkpoint
        try:
            folder = weights.locate_locally(checkpoint)
        except CheckpointError as error:
            expected = "a checkpoint's directory or a model id of the Hub"
            found = str(error).rstrip(".")
            complaints.append(Complaint(where=key, expected=expected, found=found, remedy=""))
            continue
        if folder is None:
            say(f"{key}: {checkpoint} is not downloaded yet and was not checked")
        elif wrong := weights.check(folder):
            found, remedy = f"{folder}: {'; '.join(wrong)}", "Download or export it again."
            complaints.append(
                Complaint(
                    where=key,
                    expected="a readable checkpoint in safetensors with tokenizer and processor",
                    found=found,
                    remedy="" if found.endswith(remedy.rstrip(".")) else remedy,
                )
            )
        else:
            folders[name] = folder
    return folders, complaints


def _tokenizers(teacher: Path, student: Path) -> list[Complaint]:
    ours, theirs = weights.tokenizer_identity(student), weights.tokenizer_identity(teacher)
    different = [name for name in ours if ours[name] != theirs[name]]
    if not different:
        return []
    return [
        Complaint(
            where="student.checkpoint",
            expected=f"the tokenizer of the teacher ({teacher})",
            found=f"{student}, which differs in {', '.join(different)}",
            remedy="Distributions can only be compared token by token: choose a pair of one family.",
        )
    ]


def _ends(name: str, teacher: Path, student: Path) -> list[Complaint]:
    complaints, notes = prompt_check.ends(name, teacher, student)
    for note in notes:
        say(note)
    return complaints


def _live(config: Config, name: str, teacher: Path, student: Path) -> list[Complaint]:
    if config.learner.teacher == "stored" or weights.prompt_digest(teacher) == weights.prompt_digest(student):
        return []
    return [
        Complaint(
            where="learner.teacher",
            expected=f"stored, since {name} makes other prompts than the student",
            found="live",
            remedy="A live teacher reads the student's own prompts: processor files and chat templates must be equal.",
        )
    ]


def _one_matrix(config: Config, student: Path) -> list[Complaint]:
    content = weight_files.read_config(student)
    tied = content.get("tie_word_embeddings", content.get("text_config", {}).get("tie_word_embeddings", False))
    frozen = set(config.learner.frozen) & {"embeddings", "lm_head"}
    if not tied or config.learner.lora.rank or len(frozen) != 1:
        return []
    return [
        Complaint(
            where="learner.frozen",
            expected=f"both or neither of embeddings and lm_head: in {student} they are one matrix",
            found=str(list(config.learner.frozen)),
            remedy="Name both, or take it out.",
        )
    ]


def _top_k(key: str, top_k: int, teacher: Path) -> list[Complaint]:
    vocabulary = weight_files.vocabulary(teacher)
    if vocabulary is None or top_k <= vocabulary:
        return []
    return [
        Complaint(
            where=key,
            expected=f"at most the vocabulary's {vocabulary}",
            found=str(top_k),
            remedy="50 keeps nearly all of the mass.",
        )
    ]
