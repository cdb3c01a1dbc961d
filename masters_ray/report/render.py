"""Renders templates by jinja2: values in *.html.jinja are escaped, and a value that a template misses is an error."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from masters_ray.config import as_written
from masters_ray.report.numbers import FILTERS


def render(package: str, template: str, **values: Any) -> str:
    """package: the package whose ``templates/`` has the template; the base page and the macros come from this one."""
    return _environment(package).get_template(template).render(values)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, __package__))]),
        autoescape=lambda name: name is None or ".html." in name,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {one.__name__: one for one in (*FILTERS, as_written, pick)}
    return environment


def pick(found: Mapping[str, Any], keys: Iterable[str]) -> list[Any]:
    """Returns the values of these keys; None for a missing key."""
    return [found.get(key) for key in keys]
