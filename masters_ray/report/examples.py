"""Questions as the report shows them: pictures, the group it learned from, the student's answers before and after."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence

from PIL import Image

from masters_ray.report.inputs import Example, ExampleAnswer
from masters_ray.report.markup import decimal, escape, nats, percent, table, text_or_details

_DATA_URI = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp|bmp);base64,([A-Za-z0-9+/=\s]+)")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ENLARGED = 160
"""A smaller picture is shown this large (longer side, pixels), its pixels kept sharp."""
_SHOWN = 320
"""A larger picture is shown at most this large."""
_LONGEST_ANSWER = 280
_LONGEST_VERDICT = 90


def examples(rows: Sequence[Example]) -> str:
    """The section of examples: groups that were learned from, then held-out questions."""
    if not rows:
        return "<p>This run kept no examples.</p>"
    learned = [example_card(example) for example in rows if example.answers]
    asked = [example_card(example) for example in rows if not example.answers]
    parts = []
    if learned:
        parts.append(
            "<h3>What the student learned from</h3><p>Training questions with their groups of answers. JSD, R_distill "
            "and advantage belong to one answer; a high advantage means “write more like this”. An advantage of 0 "
            "throughout means that the rewards did not differ, so the group only taught by imitation.</p>"
        )
        parts += learned
    if asked:
        parts.append(
            "<h3>What changed on held-out questions</h3><p>Held-out questions with the student’s answer "
            "before and after training. They are chosen to show what changed, so they say nothing about how often an "
            "answer is right: for that, see the accuracy above.</p>"
        )
        parts += asked
    return "".join(parts)


def example_card(example: Example) -> str:
    """One question as HTML: with its group if it has one, with the answers before and after if they are known."""
    pictures = "".join(picture(uri) for uri in example.pictures)
    told = [("label", escape(example.label))]
    for name, answer in (("student before", example.before), ("student after", example.after)):
        if answer is not None:
            told.append((name, f"{text_or_details(answer.text, _LONGEST_ANSWER)} {_mark(answer.correct)}"))
    where = [example.id, f"kind “{example.kind}”"]
    if example.stage is not None:
        where += [f"stage {example.stage}", f"mask ratio {percent(example.mask_ratio, 0)}"]
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in told)
    head = ("written by", "answer", "R_acc", "the judge wrote", "JSD (nats)", "R_distill", "advantage")
    answers = table(head, [_row(answer) for answer in example.answers], numbers=(2, 4, 5, 6))
    return (
        f'<article class="card"><div class="question"><div class="pictures">{pictures}</div><div>'
        f'<h4 class="written">{escape(example.question)}</h4><dl class="short">{shown}</dl>'
        f'<p class="muted small">{escape(" · ".join(where))}</p></div></div>'
        f"{answers if example.answers else ''}</article>"
    )


def picture(uri: str) -> str:
    """An ``<img>`` of a data URI, small pictures enlarged and large ones shrunk.

    Whatever is not a data URI of a readable picture becomes a note instead, so that nothing is ever fetched; words that
    stand in its place are shown.
    """
    if _ADDRESS.match(uri) is None:
        return f'<span class="muted small">({escape(uri)})</span>'
    match = _DATA_URI.fullmatch(uri)
    try:
        if match is None:
            raise ValueError("not a data URI of a picture")
        data = base64.b64decode(match[1])
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return '<span class="muted small">(a picture that cannot be shown)</span>'
    longer = max(width, height)
    scale = _ENLARGED / longer if longer < _ENLARGED else min(1.0, _SHOWN / longer)
    sharp = ' class="pixels"' if scale > 1 else ""
    size = f'width="{max(1, round(scale * width))}" height="{max(1, round(scale * height))}"'
    return f'<img{sharp} {size} alt="picture of the question" src="{escape(uri)}">'


def _row(answer: ExampleAnswer) -> list[str]:
    right = "unjudged" if math.isnan(answer.accuracy) else f"{answer.accuracy:g} {_mark(answer.accuracy > 0)}"
    source = "teacher" if answer.source == "teacher" else "student"
    direction = "up" if answer.advantage > 0 else "down" if answer.advantage < 0 else "muted"
    return [
        f'<span class="chip {source}">{escape(answer.source)}</span>',
        text_or_details(answer.text, _LONGEST_ANSWER),
        right,
        text_or_details(answer.verdict, _LONGEST_VERDICT),
        nats(answer.divergence),
        decimal(answer.distillation),
        f'<span class="{direction}">{decimal(answer.advantage, sign=True)}</span>',
    ]


def _mark(right: bool) -> str:
    return '<span class="up" title="right">✓</span>' if right else '<span class="down" title="wrong">✗</span>'
