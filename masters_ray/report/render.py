"""Templates → text by jinja2: values in *.html.jinja are escaped; one that a template lacks is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from masters_ray.config import as_written
from masters_ray.report.numbers import FILTERS


def render(package: str, template: str, **values: Any) -> str:
    """package: where ``templates/`` with the template lies; the base page and the macros are this package's."""
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
    """The values of these keys; None where there is none."""
    return [found.get(key) for key in keys]
