"""Layouts of data that people bring and masters_ray does not read: which it is, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from masters_ray.data.scalars import bare, cut

USED = ("id", "question", "answer", "image", "choices", "kind")
"""The columns that are read."""
_ROWS = "masters_ray reads one question a row, with the columns question, answer and image"
_CONVERT = f"{_ROWS}: convert it."
_UNPACK = "Unpack it first."
_HEAD = 1 << 16
_MAGIC = (
    (0, b"\x1f\x8b", "gzip", _UNPACK),
    (0, b"BZh", "bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "zstd", _UNPACK),
    (0, b"PK\x03\x04", "a zip archive or a spreadsheet", _UNPACK),
    (257, b"ustar", "a tar archive (webdataset)", f"Unpack it; {_ROWS}."),
    (0, b"SQLite format 3\x00", "an SQLite database", _CONVERT),
    (0, b"\x89HDF", "HDF5", _CONVERT),
    (0, b"ARROW1", "Arrow", "Write it as parquet: pyarrow.parquet.write_table(pyarrow.feather.read_table(…), …)."),
    (0, b"\xff\xff\xff\xff", "Arrow, as datasets.save_to_disk writes it", "Write it with Dataset.to_parquet(…)."),
    (0, b"version https://git-lfs", "a pointer of Git LFS in place of the file", "Fetch it with git lfs pull."),
    (0, b"<", "HTML or XML", "Was a page of a web site stored in place of the file? Download it again."),
    (0, b"\xff\xfe", "UTF-16 text", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8."),
    (0, b"\xfe\xff", "UTF-16 text", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8."),
)
_CONVERSATIONS = {
    "conversations": "LLaVA's layout (conversations)",
    "messages": "the layout of OpenAI and ms-swift (messages)",
    "texts": "the layout of The Cauldron (texts with user and assistant)",
    "qa": "several questions in one row (qa)",
}
_ALIKE = {
    "question": {"question", "query", "prompt", "problem", "instruction", "caption", "input", "text"},
    "answer": {
        "answer",
        "answers",
        "label",
        "multiple_choice_answer",
        "ground_truth",
        "solution",
        "response",
        "output",
    },
    "image": {"image", "images", "img", "picture", "pictures", "image_path", "decoded_image", "png", "jpg"},
}
_CHOICES = re.compile(r"(?i)(options?|candidates|multiple_choices|(option|choice)s?_?[a-f0-9]?)")


def elsewhere(path: str, format: str) -> str:
    """What lies at a path that is no ordinary file, and what to do: for a message."""
    place = Path(path)
    single = f"masters_ray reads one {format} file"
    if re.match(r"[A-Za-z0-9+.-]+:/", path):
        return f"an address. {single}: copy it to a path that every node sees."
    if place.is_dir():
        names = [one.name for one in place.iterdir()]
        if "state.json" in names or "dataset_dict.json" in names:
            return "a folder of datasets.save_to_disk. Write it with Dataset.to_parquet(…)."
        ends = Counter(Path(name).suffix for name in names)
        held = ", ".join(f"{count} {end or 'without an ending'}" for end, count in ends.most_common(3))
        return f"a folder ({held or 'empty'}). {single}: join the files of a split into one."
    if place.exists():
        return f"a device or a pipe. {single}: write its content to one."
    if re.search(r"[*?\[{]", path):
        return f"a pattern of names. {single}: join the files into one."
    if re.fullmatch(r"[\w-]+/[\w-]+", path):
        return (
            "none. Of a data set of the Hub, write a file with "
            f"datasets.load_dataset({path!r}, split=…).to_parquet(…), and set data.*.path to it."
        )
    return "none. Set data.*.path to an existing file; a relative path starts at the current directory."


def other(file: Path, format: str) -> str | None:
    """What a file holds that is not of its format, and what to do; None when it may be. Looks at its first bytes."""
    with file.open("rb") as content:
        head = content.read(_HEAD)
    for start, magic, name, remedy in _MAGIC:
        if head[start : start + len(magic)] == magic:
            return f"{name}. {remedy}"
    if not head.strip():
        return f"no row ({len(head)} bytes). Was it written to its end?"
    if head.startswith(b"PAR1") != (format == "parquet"):
        is_one = "parquet" if head.startswith(b"PAR1") else "jsonl"
        if is_one == "parquet" or head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return f"{is_one}. Set data.*.format={is_one}."
        return None
    return None if format == "parquet" else _other_text(head)


def _other_text(head: bytes) -> str | None:
    text = bare(head.decode("utf-8", "replace"))
    first = text.partition("\n")[0].rstrip()
    layout = next((f"; its rows have {_CONVERSATIONS[key]}" for key in _CONVERSATIONS if f'"{key}"' in text), "")
    if head[1:200:2].count(0) > 50 or head[:200:2].count(0) > 50:
        return "UTF-16 text. Write it in UTF-8: iconv -f UTF-16 -t UTF-8."
    if re.match(r"\[\s*\{", text):
        return f"a JSON array{layout}. Write an object a line: jq -c '.[]' FILE > FILE.jsonl. {_ROWS}."
    if first == "{":
        return f"JSON over several lines{layout}. Write an object a line: jq -c . FILE > FILE.jsonl. {_ROWS}."
    if b"\0" in head and first[:1] != "{":
        return f"no text. {_CONVERT}"
    for name, mark in (("tsv", "\t"), ("csv", ","), ("csv", ";")):
        columns = [column.strip(' "') for column in first.split(mark)]
        if len(columns) > 1 and "\n{" not in text and all(re.fullmatch(r"[\w .-]{1,40}", column) for column in columns):
            return f"{name} with the columns {_listed(columns)}. {_CONVERT}"
    return None


def wrong_columns(row: Mapping[str, Any]) -> str | None:
    """Why a row's columns cannot be used; None when they can. A row with columns that look like its choices, under
    another name, is not taken for a free question."""
    given = [str(key) for key, value in row.items() if value is not None]
    missing = [key for key in _ALIKE if key not in given]
    layout = next((name for key, name in _CONVERSATIONS.items() if key in given), None)
    if missing and layout:
        return f"holds {layout}; {_ROWS}: convert it"
    found = [] if row.get("choices") else _renamed(_like_choices(row, given), "choices")
    if not missing:
        return "; ".join(found) or None
    for key in missing:
        found += _renamed([one for one in given if _looks_like(one, key)], key)
    null = [key for key in missing if key in row]
    told = f"no {', '.join(missing)}" + (f" ({', '.join(null)} is null)" if null else "")
    return f"{told}; {'; '.join(found) or f'the columns are {_listed(map(str, row))}'}; {_ROWS}"


def _renamed(names: list[str], key: str) -> list[str]:
    """The sentence about columns that may be meant as ``key``, if there are any."""
    if not names:
        return []
    several = "rename one: a single text is read"
    remedy = {"image": "put them into one list", "choices": "put them into one list"}.get(key, several)
    return [f"{_listed(names)} may be meant as {key}: {remedy if len(names) > 1 else 'rename it'}"]


def _like_choices(row: Mapping[str, Any], given: list[str]) -> list[str]:
    named = [key for key in given if _CHOICES.fullmatch(key) and row[key] not in ([], {}, "", "[]")]
    lettered = [key for key in ascii_uppercase if row.get(key) is not None]
    return named + (lettered if lettered[:2] == ["A", "B"] else [])


def _looks_like(name: str, key: str) -> bool:
    plain = re.sub(r"_?\d+$", "", name.lower())
    return plain in _ALIKE[key]


def _listed(names: Iterable[str]) -> str:
    return cut(", ".join(names))
