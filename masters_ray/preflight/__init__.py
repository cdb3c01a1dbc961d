"""Proves a pair of models on the user's own questions: engine against learner, a batch against single answers, masks
set twice, the export. The learner's part (learner_side) runs before engines start, as they may take its devices:

    questions ─► learner_side.probe ─► Probe ─► engine_side ─► Finding
"""

from collections.abc import Sequence
from pathlib import Path

from masters_ray.preflight.findings import ABOUT as ABOUT
from masters_ray.preflight.findings import Finding as Finding
from masters_ray.preflight.findings import refuse_failed as refuse_failed
from masters_ray.preflight.learner_side import Probe as Probe
from masters_ray.preflight.learner_side import probe as probe
from masters_ray.records import Picture, Problem

_LOOKED_AT, _MOST = 200, 6


def chosen(problems: Sequence[Problem]) -> list[Problem]:
    """Returns up to six of the first 200 questions that differ most: the shortest and the longest text, the smallest
    and the largest picture, the fewest and the most pictures."""
    problems = problems[:_LOOKED_AT]
    places = range(len(problems))
    measures = [
        [len(problems[place].question) for place in places],
        [sum(map(_size, problems[place].pictures)) for place in places],
        [len(problems[place].pictures) for place in places],
    ]
    extremes = [end(places, key=measure.__getitem__) for measure in measures for end in (min, max)]
    further = (place for place in places if place not in extremes)
    found = list(dict.fromkeys([*extremes, *further]))[:_MOST]
    return [problems[place] for place in sorted(found)]


def _size(picture: Picture) -> int:
    """Returns a picture's encoded bytes, 0 for one that is not there: reading it says so."""
    if picture.data is not None:
        return len(picture.data)
    file = Path(str(picture.path))
    return file.stat().st_size if file.is_file() else 0
