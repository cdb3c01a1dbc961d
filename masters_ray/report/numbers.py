"""Numbers as people write them: the filters of the templates."""

from __future__ import annotations

import math

from masters_ray.evaluate import Interval

NOTHING = "–"
"""What stands for a value that was not measured."""


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent. Example: 0.612 gives ``61.2 %``."""
    return NOTHING if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f} %"


def small_percent(fraction: float) -> str:
    """A fraction near 0 in percent, with two significant digits. Example: 0.00031 gives ``0.031 %``."""
    if not math.isfinite(fraction):
        return NOTHING
    return "0 %" if fraction == 0 else f"{float(f'{100 * fraction:.2g}'):.15g} %"


def interval(found: Interval, digits: int = 0) -> str:
    """The bounds in percent, without the sign. Example: 0.571 … 0.652 gives ``57–65``."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return NOTHING
    return f"{100 * found.low:.{digits}f}–{100 * found.high:.{digits}f}"


def whole(number: float) -> str:
    """Thousands set apart. Example: 12345 gives ``12,345``."""
    return f"{number:,.0f}" if math.isfinite(number) else NOTHING


def decimal(number: float | None, digits: int = 2, sign: bool = False) -> str:
    """A plain number. Example: 0.7 with a sign gives ``+0.70``."""
    return NOTHING if number is None or not math.isfinite(number) else f"{number:{'+' if sign else ''}.{digits}f}"


def share(found: Interval | None) -> str:
    """A share with its bounds, both in percent. Example: ``61.2 % (57.1–65.2)``."""
    return NOTHING if found is None else f"{percent(found.value)} ({interval(found, 1)})"


def nats(number: float | None) -> str:
    """A divergence with three significant digits. Example: 0.01234 gives ``0.0123``."""
    if number is None or not math.isfinite(number):
        return NOTHING
    return "0" if number == 0 else f"{number:#.3g}"


def parameters(count: int) -> str:
    """A model's size. Example: 3_754_622_976 gives ``3.75 B``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def duration(seconds: float) -> str:
    """A stretch of time. Examples: 41.23 gives ``41.2 s``, 3725 gives ``1 h 02 min``."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN where ``whole`` is 0."""
    return part / whole if whole else math.nan
