"""Explains a configuration as YAML: each key below its sentence of the schema, and behind it where its value comes
from. Lists the stages that it plans."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import yaml

from masters_ray.config import data_schema, schema
from masters_ray.config.fields import Written, as_written
from masters_ray.config.load import given, in_schema, key_of, leaves, plain, shortened
from masters_ray.config.schema import Config
from masters_ray.errors import DataError
from masters_ray.method import schedule

_WIDTH = 116


@functools.cache
def _sentences() -> dict[tuple[str, str], str]:
    """Returns what the schema's source says of (class, field), in the text below the field, and of (class, "")."""
    found = {}
    for module in (schema, data_schema):
        for section in ast.parse(inspect.getsource(module)).body:
            if not isinstance(section, ast.ClassDef):
                continue
            found[section.name, ""] = ast.get_docstring(section) or ""
            for one, below in itertools.pairwise(section.body):
                if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[section.name, ast.unparse(one.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return found


def sentence(key: str) -> str:
    """Returns what the schema says of a key; "" if its name says it all."""
    parent, _, name = in_schema(key).rpartition(".")
    places = [(one.__name__, name) for one in inspect.getmro(_class(key_of(parent).kind) if parent else Config)]
    places.append((getattr(_class(key_of(key).kind), "__name__", ""), ""))
    return " ".join(next((said for one in places if (said := _sentences().get(one))), "").replace("``", "`").split())


def _class(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is list else kind


def explained(config: Config, file: str, overrides: list[str], *, changed: bool = False) -> str:
    """Returns the configuration that these make, as YAML that loads again: interpolations as they are written, elements
    of lists without what is as the schema has it. changed: only keys whose value is not the default."""
    origins, defaults = dict(given(file, overrides)), dict(leaves(plain(Config())))
    lines: list[str] = []
    above: list[str] = []
    for key, value in leaves(shortened(dataclasses.asdict(config), "")):
        written = as_written(value)
        default = defaults.get(key, key_of(key).default)
        written = schema.MISSING if (written, default) == ("", schema.MISSING) else written
        if changed and written == default:
            continue
        *sections, name = key.split(".")
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(sections, above, strict=False))))
        for depth in range(same, len(sections)):
            lines += [*_comment(".".join(sections[: depth + 1]), depth), f"{'  ' * depth}{sections[depth]}:"]
        above, depth = sections, len(sections)
        where = next((of for one, of in origins.items() if _inside(key, one) or _inside(one, key)), "default")
        told = f"{where} (default: {_flow(default)})" if written != default and default != schema.MISSING else where
        told = f"= {value}, {told.replace(f', {written}', '')}" if isinstance(value, Written) else told
        lines += _comment(key, depth)
        if isinstance(written, list) and any(isinstance(one, dict) for one in written):
            text = yaml.safe_dump(_brief(written, key), sort_keys=False, allow_unicode=True, width=_WIDTH)
            lines += [f"{'  ' * depth}{name}:  # {told}", textwrap.indent(text.rstrip(), "  " * (depth + 1))]
        else:
            lines.append(f"{'  ' * depth}{name}: {_flow(written)}  # {told}")
    return "\n".join(lines) + "\n"


def _inside(key: str, section: str) -> bool:
    return f"{key}.".startswith((f"{section}.", f"{section}["))


def _comment(key: str, depth: int) -> list[str]:
    begin = f"{'  ' * depth}# "
    return textwrap.wrap(sentence(key), _WIDTH, initial_indent=begin, subsequent_indent=begin)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _brief(value: Any, key: str) -> Any:
    """Returns the elements of a list, below ``key``, without what is as the schema has it."""
    if isinstance(value, list):
        return [_brief(one, f"{key}[]") for one in value]
    if not isinstance(value, dict):
        return value
    below = {name: (one, f"{key}.{name}") for name, one in value.items()}
    kept = {name: _brief(one, at) for name, (one, at) in below.items() if one != key_of(at).default}
    return {name: one for name, one in kept.items() if one != {}}


def planned(config: Config) -> Iterator[str]:
    """Yields a table of the stages as comments. Counts questions where no Hub and no bucket has to be read for it."""
    sources, most, rows = config.data.train, config.data.train_rows, None
    why = "the Hub or a bucket would have to be read: set data.train_rows"
    try:
        from masters_ray import data

        if all(one.rows or not (one.split or "://" in one.path) for one in sources):
            rows = data.count(sources, most)
    except (DataError, ImportError, OSError) as error:
        why = " ".join(str(error).split())
    size, fraction = config.learner.groups_per_step, config.rollout.online_fraction
    counted = f"{rows} questions, {size} a step" if rows is not None else f"questions not counted ({why})"
    yield f"# The plan: {counted}"
    stages = schedule.plan(config.schedules, 100 if rows is None else rows)
    steps = schedule.iterations(stages, size, fraction)
    yield f"# stage  teacher{' ' * 24}  mask ratio  questions" + "  steps  online steps" * (rows is not None)
    names = [one.checkpoint[-31:] for key, one in config.models.items() if key != "student"]
    for stage, positions in stages:
        own = [one for one in steps if one.stage == stage.index]
        told = f"# {stage.index:>5}  {names[stage.teacher]:<31}  {stage.ratio:>10g}"
        if rows is None:
            yield f"{told}  {len(positions):>7} %"
        else:
            yield f"{told}  {len(positions):>9}  {len(own):>5}  {sum(one.online for one in own):>12}"
