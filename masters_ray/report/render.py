"""Templates → text by jinja2: values in *.html.jinja are escaped; one that a template lacks is an error."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from masters_ray.config import as_written
from masters_ray.report import numbers

_DATA_URI = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp|bmp);base64,([A-Za-z0-9+/=\s]+)")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ENLARGED = 160
"""A smaller picture is shown this large (longer side, pixels), its pixels kept sharp."""
_SHOWN = 320
"""A larger picture is shown at most this large."""


def render(package: str, template: str, **values: Any) -> str:
    """package: where ``templates/`` with the template lies; the base page and the macros are this package's."""
    return _environment(package).get_template(template).render(values)


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """How a picture stands in a page."""

    width: int = 0
    """Pixels of the page; 0: it is not shown."""
    height: int = 0
    enlarged: bool = False
    why: str = ""
    """Why it is not shown."""


def shown(uri: str) -> ShownPicture:
    """The size at which a data URI is shown: small pictures enlarged, large ones shrunk. Anything but a data URI of a
    readable picture is not shown, so that nothing is ever fetched; words that stand in its place are the reason."""
    if _ADDRESS.match(uri) is None:
        return ShownPicture(why=uri)
    match = _DATA_URI.fullmatch(uri)
    try:
        if match is None:
            raise ValueError("not a data URI of a picture")
        with Image.open(io.BytesIO(base64.b64decode(match[1]))) as image:
            longer = max(image.size)
            scale = _ENLARGED / longer if longer < _ENLARGED else min(1.0, _SHOWN / longer)
            width, height = (max(1, round(scale * side)) for side in image.size)
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return ShownPicture(why="a picture that cannot be shown")
    return ShownPicture(width=width, height=height, enlarged=scale > 1)


def pick(found: Mapping[str, Any], keys: Iterable[str]) -> list[Any]:
    """The values of these keys; None where there is none."""
    return [found.get(key) for key in keys]


@cache
def _environment(package: str) -> Environment:
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, __package__))]
    environment = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=lambda template: template is None or ".html." in template,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        *(numbers.percent, numbers.small_percent, numbers.interval, numbers.whole, numbers.decimal, numbers.nats),
        *(numbers.parameters, numbers.duration, numbers.ratio, numbers.share, shown, pick),
        as_written,
    )
    environment.filters |= {one.__name__: one for one in filters}
    return environment
