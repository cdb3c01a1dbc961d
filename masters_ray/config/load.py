"""Merges defaults, a YAML file and ``key=value`` overrides to a Config, and reports every violation at once."""

import dataclasses
import difflib
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from masters_ray.config import rules
from masters_ray.config.fields import MISSING, ONE_OR_MORE, KeyScope, Written, as_written
from masters_ray.config.schema import Config
from masters_ray.errors import Complaint, ConfigError

_SCHEMA = TypeAdapter(Config)
SHIPPED = Path(__file__).parents[1] / "shipped"
"""What travels in the wheel: the folder conf, the toy pair and its questions."""


class _Key(NamedTuple):
    """A key's entry in the schema; the defaults are those of an unknown key."""

    kind: Any = None
    """The value's type; a dataclass for a section."""
    default: Any = MISSING
    """Of ``one_or_more``: the only element, as plain values."""
    scopes: frozenset[KeyScope] = frozenset()
    one_or_more: bool = False
    """Whether the only element of this list may stand in its place."""


@functools.cache
def _known_keys() -> dict[str, _Key]:
    """Returns every dotted key in the schema's order, with sections and elements of lists (``growth[].schedule``)."""
    return dict(_keys(Config, ""))


def _keys(section: Any, prefix: str) -> Iterator[tuple[str, _Key]]:
    kinds, annotated = get_type_hints(section), get_type_hints(section, include_extras=True)
    for one in dataclasses.fields(section):
        key, kind = prefix + one.name, kinds[one.name]
        default = one.default_factory() if callable(one.default_factory) else one.default
        told = getattr(annotated[one.name], "__metadata__", ())
        if ONE_OR_MORE in told:
            [default] = TypeAdapter(Any).dump_python(default)
        own = frozenset(scope for scope in told if isinstance(scope, KeyScope))
        yield key, _Key(kind, MISSING if default is dataclasses.MISSING else default, own, ONE_OR_MORE in told)
        if get_origin(kind) is list:
            [kind] = get_args(kind)
            yield f"{key}[]", _Key(kind)
            if dataclasses.is_dataclass(kind):
                yield from _keys(kind, f"{key}[].")
            if ONE_OR_MORE not in told:
                continue
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, f"{key}.")


def in_schema(key: str) -> str:
    """Example: growth[1].schedule gives growth[].schedule, as in ``_known_keys``."""
    return re.sub(r"\[\d+\]", "[]", key)


def key_of(key: str) -> _Key:
    return _known_keys().get(in_schema(key), _Key())


def keys() -> list[str]:
    """Returns every key that takes a value, in the schema's order."""
    return [key for key, known in _known_keys().items() if "[" not in key and not dataclasses.is_dataclass(known.kind)]


def _fallback(key: str) -> Any:
    """Returns the value that replaces an invalid one: the default, with "" for each key without."""
    default = key_of(key).default
    if isinstance(default, dict):
        return {name: "" if value == MISSING else value for name, value in default.items()}
    return "" if default == MISSING else default


def scopes(key: str) -> frozenset[KeyScope]:
    """Returns the scopes of a key and of the sections that contain it."""
    prefixes = itertools.accumulate(in_schema(key).split("."), "{}.{}".format)
    return frozenset[KeyScope]().union(*(key_of(one).scopes for one in prefixes))


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
    """Merges the defaults, ``file`` and the overrides, ``key=value`` or further files; later ones win. Raises
    ConfigError with every violation: unknown keys, wrong types, missing keys and broken rules."""
    config, complaints = read(file, overrides)
    if complaints:
        raise ConfigError(complaints)
    return config


def read(file: str | Path, overrides: list[str] | None = None) -> tuple[Config, list[Complaint]]:
    """Like ``load``, but returns the violations with the configuration, in which each invalid key has its default or is
    empty. Raises ConfigError only when the file cannot be read."""
    complaints: list[Complaint] = []
    tree = OmegaConf.create(dataclasses.asdict(Config()))
    for key in (key for key, known in _known_keys().items() if known.one_or_more and "[" not in key):
        OmegaConf.update(tree, key, key_of(key).default, merge=False)
    for key, value in [*_of_file(Path(file), complaints), *_of_words(overrides or [], complaints)]:
        if in_schema(key) not in _known_keys():
            complaints.append(_unknown(key))
        elif dataclasses.is_dataclass(key_of(key).kind):
            complaints.append(_wrong(key, value, "a mapping"))
        else:
            try:
                OmegaConf.update(tree, key, value, merge=False)
            except (OmegaConfBaseException, LookupError, ValueError) as error:
                complaints.append(_leads_nowhere(key, value, error))
    return _checked(_followed(tree, OmegaConf.to_container(tree), "", complaints), complaints)


def violations(config: Config) -> list[Complaint]:
    """Returns all complaints about a configuration."""
    return _checked(dataclasses.asdict(config), [])[1]


def to_yaml(config: Config) -> str:
    """Returns the whole configuration as YAML, with defaults, and interpolations as they are written."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def plain(config: Config) -> dict[str, Any]:
    """Returns a configuration as nested plain values, as a file has them: interpolations unresolved, an only element in
    place of its list where it may stand so."""
    found: dict[str, Any] = shortened(as_written(dataclasses.asdict(config)), "")
    return found


def shortened(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: shortened(one, f"{key}.{name}".lstrip(".")) for name, one in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) == 1 and key_of(key).one_or_more:
        return shortened(value[0], key)
    return [shortened(one, f"{key}[{number}]") for number, one in enumerate(value)]


def located(file: str | Path) -> Path:
    """Returns the path of a file; that in the package of what is not here, such as conf/machines/8x80gb.yaml."""
    inside = SHIPPED / file
    return inside if not Path(file).exists() and inside.is_file() else Path(file)


def given(file: str, words: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, file or "command line" that sets it, and the interpolation if it is one); later ones win."""
    found = [(key, value, file) for key, value in _of_file(Path(file), [])]
    for word in words:
        where = "command line" if "=" in word else word
        found += [(key, value, where) for key, value in _of_words([word], [])]
    yield from ((key, f"{where}, {value}" if "${" in str(value) else where) for key, value, where in found)


def _of_file(file: Path, complaints: list[Complaint]) -> Iterator[tuple[str, Any]]:
    try:
        content = yaml.load(located(file).read_text(encoding="utf-8"), _Texts)
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
        if not equals and word.endswith((".yaml", ".yml")):
            yield from _of_file(Path(word), complaints)
            continue
        if not equals or not key:
            remedy = "Write for instance learner.workers=2, or name a YAML file."
            complaints.append(Complaint(word, "key=value", "no '='", remedy))
            continue
        kind = key_of(key).kind
        # A text key's value stays as typed unless it is quoted or null.
        typed = (kind in (str, str | None) or get_origin(kind) is Literal) and text not in ("", "null", "~")
        try:
            yield from leaves(text if typed and text[0] not in "\"'" else yaml.load(text, _Texts), key)
        except yaml.YAMLError as error:
            complaints.append(Complaint(word, "a YAML value", " ".join(str(error).split()), "Quote the value."))


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
        return {name: _followed(tree, one, f"{key}.{name}".lstrip("."), complaints) for name, one in value.items()}
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
        return _fallback(key)
    return None if found is None else Written(str(found), value)


def _checked(values: dict[str, Any], complaints: list[Complaint]) -> tuple[Config, list[Complaint]]:
    """Returns the configuration made of plain values, with a ``_fallback`` for each invalid one, and all complaints.
    complaints: earlier ones, about keys that hold their fallback already; the list is extended."""
    try:
        config = _SCHEMA.validate_python(values)
    except ValidationError as error:
        for one in error.errors():
            place = _as_written(one["loc"], values)
            complaints.append(_complaint(one | {"loc": place}))
            path = [str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), place)]
            section = functools.reduce(lambda found, name: found[name], path[:-1], values)
            section[path[-1]] = _fallback(".".join(path))
        config = _SCHEMA.validate_python(values)
    known = {complaint.where for complaint in complaints}
    return config, [*complaints, *rules.broken(config, known)]


def _as_written(place: Iterable[Any], value: Any) -> list[Any]:
    """Returns a place in validated values as the written ``value`` has it: without the index 0 where a list's only
    element stands in place of the list."""
    found = []
    for part in place:
        if isinstance(part, int) and not isinstance(value, list):
            continue
        found.append(part)
        try:
            value = value[part]
        except (LookupError, TypeError):
            value = None
    return found


def _complaint(error: Any) -> Complaint:
    """error: a pydantic error's details, whose words are told."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    if error["type"] == "unexpected_keyword_argument":
        return _unknown(key)
    if error["type"] == "missing":
        return _wrong(key, None, "a value")
    return _wrong(key, error["input"], re.sub("^(Input should be|Value error,) ", "", error["msg"]))


def _unknown(key: str) -> Complaint:
    near = difflib.get_close_matches(in_schema(key), _known_keys(), n=1)
    remedy = f"Did you mean {near[0]}?" if near else "See masters_ray/config/schema.py and data_schema.py for the keys."
    return Complaint(key, "a known key", "an unknown one", remedy)


def _wrong(key: str, found: object, expected: str, remedy: str = "") -> Complaint:
    """remedy: default: the key's default, or to set the key."""
    known = key_of(key)
    if dataclasses.is_dataclass(known.kind) or isinstance(known.default, dict):
        expected = "a mapping, or a list of them" if known.one_or_more else "a mapping"
        remedy = "Set keys below it."
    elif not remedy and known.default == MISSING:
        remedy = f"Set {key} in the file or on the command line."
    return Complaint(key, expected, repr(found), remedy or f"The default is {json.dumps(known.default)}.")


def _leads_nowhere(key: str, found: Any, error: Exception) -> Complaint:
    told = str(error).partition("\n")[0].rstrip(".")
    remedy = f"{told}. ${{oc.env:NAME,x}} is a variable with a default, ${{run.seed}} another key."
    if not isinstance(error, OmegaConfBaseException):
        return Complaint(
            key, "the number of an element of the list", repr(found), "Write for instance data.train[0].rows=5."
        )
    return _wrong(getattr(error, "full_key", None) or key, found, "an interpolation that leads to a value", remedy)
