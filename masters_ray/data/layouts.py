"""Reads a row of any layout: fields by their keys, dialogues turn by turn, pictures at their markers; names the layout
that a row seems to have where its fields are described wrongly."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from masters_ray.config import DataSource, RowFields
from masters_ray.data.texts import BadRowError, as_text, cut, shown
from masters_ray.records import IMAGE

_MISSING = object()
_DEFAULTS = RowFields()
_DIALOGUES = {
    "conversations": "LLaVA's layout",
    "messages": "the layout of OpenAI and ms-swift",
    "texts": "the layout of The Cauldron",
    "qa": "several questions a row",
    "dialog": "a dialogue",
    "conversation": "a dialogue",
}
_OTHER_KEYS = {
    "question": "query caption problem prompt input inputs instruction text Question",
    "answer": "answers label labels multiple_choice_answer solution output outputs response target Answer",
    "image": "images decoded_image image_1 image_path img img_path picture photo png jpg jpeg webp file_name filename "
    "image_file image_url Picture Image",
}
"""Field → keys under which known layouts hold it."""
_CHOICES = re.compile(
    r"(?i)((answer_|multiple_)?(options|choices)(_list)?|candidates|(option|choice)s?[_ ]?[a-f0-9]?|op[a-f]|a)"
)
"""Names of columns that seem to hold choices; column A is mostly followed by B, C …"""
_SPEAKERS = dict.fromkeys(("human", "user"), "user") | dict.fromkeys(("gpt", "assistant", "model"), "model")
_SPEAKERS["system"] = "system"
_WHO, _WHAT = ("from", "role"), ("value", "content")  # keys of a turn's speaker and text
_LISTED = " or ".join(_SPEAKERS)
_MARKER = re.compile(r"<image(?:[ _]?(\d+))?>")
_NAMED_INSIDE = re.compile(r"(?i)<(img|video|audio)\b[^>]*>")
"""Tags of pictures and other media whose address stands in the text."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question as its row has it: values in any form."""

    question: str
    answer: Any
    images: Sequence[Any]
    choices: Any = None
    id: Any = None
    kind: Any = None


class RowLayout:
    """Reads the rows of a source."""

    def __init__(self, source: DataSource) -> None:
        self._fields = source.fields
        names = [key for name in vars(_DEFAULTS) if name != "turns" for key in getattr(self._fields, name)]
        names = [key.removesuffix("?") for key in (*names, self._fields.turns or "")]
        self.keys = {part for key in names for part in (key, key.partition(".")[0])}  # columns that are read

    def drafts(self, row: Mapping[str, Any]) -> list[Draft]:
        """Returns the questions of a row: one, or one for each turn of a dialogue. Raises BadRowError."""
        turns = self._fields.turns
        asked, images = ("image",) if turns else ("question", "answer", "image"), self._images(row)
        found = {name: self._value(row, name) for name in ("question", "answer", "choices", "id", "kind")}
        missing = [name for name in asked if found.get(name, images) is _MISSING]
        others: dict[str, Any] = {name: _or_none(found[name]) for name in ("choices", "id", "kind")}
        if turns is not None:
            if (dialogue := lookup(row, turns)) is _MISSING:
                raise BadRowError(_nearest(row, [turns]))
            if missing and (there := _other_keys(row, "image")):
                raise BadRowError(f"no image; the row has {_given(row)}: set fields.image={there}, or []")
            pairs = list(_pairs(dialogue))
            drafts = list(_told(pairs, [] if images is _MISSING else images))
            if not drafts:
                raise BadRowError("turns: no question with an answer")
            return [replace(draft, **others) for draft in drafts]
        if missing:
            raise BadRowError(_nearest(row, missing))
        if empty := [name for name in ("question", "answer") if found[name] in (None, "", [])]:
            raise BadRowError(f"empty {' and '.join(empty)}")
        if found["choices"] is _MISSING and (like := self._like_choices(row)):
            named = cut(", ".join(like))
            raise BadRowError(f"{named} may be meant as choices: set fields.choices={_list(like)}, or []")
        return [Draft(question=self._question(found["question"]), answer=found["answer"], images=images, **others)]

    def _question(self, value: Any) -> str:
        if len(self._fields.question) == 1 and isinstance(value, list) and len(value) > 1:
            raise BadRowError(f"question: expected one text, found {len(value)}: write a row for each question")
        return "\n".join(as_text(one, "question") for one in (value if isinstance(value, list) else [value]))

    def _like_choices(self, row: Mapping[str, Any]) -> list[str]:
        """Returns columns, or keys beside a question in one, that seem to hold choices."""
        inside = self._fields.question[0].rpartition(".")[0]
        beside = lookup(row, inside) if inside else {}
        found = _like_choices(beside) if isinstance(beside, Mapping) else []
        return _like_choices(row) or [f"{inside}.{key}" for key in found]

    def count(self, row: Any) -> int:
        """Returns the number of ``drafts`` of a row, from its turns alone; 1 for a row that cannot be read."""
        with suppress(BadRowError):
            return max(1, sum(1 for _ in _pairs(lookup(row, str(self._fields.turns)))))
        return 1

    def kind(self, row: Mapping[str, Any]) -> Any:
        """Returns the value of the kind, None where there is none. Raises BadRowError."""
        return _or_none(self._value(row, "kind"))

    def _images(self, row: Mapping[str, Any]) -> Any:
        if not self._fields.image:
            return []
        found = self._value(row, "image")
        if found is _MISSING:
            return found
        several = found if isinstance(found, list | tuple) else [found]
        return [one for one in several if one is not None and not _is_empty(one)]

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        """Returns a field's value, ``_MISSING`` where its default key is not in the row. Raises BadRowError when a key
        that the source names is not."""
        keys = getattr(self._fields, name)
        values = {key: lookup(row, key.removesuffix("?")) for key in keys}
        if keys == getattr(_DEFAULTS, name):
            return values[name]
        for key, value in values.items():
            if key.endswith("?"):
                values[key] = _or_none(value)
            elif value is _MISSING:
                raise BadRowError(f"no {key} (fields.{name}); the row has {_given(row)}")
        if len(keys) == 1:
            return values[keys[0]]
        if name == "choices":  # a choice that is missing does not move the others' letters
            return dict(zip(ascii_uppercase, values.values(), strict=False))
        return [value for value in values.values() if value not in (None, "")]


def _is_empty(image: Any) -> bool:
    return (image.get("bytes") if isinstance(image, dict) else image) in ("", b"")


def _or_none(value: Any) -> Any:
    return None if value is _MISSING else value


def lookup(row: Any, key: str) -> Any:
    """Returns the value at a dotted path, through a list that of every element; ``_MISSING`` where there is none."""
    if isinstance(row, list | tuple):
        found = [lookup(one, key) for one in row]
        return _MISSING if any(one is _MISSING for one in found) else found
    if not isinstance(row, Mapping):
        return _MISSING
    if key in row:
        return row[key]
    first, _, rest = key.partition(".")
    return lookup(row[first], rest) if rest and first in row else _MISSING


def placed(texts: Sequence[str], pictures: Sequence[Any]) -> tuple[list[str], list[Any]]:
    """Returns question and choices with every picture's marker as IMAGE with its number, and the pictures in the
    markers' order; no markers where all pictures come first. Takes <image> and <image 1>. Raises BadRowError when the
    markers are not as many as the pictures."""
    marks = [found for text in texts for found in _MARKER.finditer(text)]
    if inside := _NAMED_INSIDE.search(texts[0]):
        raise BadRowError(f"{inside[0]} in the text: expected pictures in fields.image, at <image> where they stand")
    if not marks:
        return list(texts), list(pictures)
    numbers = [int(found[1]) if found[1] else place for place, found in enumerate(marks, 1)]
    order = list(dict.fromkeys(numbers))
    if not any(found[1] for found in marks) and len(marks) != len(pictures):
        raise BadRowError(f"{len(marks)} × <image> in the text, but {len(pictures)} pictures: expected as many")
    if max(order) > len(pictures) or min(order) < 1:
        raise BadRowError(f"the text has a place for picture {max(order)}, but the row has {len(pictures)} pictures")
    first = [number for number in range(1, len(pictures) + 1) if number not in order]
    places = {number: place for place, number in enumerate([*first, *order], 1)}
    unseen, coming = set(order), iter(numbers)

    def mark(_: re.Match[str]) -> str:
        number = next(coming)
        new = number in unseen
        unseen.discard(number)
        return IMAGE.format(places[number]) if new else f"image {places[number]}"

    marked = [_MARKER.sub(mark, text) for text in texts]
    marked[0] = "".join(IMAGE.format(places[number]) for number in first) + marked[0]
    rest = re.sub(r"^(\s*<image \d+>)+\s*", "", marked[0])
    if not any(_MARKER.search(text) for text in (rest, *marked[1:])):
        marked[0] = rest
    return marked, [pictures[number - 1] for number in places]


def _told(pairs: Sequence[tuple[str, list[Any], Any]], images: Sequence[Any]) -> Iterator[Draft]:
    """Yields the question of each pair with the pictures that are shown until then. images: those beside the turns.
    Raises BadRowError when markers and pictures are not as many."""
    beside = [one for _, own, _ in pairs for one in own]
    shown_all = [*images, *beside]
    marks = [len(_MARKER.findall(text)) for text, _, _ in pairs]
    if sum(marks) not in (0, len(shown_all)):
        raise BadRowError(f"{sum(marks)} × <image> in the turns, but {len(shown_all)} pictures: expected as many")
    before = 0
    for (text, _, answer), own in zip(pairs, marks, strict=True):
        until = shown_all[: before + own] if sum(marks) else shown_all
        earlier = "<image>" * before if own else ""
        yield Draft(question=earlier + text, answer=answer, images=until)
        before += own


def _pairs(dialogue: Any) -> Iterator[tuple[str, list[Any], Any]]:
    """Yields (question, pictures among its parts, answer) of every pair of turns. Raises BadRowError."""
    if isinstance(dialogue, str):
        with suppress(ValueError):
            dialogue = json.loads(dialogue)
    if not isinstance(dialogue, list | tuple) or not dialogue or not all(isinstance(one, dict) for one in dialogue):
        raise BadRowError(f"turns: expected a list of turns, found {shown(dialogue)}")
    asked: list[Any] = []
    for number, turn in enumerate(dialogue, 1):
        for question, answer in (("user", "assistant"), ("question", "answer")):
            if question in turn and answer in turn:
                yield (*_parts(turn[question], number), turn[answer])
                break
        else:
            speaker, said = (next((turn[key] for key in keys if key in turn), None) for keys in (_WHO, _WHAT))
            role = _SPEAKERS.get(str(speaker).lower())
            if role is None:
                raise BadRowError(f"turn {number}: expected from or role to be {_LISTED}, found {shown(speaker)}")
            if role == "model":
                if not asked:
                    raise BadRowError(f"turn {number}: an answer without a question before it")
                texts, pictures = zip(*asked, strict=True)
                yield "\n\n".join(texts), [one for own in pictures for one in own], _parts(said, number)[0]
                asked = []
            else:
                asked.append(_parts(said, number))
    if asked and len(dialogue) == 1:
        raise BadRowError("turns: a question without an answer")


def _parts(said: Any, number: int) -> tuple[str, list[Any]]:
    """Returns a turn's text, with a marker for each picture among its parts, and these."""
    if isinstance(said, str):
        return said, []
    if not isinstance(said, list | tuple):
        raise BadRowError(f"turn {number}: expected a text or a list of parts, found {shown(said)}")
    texts, pictures = [], []
    for part in said:
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if kind in ("text", "input_text"):
            texts.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url", "input_image"):
            content = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key)), None)
            if content is not None:
                pictures.append(content.get("url", content) if isinstance(content, dict) else content)
            texts.append("<image>")
        else:
            raise BadRowError(f"turn {number}: expected parts of type text or image, found {shown(part)}")
    return "".join(texts), pictures


def _like_choices(row: Mapping[str, Any]) -> list[str]:
    empty: tuple[Any, ...] = (None, [], {}, "", "[]")
    found = [key for key, value in row.items() if _CHOICES.fullmatch(str(key)) and value not in empty]
    return [key for key in row if len(key) == 1 and key.isalpha()] if any(len(key) == 1 for key in found) else found


def _list(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"[{', '.join(keys)}]"


def _given(row: Mapping[str, Any]) -> str:
    return cut(", ".join(str(key) for key, value in row.items() if value is not None)) or "nothing"


def _other_keys(row: Mapping[str, Any], name: str) -> str:
    """Returns the keys under which a known layout holds a field, as a configuration has them; "" for none."""
    dicts = {key: value for key, value in row.items() if isinstance(value, dict) and not key.isdecimal()}
    inner = {f"{key}.{one}": value for key, of in dicts.items() for one, value in of.items()} if len(dicts) < 4 else {}
    everything = {**row, **inner}
    names = [name, *_OTHER_KEYS[name].split()]
    near = next((key for key in everything if key.rpartition(".")[2] in names and everything[key] is not None), "")
    if near == "image_1":
        return _list([key for key in row if re.fullmatch(r"image_\d+", key)])
    entries = everything.get(near)
    if name == "answer" and isinstance(entries, list) and entries and isinstance(entries[0], dict):
        return f"{near}.answer"
    return near


def _nearest(row: Mapping[str, Any], missing: Sequence[str]) -> str:
    """Returns what is missing, and how to describe the known layout that comes nearest."""
    told = f"no {', '.join(missing)}; the row has {_given(row)}"
    images = ", fields.image=images" if row.get("images") is not None else ""
    for key, layout in _DIALOGUES.items():
        if isinstance(row.get(key), list) or str(row.get(key)).startswith("[{"):
            return f"{told}: looks like {layout}: set fields.turns={key}{images}"
    if "image" not in missing or len(missing) > 1:
        for key, value in row.items():
            if isinstance(value, list) and len(value) > 1 and isinstance(value[0], dict):
                return f"{told}: if the rows are in {key}: jq -c '.{key}[]' FILE > FILE.jsonl"
    found = {name: _other_keys(row, name) for name in missing if name in _OTHER_KEYS}
    named = [f"fields.{name}={key}" for name, key in found.items() if key]
    if "image" in missing and not found["image"]:
        named.append("fields.image to the picture's key, to [] if no row has pictures, to image? if some have none")
    return f"{told}: set {', '.join(named)}" if named else f"{told}: name the keys in fields (docs/DATA.md)"
