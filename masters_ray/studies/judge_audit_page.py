"""judge_audit.html: how far the judges agree, for a reader who has seen neither code nor run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters_ray.config import Config, as_written
from masters_ray.files import write_text
from masters_ray.report.markup import NOTHING, decimal, escape, facts, percent, table, text_or_details, whole
from masters_ray.report.page import document

if TYPE_CHECKING:
    from masters_ray.studies.judge_audit import Judged, Pair

_SHOWN = 60
_LONGEST = 160
_WORDS = {1: "right", 0: "wrong", None: "unreadable"}


def write(
    file: Path, config: Config, judged: Sequence[Judged], compared: Sequence[Pair], differing: Sequence[dict[str, Any]]
) -> Path:
    """Write the page; an existing one is replaced in one step."""
    parts = (
        ("judges", "Can the judges be trusted?", _judges(judged)),
        ("agreement", "Do they agree?", _agreement(compared)),
        ("disagreements", "Where they do not", _disagreements(differing)),
        ("audit", "The audit", _facts(config)),
    )
    write_text(file, document("Audit of the judges", Path(config.run.dir).parent.name, parts))
    return file


def _judges(judged: Sequence[Judged]) -> str:
    head = ("judge", "answers", "unreadable", "consistent", "seconds per answer", "teacher right", "student right")
    rows = [
        [
            escape(one.name),
            whole(one.answers),
            percent(one.unjudged / one.answers),
            NOTHING if one.consistency is None else percent(one.consistency),
            NOTHING if one.seconds_per_answer is None else decimal(one.seconds_per_answer, 4),
            *(percent(one.right[source]) if source in one.right else "–" for source in ("teacher", "student")),
        ]
        for one in judged
    ]
    return (
        "<p>Teacher and student have answered the same questions. Three judges said of every answer whether it is "
        "right: the <b>student</b> and the <b>teacher</b> as language models, which read question, label and answer "
        "but see no picture, and a <b>rule</b>, which compares words. <b>Consistent</b> is the share of answers on "
        "which a model says the same when it is asked again in another order; <b>unreadable</b> verdicts leave an "
        "answer out of training. A rule needs neither a second question nor time worth measuring. The last columns are "
        "the shares that each judge calls right.</p>"
        f"{table(head, rows, numbers=range(1, 7))}"
    )


def _agreement(compared: Sequence[Pair]) -> str:
    head = ("judges", "answers of", "both right", "first only", "second only", "both wrong", "same", "κ", "95 %")
    rows = []
    for pair in compared:
        found = pair.agreement
        counts = (found.both_right, found.right_wrong, found.wrong_right, found.both_wrong)
        kappa = found.kappa
        rows.append(
            [
                f"{escape(pair.first)}, {escape(pair.second)}",
                escape(pair.of),
                *(whole(count) for count in counts),
                percent(found.share),
                decimal(kappa.value, 3),
                "–" if math.isnan(kappa.low) else f"{decimal(kappa.low, 3)} to {decimal(kappa.high, 3)}",
            ]
        )
    return (
        "<p>Cohen’s <b>κ</b> is agreement beyond chance: 0 where two judges agree no more often than their rates alone "
        "would have it, 1 where they always do. Its interval resamples whole questions.</p>"
        f"{table(head, rows, numbers=range(2, 9))}"
    )


def _disagreements(differing: Sequence[Mapping[str, Any]]) -> str:
    if not differing:
        return "<p>All judges said the same of every answer.</p>"
    head = ("question", "label", "answer", "by", "student says", "teacher says", "rule says")
    rows = [
        [
            text_or_details(row["question"], _LONGEST),
            escape(row["label"]),
            text_or_details(row["answer"], _LONGEST),
            escape(row["source"]),
            *(_word(row, name) for name in ("student", "teacher", "rule")),
        ]
        for row in differing[:_SHOWN]
    ]
    more = f" The first {_SHOWN} are shown; all are in disagreements.jsonl." if len(differing) > _SHOWN else ""
    told = f"{whole(len(differing))} different answers have verdicts that differ.{more}"
    return f"<p>{told}</p>{table(head, rows, numbers=())}"


def _word(row: Mapping[str, Any], name: str) -> str:
    word = _WORDS[row["verdicts"][name]]
    said = row["said"].get(name)
    return f"<b>{word}</b>" + ("" if said is None else f"<br>{text_or_details(said, _LONGEST)}")


def _facts(config: Config) -> str:
    return facts(
        [
            ("teacher", f"<code>{escape(as_written(config.teacher.checkpoint))}</code>"),
            ("student", f"<code>{escape(as_written(config.student.checkpoint))}</code>"),
            ("questions", str(config.data.train.rows)),
            ("answers per question", f"{config.rollout.teacher_answers} + {config.rollout.student_answers}"),
            ("mask ratio of the teacher that answered", percent(config.schedule.stages[0].ratio)),
            ("rule", escape(config.judge.rule)),
            ("seed", str(config.run.seed)),
        ]
    )
