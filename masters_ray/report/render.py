"""Renders templates by jinja2: values in *.html.jinja are escaped, and a value that a template misses is an error.
The filters format numbers. A number that was not measured (None, NaN) becomes a dash."""

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from masters_ray.config import as_written
from masters_ray.evaluate import Interval

NOTHING = "–"
_SPACES = re.compile(r"<pre.*?</pre>|(?<=\d) (?=%|(?:s|min|h|MB)\b)", re.DOTALL)


def render(package: str, template: str, **values: Any) -> str:
    """package: the package whose ``templates/`` has the template; the base page and the macros come from this one."""
    text = _environment(package).get_template(template).render(values)
    # A line of a page does not end between a number and its unit; what stands in <pre> is to be copied as it is.
    return _SPACES.sub(lambda found: found[0] if found[0] != " " else "\u00a0", text) if ".html." in template else text


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
    numbers = (percent, small_percent, interval, share, whole, decimal, nats, parameters, duration, ratio)
    environment.filters |= {one.__name__: one for one in (*numbers, cell, pick, as_written)}
    return environment


def pick(found: Mapping[str, Any], keys: Iterable[str]) -> list[Any]:
    return [found.get(key) for key in keys]


def _written(number: float | None, form: str) -> str:
    return NOTHING if number is None or not math.isfinite(number) else form.format(number)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Example: 0.612 gives ``61.2 %``."""
    return _written(fraction, f"{{:.{digits}%}}").replace("%", " %")


def small_percent(fraction: float) -> str:
    """Formats a fraction near 0 in percent with two significant digits. Example: 0.00031 gives ``0.031 %``."""
    return _written(float(f"{100 * fraction:.2g}"), "{:.15g} %")


def interval(found: Interval, to: str = "–") -> str:
    """Formats the bounds in percent, without the sign %. Example: 0.571 … 0.652 gives ``57.1–65.2``."""
    return NOTHING if math.isnan(found.low) else f"{100 * found.low:.1f}{to}{100 * found.high:.1f}"


def share(found: Interval | None) -> str:
    """Formats a fraction with its bounds, both in percent. Example: ``61.2 % (57.1–65.2)``."""
    return NOTHING if found is None else f"{percent(found.value)} ({interval(found)})"


def whole(number: float) -> str:
    """Example: 12345 gives ``12,345``."""
    return _written(number, "{:,.0f}")


def decimal(number: float | None, digits: int = 2, sign: bool = False) -> str:
    """Formats a number with ``digits`` decimals. Example: 0.7 with a sign gives ``+0.70``."""
    return _written(number, f"{{:{'+' if sign else ''}.{digits}f}}")


def nats(number: float | None) -> str:
    """Formats a divergence with three significant digits. Example: 0.01234 gives ``0.0123``."""
    return "0" if number == 0 else _written(number, "{:#.3g}")


def parameters(count: int) -> str:
    """Example: 3_754_622_976 gives ``3.75 B``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def duration(seconds: float) -> str:
    """Examples: 41.23 gives ``41.2 s``, 3725 gives ``1 h 02 min``."""
    if not 99.95 <= seconds < math.inf:
        return _written(seconds, "{:.1f} s")
    large, small, size = ("min", "s", 1) if seconds < 3599.5 else ("h", "min", 60)
    whole, rest = divmod(round(seconds / size), 60)
    return f"{whole} {large} {rest:02d} {small}"


def cell(text: object) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
