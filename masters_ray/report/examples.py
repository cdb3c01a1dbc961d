"""Questions as the report shows them: pictures, the student's answers before and after, and the group it learned from."""

from __future__ import annotations

import base64
import io
import math
import re

from PIL import Image

from masters_ray.report.inputs import Example, ExampleAnswer
from masters_ray.report.markup import decimal, escape, nats, percent, table, text_or_details

_DATA_URI = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp|bmp);base64,([A-Za-z0-9+/=\s]+)")
_ENLARGED = 160
"""A smaller picture is shown this large (longer side, pixels), its pixels kept sharp."""
_SHOWN = 320
"""A larger picture is shown at most this large."""
_EMBEDDED = 960
"""A picture larger than this is made smaller before it goes into the report."""
_LONGEST_ANSWER = 280
_LONGEST_VERDICT = 90


def example_card(example: Example) -> str:
    """One question of the training data with its group, as HTML."""
    pictures = "".join(picture(uri) for uri in example.pictures)
    before_after = (
        f"<div><dt>student before</dt><dd>{_answer_or_nothing(example.before)}</dd></div>"
        f"<div><dt>student after</dt><dd>{_answer_or_nothing(example.after)}</dd></div>"
    )
    head = ("written by", "answer", "R_acc", "the judge wrote", "JSD (nats)", "R_distill", "advantage")
    answers = table(head, [_row(answer) for answer in example.answers], numbers=(2, 4, 5, 6))
    where = (
        f"{example.id} · kind “{example.kind}” · stage {example.stage} · mask ratio {percent(example.mask_ratio, 0)}"
    )
    return (
        f'<article class="card"><div class="question"><div class="pictures">{pictures}</div><div>'
        f'<h3 class="written">{escape(example.question)}</h3><dl class="short">'
        f'<div><dt>label</dt><dd class="written">{escape(example.label)}</dd></div>{before_after}</dl>'
        f'<p class="muted small">{escape(where)}</p></div></div>{answers if example.answers else ""}</article>'
    )


def picture(uri: str) -> str:
    """An ``<img>`` of a data URI, small pictures enlarged and large ones shrunk.

    Whatever is not a data URI of a readable picture becomes a note instead, so that nothing is ever fetched.
    """
    match = _DATA_URI.fullmatch(uri)
    try:
        if match is None:
            raise ValueError("not a data URI of a picture")
        data = base64.b64decode(match[1])
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if max(width, height) > _EMBEDDED:
                image.thumbnail((_EMBEDDED, _EMBEDDED))
                smaller = io.BytesIO()
                image.convert("RGB").save(smaller, "JPEG", quality=85)
                uri = f"data:image/jpeg;base64,{base64.b64encode(smaller.getvalue()).decode()}"
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return '<span class="muted small">(a picture that cannot be shown)</span>'
    longer = max(width, height)
    scale = _ENLARGED / longer if longer < _ENLARGED else min(1.0, _SHOWN / longer)
    sharp = ' class="pixels"' if scale > 1 else ""
    size = f'width="{max(1, round(scale * width))}" height="{max(1, round(scale * height))}"'
    return f'<img{sharp} {size} alt="picture of the question" src="{escape(uri)}">'


def _row(answer: ExampleAnswer) -> list[str]:
    right = "unjudged" if math.isnan(answer.accuracy) else f"{answer.accuracy:g} {'✓' if answer.accuracy > 0 else '✗'}"
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


def _answer_or_nothing(text: str | None) -> str:
    return '<span class="muted">not asked</span>' if text is None else text_or_details(text, _LONGEST_ANSWER)
