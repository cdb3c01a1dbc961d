"""Defaults, a YAML file and ``key=value`` words become one Config; every violation is listed at once."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from masters_ray.config.rules import violations
from masters_ray.config.schema import Config
from masters_ray.config.written import as_written, remember
from masters_ray.errors import Complaint, ConfigError


def load(file: str | Path, overrides: list[str] | None = None) -> Config:
    """Defaults, then ``file``, then ``key=value`` words.

    Raises ConfigError with every violation: unknown keys, wrong types, missing keys and broken rules.
    """
    config, complaints = read(file, overrides)
    if complaints:
        raise ConfigError(complaints)
    return config


def read(file: str | Path, overrides: list[str] | None = None) -> tuple[Config, list[Complaint]]:
    """Like ``load``, with the violations beside the configuration; what they are about has its default or is empty."""
    complaints: list[Complaint] = []
    tree = OmegaConf.structured(Config)
    for origin, key, value in _assignments(Path(file), overrides or [], complaints):
        _assign(tree, origin, key, value, complaints)
    config = _resolved(tree, file, complaints)
    remember(config, OmegaConf.to_container(tree))  # type: ignore[arg-type]
    known = {complaint.where for complaint in complaints}
    complaints += [complaint for complaint in violations(config) if complaint.where not in known]
    return config, complaints


def _resolved(tree: DictConfig, file: str | Path, complaints: list[Complaint]) -> Config:
    """The tree's values, with complaints of those that are missing and of interpolations that lead nowhere."""
    while True:
        try:
            for key in sorted(OmegaConf.missing_keys(tree)):
                remedy = f"Set {key} in {file} or on the command line."
                complaints.append(Complaint(where=key, expected="a value", found="none", remedy=remedy))
                _leave_out(tree, key)
            return OmegaConf.to_object(tree)  # type: ignore[return-value]
        except OmegaConfBaseException as error:
            key = str(error.full_key)
            remedy = (
                f"{str(error).splitlines()[0].rstrip('.')}. ${{oc.env:NAME}} is a variable of the environment, "
                "${oc.env:NAME,x} one with a default, ${run.seed} another key."
            )
            found = dict(_leaves(OmegaConf.to_container(tree))).get(key, "one that leads nowhere")
            expected = known_keys().get(key, "a value")
            complaints.append(Complaint(where=key, expected=expected, found=str(found), remedy=remedy))
            _leave_out(tree, key.partition("[")[0])


def _leave_out(tree: DictConfig, key: str) -> None:
    """The default in place of a value that is none; an empty text where there is none."""
    try:
        OmegaConf.update(tree, key, "")
    except OmegaConfBaseException:
        OmegaConf.update(tree, key, OmegaConf.select(OmegaConf.structured(Config), key))


def to_yaml(config: Config) -> str:
    """The whole configuration, defaults included, interpolations as they are written."""
    return OmegaConf.to_yaml(OmegaConf.create(as_written(as_dict(config))))


def as_dict(section: Any) -> dict[str, Any]:
    """A section as plain values, for a manifest or another process."""
    return dataclasses.asdict(section)


def _assignments(file: Path, overrides: list[str], complaints: list[Complaint]) -> list[tuple[str, str, Any]]:
    """(origin, dotted key, value) of every leaf that the file and the words set."""
    found: list[tuple[str, str, Any]] = []
    content = _content(file)
    texts = _texts()
    if isinstance(content, DictConfig):
        typed = dict(_leaves(yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)))
        for key, value in _leaves(OmegaConf.to_container(content)):
            as_typed = key in texts and value is not None and not isinstance(value, dict)
            found.append((str(file), key, typed.get(key, value) if as_typed else value))
    else:
        complaints.append(
            Complaint(where=str(file), expected="a mapping", found="a list", remedy="Start with keys such as 'run:'.")
        )
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            complaints.append(
                Complaint(
                    where=word, expected="key=value", found="no '='", remedy="Write for instance learner.workers=2."
                )
            )
            continue
        try:
            word.encode()  # a locale that is not UTF-8 leaves pieces of characters
            value = _value(text, texts.get(key))
        except (yaml.YAMLError, OmegaConfBaseException, UnicodeEncodeError) as error:
            complaints.append(
                Complaint(
                    where=repr(word)[1:-1],
                    expected="a YAML value in UTF-8",
                    found=" ".join(str(error).split()),
                    remedy="Quote the value.",
                )
            )
            continue
        found.append(("command line", key, value))
    return found


def _value(text: str, kind: Any) -> Any:
    """What a word of the command line means for a key. kind: of a key that holds text, which stays as it was typed: 1e5
    and yes are names of directories."""
    if kind is None or text in ("null", "~", "", "???") or (kind is str and text[0] in "\"'"):
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload, index]
    return text if kind is str else yaml.load(text, yaml.BaseLoader)


def _texts() -> dict[str, Any]:
    """The keys that hold a text or a list of texts: str or list."""
    words = {"a text": str, "a text or null": str, "a list, each a text": list}
    return {
        key: str if told.startswith("one of") else words[told]
        for key, told in known_keys().items()
        if told in words or told.startswith("one of")
    }


def _content(file: Path) -> Any:
    """What the YAML file holds. Raises ConfigError when it cannot be read: then there is nothing else to say."""
    try:
        return OmegaConf.load(file)
    except FileNotFoundError as error:
        complaint = Complaint(
            where=str(file),
            expected="a YAML file",
            found="no such file",
            remedy="Name a file such as conf/demo.yaml.",
        )
        raise ConfigError([complaint]) from error
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        found = " ".join(str(error).split())
        raise ConfigError(
            [Complaint(where=str(file), expected="YAML", found=found, remedy="Mend the file.")]
        ) from error


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict) or (not tree and prefix):
        return [(prefix, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def _assign(tree: DictConfig, origin: str, key: str, value: Any, complaints: list[Complaint]) -> None:
    known = known_keys()
    where = f"{key} ({origin})"
    if key not in known:
        section = key in {name.rpartition(".")[0] for name in known} or any(
            name.startswith(key + ".") for name in known
        )
        near = difflib.get_close_matches(key, known, n=1)
        if section:
            complaint = Complaint(
                where=where,
                expected="a section",
                found=repr(value),
                remedy=f"Set a key below it, such as {next(name for name in known if name.startswith(key + '.'))}.",
            )
        else:
            remedy = f"Did you mean {near[0]}?" if near else "See masters_ray/config/schema.py for the keys."
            complaint = Complaint(where=where, expected="a known key", found="an unknown one", remedy=remedy)
        complaints.append(complaint)
        return
    try:
        OmegaConf.update(tree, key, value)
    except OmegaConfBaseException as error:
        found = repr(value)
        complaints.append(
            Complaint(where=where, expected=known[key], found=found, remedy=str(error).splitlines()[0] + ".")
        )


@functools.cache
def known_keys() -> dict[str, str]:
    """Every dotted key with its type in words, in the schema's order."""
    return dict(_describe(Config, ""))


def _describe(section: type, prefix: str) -> list[tuple[str, str]]:
    hints = typing.get_type_hints(section)
    rows: list[tuple[str, str]] = []
    for entry in dataclasses.fields(section):
        kind = hints[entry.name]
        key = f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(kind):
            rows += _describe(kind, key + ".")  # type: ignore[arg-type]
        else:
            rows.append((key, _type_in_words(kind)))
    return rows


def _type_in_words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if kind in names:
        return names[kind]
    if dataclasses.is_dataclass(kind):
        return "a mapping of " + ", ".join(entry.name for entry in dataclasses.fields(kind))
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return f"a list, each {_type_in_words(arguments[0])}"
    return " or ".join(_type_in_words(argument) for argument in arguments)
