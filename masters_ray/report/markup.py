"""Numbers as people write them, and small pieces of HTML. Every function that takes plain text escapes it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from masters_ray.evaluate import Accuracy, Rate

NOTHING = "–"
"""What stands for a value that was not measured."""


def escape(text: str) -> str:
    """Plain text as HTML text or attribute value."""
    return html.escape(text, quote=True)


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent. Example: 0.612 gives ``61.2 %``."""
    return NOTHING if not math.isfinite(fraction) else f"{100 * fraction:.{digits}f} %"


def small_percent(fraction: float) -> str:
    """A fraction near 0 in percent, with two significant digits. Example: 0.00031 gives ``0.031 %``."""
    if not math.isfinite(fraction):
        return NOTHING
    return "0 %" if fraction == 0 else f"{float(f'{100 * fraction:.2g}'):.15g} %"


def interval(rate: Rate | Accuracy, digits: int = 0) -> str:
    """A 95 % interval in percent, without the sign. Example: 0.571 … 0.652 gives ``57–65``."""
    if not (math.isfinite(rate.low) and math.isfinite(rate.high)):
        return NOTHING
    return f"{100 * rate.low:.{digits}f}–{100 * rate.high:.{digits}f}"


def whole(number: int) -> str:
    """Thousands set apart. Example: 12345 gives ``12,345``."""
    return f"{number:,}"


def decimal(number: float, digits: int = 2, sign: bool = False) -> str:
    """A plain number. Example: 0.7 with a sign gives ``+0.70``."""
    return NOTHING if not math.isfinite(number) else f"{number:{'+' if sign else ''}.{digits}f}"


def nats(number: float) -> str:
    """A divergence with three significant digits. Example: 0.01234 gives ``0.0123``."""
    if not math.isfinite(number):
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


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int], foot: Sequence[str] = ()
) -> str:
    """A table that scrolls sideways on a narrow screen.

    head is plain text; rows and foot are cells of HTML; numbers are the columns that are set flush right.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if place in numbers else "" for place in range(len(cells)))
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for cell, kind in zip(cells, kinds, strict=True))}</tr>"

    body = "".join(line(row, "td") for row in rows)
    bottom = f"<tfoot>{line(foot, 'td')}</tfoot>" if foot else ""
    heading = line([escape(name) for name in head], "th")
    return f'<div class="scroll"><table><thead>{heading}</thead><tbody>{body}</tbody>{bottom}</table></div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of plain names with values of HTML."""
    return f"<dl>{''.join(f'<div><dt>{escape(name)}</dt><dd>{value}</dd></div>' for name, value in pairs)}</dl>"


def bar(fraction: float, kind: str) -> str:
    """A horizontal bar, a fraction of its cell long; ``kind`` is a class of the style sheet."""
    share = min(1.0, max(0.0, fraction)) if math.isfinite(fraction) else 0.0
    return f'<span class="bar"><span class="{kind}" style="width:{100 * share:.2f}%"></span></span>'


def text_or_details(text: str, longest: int) -> str:
    """Plain text; what is longer than ``longest`` characters is folded, its beginning shown."""
    if not text.strip():
        return '<span class="muted">(empty)</span>'
    if len(text) <= longest and text.count("\n") < 6:
        return f'<span class="written">{escape(text)}</span>'
    beginning = " ".join(text.split())[:longest].rstrip()
    return (
        f"<details><summary>{escape(beginning)} … <em>show all</em></summary>"
        f'<span class="written">{escape(text)}</span></details>'
    )
