"""Looks up keys in the schema, and lists the complaints about a configuration, each with its key."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from masters_ray.config import rules
from masters_ray.config.fields import MISSING, KeyScope
from masters_ray.config.schema import Config
from masters_ray.errors import Complaint

_SCHEMA = TypeAdapter(Config)
_WORDS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "finite_number": "a finite number",
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
}
"""Type of a pydantic error → what was expected."""
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|[-+.]*(nan|inf)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SchemaKey:
    """A key's entry in the schema."""

    kind: Any = None
    """The key's type; None for an unknown key."""
    default: Any = MISSING
    scopes: frozenset[KeyScope] = frozenset()

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.kind)

    @property
    def is_text(self) -> bool:
        """Whether the value is a text, a text or null, or one of a few texts."""
        return self.kind in (str, str | None) or get_origin(self.kind) is Literal

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
        default = MISSING if default is dataclasses.MISSING else default
        own = frozenset(scope for scope in told if isinstance(scope, KeyScope))
        yield key, SchemaKey(kind=kind, default=default, scopes=own)
        if get_origin(kind) is list:
            key, kind = f"{key}[]", get_args(kind)[0]
            yield key, SchemaKey(kind=kind)
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
    """Returns all complaints about a configuration; touches no file."""
    return checked(dataclasses.asdict(config), [])[1]


def checked(values: dict[str, Any], complaints: list[Complaint]) -> tuple[Config, list[Complaint]]:
    """Returns the configuration made of plain values, with a ``fallback`` for each invalid one, and all complaints.
    complaints: earlier ones, about keys that hold their ``fallback`` already; the list is extended."""
    try:
        config = _SCHEMA.validate_python(values)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            complaints.append(_complaint(one))
            path = [str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), one["loc"])]
            section = functools.reduce(lambda found, name: found[name], path[:-1], values)
            section[path[-1]] = key_of(".".join(path)).fallback
        config = _SCHEMA.validate_python(values)
    known = {complaint.where for complaint in complaints}
    return config, [*complaints, *rules.broken(config, known)]


def _complaint(error: Any) -> Complaint:
    """error: a pydantic error's details."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    match error["type"]:
        case "unexpected_keyword_argument":
            return unknown(key)
        case "missing":
            return wrong(key, None, "a value")
        case "refused":
            return wrong(key, error["input"], **error["ctx"])
    if error["type"] in _WORDS:
        return wrong(key, error["input"], _WORDS[error["type"]].format(**error.get("ctx", {})))
    return wrong(key, error["input"], error["msg"].removeprefix("Input should be "))


def unknown(key: str) -> Complaint:
    """Returns the complaint about a key that the schema does not have."""
    near = difflib.get_close_matches(_in_schema(key), [known for known in known_keys() if known[-1] != "]"], n=1)
    remedy = f"Did you mean {near[0]}?" if near else "See masters_ray/config/schema.py for the keys."
    return Complaint(key, "a known key", "an unknown one", remedy)


def wrong(key: str, found: object, expected: str, remedy: str = "") -> Complaint:
    """Returns the complaint about a value. remedy: default: the key's default, or to set the key."""
    known = key_of(key)
    if known.is_section:
        expected, remedy = "a mapping", "Set keys below it."
    elif not remedy:
        needed = f"Set {key} in the file or on the command line."
        remedy = needed if known.default == MISSING else f"The default is {json.dumps(known.default)}."
    told = found if isinstance(found, str) and _NUMBER.fullmatch(found) else repr(found)
    return Complaint(key, expected, told, remedy)
