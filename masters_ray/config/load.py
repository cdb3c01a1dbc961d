"""Merges defaults, a YAML file and ``key=value`` overrides to a Config, and reports every violation at once."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from masters_ray.config.check import checked, key_of, known_keys, unknown, wrong
from masters_ray.config.fields import Written, as_written
from masters_ray.config.schema import Config
from masters_ray.errors import Complaint, ConfigError


class _Texts(yaml.SafeLoader):
    """Reads every scalar but null as a text, since only the schema knows whether 1e5 or yes is a text."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1 and name != "<<"}:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load(file: str | Path, overrides: list[str] | None = None) -> Config:
    """Merges the defaults, ``file`` and the ``key=value`` overrides; later ones win.

    Raises ConfigError with every violation: unknown keys, wrong types, missing keys and broken rules.
    """
    config, complaints = read(file, overrides)
    if complaints:
        raise ConfigError(complaints)
    return config


def read(file: str | Path, overrides: list[str] | None = None) -> tuple[Config, list[Complaint]]:
    """Like ``load``, but returns the violations with the configuration, in which each invalid key has its default or is
    empty. Raises ConfigError only when the file cannot be read."""
    complaints: list[Complaint] = []
    tree: DictConfig = OmegaConf.create(yaml.load(to_yaml(Config()), _Texts))  # type: ignore[assignment]
    for key, value in [*_of_file(Path(file), complaints), *_of_words(overrides or [], complaints)]:
        if key not in known_keys() or "[" in key:
            complaints.append(unknown(key))
        elif dataclasses.is_dataclass(key_of(key).kind):
            complaints.append(wrong(key, value, "a mapping"))
        else:
            try:
                OmegaConf.update(tree, key, value, merge=False)
            except OmegaConfBaseException as error:
                complaints.append(_leads_nowhere(key, value, error))
    return checked(_followed(tree, OmegaConf.to_container(tree), "", complaints), complaints)


def to_yaml(config: Config) -> str:
    """Returns the whole configuration as YAML, with defaults, and interpolations as they are written."""
    return OmegaConf.to_yaml(OmegaConf.create(as_written(dataclasses.asdict(config))))


def _of_file(file: Path, complaints: list[Complaint]) -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf. Raises ConfigError when the file cannot be read."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Texts)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        said = str(error.strerror) if isinstance(error, OSError) else " ".join(str(error).split())
        remedy = "Mend the file, or name one such as conf/demo.yaml."
        raise ConfigError([Complaint(str(file), "a YAML file", said, remedy)]) from error
    if isinstance(content, dict | None):
        yield from leaves(content or {})
    else:
        complaints.append(Complaint(str(file), "a mapping", repr(content), "Start with keys such as 'run:'."))


def _of_words(words: list[str], complaints: list[Complaint]) -> Iterator[tuple[str, Any]]:
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            complaints.append(Complaint(word, "key=value", "no '='", "Write for instance learner.workers=2."))
            continue
        try:
            yield from leaves(_value(key, text), key)
        except yaml.YAMLError as error:
            complaints.append(Complaint(word, "a YAML value", " ".join(str(error).split()), "Quote the value."))


def _value(key: str, text: str) -> Any:
    """Parses an override's value as YAML; keeps the value of a text key as typed unless it is quoted or null."""
    kind = key_of(key).kind
    typed = kind in (str, str | None) or get_origin(kind) is Literal
    return text if typed and text not in ("", "null", "~") and text[0] not in "\"'" else yaml.load(text, _Texts)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf of nested mappings; an empty mapping below the top is a leaf."""
    if isinstance(tree, dict) and (tree or not prefix):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _followed(tree: DictConfig, value: Any, key: str, complaints: list[Complaint]) -> Any:
    """Returns the values at a key of ``tree`` with interpolations resolved. value: the unresolved ones."""
    if isinstance(value, dict):
        below = f"{key}." if key else ""
        return {name: _followed(tree, one, f"{below}{name}", complaints) for name, one in value.items()}
    if isinstance(value, list):
        return [_followed(tree, one, f"{key}[{number}]", complaints) for number, one in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    try:
        found = OmegaConf.select(tree, key)
        if OmegaConf.is_config(found):
            return OmegaConf.to_container(found, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        complaints.append(_leads_nowhere(key, value, error))
        return key_of(key).fallback
    return None if found is None else Written(str(found), value)


def _leads_nowhere(key: str, found: Any, error: Exception) -> Complaint:
    told = str(error).partition("\n")[0].rstrip(".")
    remedy = f"{told}. ${{oc.env:NAME,x}} is a variable of the environment with a default, ${{run.seed}} another key."
    return wrong(getattr(error, "full_key", None) or key, found, "an interpolation that leads to a value", remedy)
