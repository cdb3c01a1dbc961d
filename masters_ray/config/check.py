"""Looks up keys in the schema, and lists the complaints about a configuration, each with its key."""

import dataclasses
import difflib
import functools
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from masters_ray.config import rules
from masters_ray.config.fields import MISSING, KeyScope
from masters_ray.config.schema import Config
from masters_ray.errors import Complaint

_SCHEMA = TypeAdapter(Config)


class SchemaKey(NamedTuple):
    """A key's entry in the schema; the defaults are those of an unknown key."""

    kind: Any = None
    """The value's type; a dataclass for a section."""
    default: Any = MISSING
    scopes: frozenset[KeyScope] = frozenset()

    @property
    def fallback(self) -> Any:
        """Returns the value that replaces an invalid one: the default, or "" for a key without."""
        return "" if self.default == MISSING else self.default


@functools.cache
def known_keys() -> dict[str, SchemaKey]:
    """Returns every dotted key in the schema's order, with sections and elements of lists (``growth[].schedule``)."""
    return dict(_keys(Config, ""))


def _keys(section: Any, prefix: str) -> Iterator[tuple[str, SchemaKey]]:
    kinds, annotated = get_type_hints(section), get_type_hints(section, include_extras=True)
    for one in dataclasses.fields(section):
        key, kind = prefix + one.name, kinds[one.name]
        default = one.default_factory() if callable(one.default_factory) else one.default
        told = getattr(annotated[one.name], "__metadata__", ())
        own = frozenset(scope for scope in told if isinstance(scope, KeyScope))
        yield key, SchemaKey(kind, MISSING if default is dataclasses.MISSING else default, own)
        if get_origin(kind) is list:
            key, [kind] = f"{key}[]", get_args(kind)
            yield key, SchemaKey(kind)
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, f"{key}.")


def _in_schema(key: str) -> str:
    """Returns the key as ``known_keys`` has it: growth[1].schedule → growth[].schedule."""
    return re.sub(r"\[\d+\]", "[]", key)


def key_of(key: str) -> SchemaKey:
    return known_keys().get(_in_schema(key), SchemaKey())


def scopes(key: str) -> frozenset[KeyScope]:
    """Returns the scopes of a key and of the sections that contain it."""
    prefixes = itertools.accumulate(_in_schema(key).split("."), "{}.{}".format)
    return frozenset[KeyScope]().union(*(key_of(one).scopes for one in prefixes))


def violations(config: Config) -> list[Complaint]:
    """Returns all complaints about a configuration."""
    return checked(dataclasses.asdict(config), [])[1]


def checked(values: dict[str, Any], complaints: list[Complaint]) -> tuple[Config, list[Complaint]]:
    """Returns the configuration made of plain values, with a ``fallback`` for each invalid one, and all complaints.
    complaints: earlier ones, about keys that hold their ``fallback`` already; the list is extended."""
    try:
        config = _SCHEMA.validate_python(values)
    except ValidationError as error:
        for one in error.errors():
            complaints.append(_complaint(one))
            path = [str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), one["loc"])]
            section = functools.reduce(lambda found, name: found[name], path[:-1], values)
            section[path[-1]] = key_of(".".join(path)).fallback
        config = _SCHEMA.validate_python(values)
    known = {complaint.where for complaint in complaints}
    return config, [*complaints, *rules.broken(config, known)]


def _complaint(error: Any) -> Complaint:
    """error: a pydantic error's details, whose words are told."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    if error["type"] == "unexpected_keyword_argument":
        return unknown(key)
    if error["type"] == "missing":
        return wrong(key, None, "a value")
    return wrong(key, error["input"], re.sub("^(Input should be|Value error,) ", "", error["msg"]))


def unknown(key: str) -> Complaint:
    """Returns the complaint about a key that the schema does not have."""
    near = difflib.get_close_matches(_in_schema(key), [known for known in known_keys() if known[-1] != "]"], n=1)
    remedy = f"Did you mean {near[0]}?" if near else "See masters_ray/config/schema.py for the keys."
    return Complaint(key, "a known key", "an unknown one", remedy)


def wrong(key: str, found: object, expected: str, remedy: str = "") -> Complaint:
    """Returns the complaint about a value. remedy: default: the key's default, or to set the key."""
    known = key_of(key)
    if dataclasses.is_dataclass(known.kind):
        expected, remedy = "a mapping", "Set keys below it."
    elif not remedy and known.default == MISSING:
        remedy = f"Set {key} in the file or on the command line."
    return Complaint(key, expected, repr(found), remedy or f"The default is {json.dumps(known.default)}.")
