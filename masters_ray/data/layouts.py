"""Recognises file formats and row layouts that masters_ray does not read, and says how to convert them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from masters_ray.data.texts import bare, cut, shown

USED = ("id", "question", "answer", "image", "choices", "kind")
"""Columns that masters_ray reads."""
_ROWS = "masters_ray reads one question a row, with the columns question, answer and image"
_CONVERT = f"{_ROWS}: convert it."
_UNPACK = f"Unpack it; {_ROWS}."
_A_LINE = f"Write an object a line: jq -c '(arrays | .[]), objects' FILE > FILE.jsonl. {_ROWS}."
_HEAD = 1 << 16
_MAGIC = {
    rb"\x1f\x8b": ("gzip", _UNPACK),
    rb"BZh": ("bzip2", _UNPACK),
    rb"\xfd7zXZ\0": ("xz", _UNPACK),
    rb"\x28\xb5\x2f\xfd": ("zstd", _UNPACK),
    rb"PK\x03\x04": ("a zip archive or a spreadsheet", _UNPACK),
    rb".{257}ustar": ("a tar archive (webdataset)", _UNPACK),
    rb"SQLite format 3\0": ("an SQLite database", _CONVERT),
    rb"\x89HDF": ("HDF5", _CONVERT),
    rb"ARROW1": ("Arrow", "Write it as parquet: pyarrow.parquet.write_table(pyarrow.feather.read_table(…), …)."),
    rb"\xff{4}": ("Arrow, as datasets.save_to_disk writes it", "Write it with Dataset.to_parquet(…)."),
    rb"version https://git-lfs": ("a pointer of Git LFS (git lfs pull fetches the file)", "Fetch the file."),
    rb"\xff\xfe|\xfe\xff|([^\0]\0){50}|(\0[^\0]){50}": ("UTF-16 text", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8."),
    rb"%PDF": ("a PDF", _CONVERT),
    rb"%!PS": ("PostScript", _CONVERT),
    rb".{4}ftyp(hei[cx]|hevc|mif1|msf1)": ("HEIC", _CONVERT),
    rb"(\xef\xbb\xbf)?\s*\[\s*\{": ("a JSON array", _A_LINE),
    rb"(\xef\xbb\xbf)?\s*\{\s*\n": ("JSON over several lines", _A_LINE),
    rb"\s*<svg": ("an SVG", _CONVERT),
    rb"\s*<": ("HTML or XML", "Was a page of a web site stored in place of the file? Download it again."),
}
"""First bytes of a file (pattern) → (what it is, remedy if it should be rows)."""
_NO_FILE = {
    r"[A-Za-z0-9+.-]+:/": "an address. Copy the file to a path that every node sees.",
    r".*[*?\[{]": "a pattern of names. Join the files into one.",
    r"[\w-]+/[\w-]+$": "none. Of a data set of the Hub, datasets.load_dataset(…, split=…).to_parquet(…) writes a file.",
    "": "none. Set data.*.path to an existing file; a relative path starts at the current directory.",
}
"""Beginning of a path without a file (pattern) → what it is, a full stop, and the remedy."""
_LAYOUTS = {
    "conversations": "LLaVA's layout (conversations)",
    "messages": "the layout of OpenAI and ms-swift (messages)",
    "texts": "the layout of The Cauldron (texts with user and assistant)",
    "qa": "several questions in one row (qa)",
}
_ALIKE = {
    "question": "question|query|prompt|problem|instruction|caption|input|text",
    "answer": "answers?|label|multiple_choice_answer|ground_truth|solution|response|output",
    "image": "images?|img|pictures?|image_path|decoded_image|png|jpg",
}
"""Column that is read → pattern of other names for it, which a number may follow."""
_CHOICES = re.compile(r"(?i)(options?|candidates|multiple_choices|(option|choice)s?_?[a-f0-9]?)")


def magic(head: bytes) -> tuple[str, str] | None:
    """Returns (what the content is, remedy if it should be rows), judged by its first bytes; None: unknown."""
    return next((told for first, told in _MAGIC.items() if re.match(first, head, re.DOTALL)), None)


def in_place_of(path: str, format: str) -> str | None:
    """Returns "what is at the path. Remedy." when it is not a file of ``format`` ("jsonl", "parquet"), judged by its
    first bytes; None when it may be one. Raises OSError or ValueError."""
    file = Path(path)
    if file.is_dir():
        ends = Counter(one.suffix for one in file.iterdir()).most_common(3)
        held = ", ".join(f"{count} {end or 'without an ending'}" for end, count in ends)
        return f"a folder ({held}). Join the files of a split into one; of save_to_disk, with Dataset.to_parquet(…)."
    if not file.exists():
        return next(told for first, told in _NO_FILE.items() if re.match(first, path))
    if not file.is_file():
        return "a device or a pipe. Write its content to a file."
    with file.open("rb") as content:
        head = content.read(_HEAD)
    if known := magic(head):
        layout = next((f"; its rows have {told}" for key, told in _LAYOUTS.items() if f'"{key}"'.encode() in head), "")
        return f"{known[0]}{layout if 'JSON' in known[0] else ''}. {known[1]}"
    if not head.strip():
        return f"no row ({len(head)} bytes). Was it written to its end?"
    start = bare(head.decode("utf-8", "replace"))
    found = "parquet" if head.startswith(b"PAR1") else "jsonl" if re.search(r"^\{", start, re.MULTILINE) else None
    if found not in (format, None):
        return f"{found}. Set data.*.format={found}."
    line = start.splitlines()[0]
    is_binary_or_table = "\0" in start or re.fullmatch(r'[\w ."-]+([,;\t][\w ."-]+)+', line)
    return (
        f"lines such as {shown(line)}. {_CONVERT}" if format == "jsonl" and not found and is_binary_or_table else None
    )


def wrong_columns(row: Mapping[str, Any]) -> str | None:
    """Returns why a row's columns cannot be used; None when they can. Also refuses a row whose choices seem to be in
    columns of another name, which would make it a free question."""
    given = [str(key) for key, value in row.items() if value is not None]
    missing = [key for key in _ALIKE if key not in given]
    layout = next((name for key, name in _LAYOUTS.items() if key in given), None)
    if missing and layout:
        return f"holds {layout}; {_ROWS}: convert it"
    meant = {} if row.get("choices") else {"choices": _like_choices(row, given)}
    meant |= {key: [one for one in given if re.fullmatch(rf"(?i:{_ALIKE[key]})(_?\d+)?", one)] for key in missing}
    found = "; ".join(
        f"{cut(', '.join(names))} may be meant as {key}: rename it" for key, names in meant.items() if names
    )
    found += " (several pictures or choices go into one list)" if found else ""
    if not missing:
        return found or None
    null = [key for key in missing if key in row]
    told = f"no {', '.join(missing)}" + (f" ({', '.join(null)} is null)" if null else "")
    return f"{told}; {found or 'the columns are ' + cut(', '.join(map(str, row)))}; {_ROWS}"


def _like_choices(row: Mapping[str, Any], given: list[str]) -> list[str]:
    named = [key for key in given if _CHOICES.fullmatch(key) and row[key] not in ([], {}, "", "[]")]
    lettered = [key for key in ascii_uppercase if row.get(key) is not None]
    return named + (lettered if lettered[:2] == ["A", "B"] else [])
