"""Recognises file formats and row layouts that masters_ray does not read, and says how to convert them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from masters_ray.config import DataSource
from masters_ray.data.texts import bare, cut, shown
from masters_ray.errors import DataError

USED = ("id", "question", "answer", "image", "choices", "kind")
"""Columns that masters_ray reads."""
_ROWS = "masters_ray reads one question a row, with the columns question, answer and image"
_CONVERT = f"{_ROWS}: rename or convert what there is"
_A_LINE = f"Write an object a line: jq -c '(arrays | .[]), objects' FILE > FILE.jsonl. {_ROWS}."
_HEAD = 1 << 16
_MAGIC = {
    rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|PK\x03\x04": ("a compressed file", f"Unpack it; {_ROWS}."),
    rb".{257}ustar": ("a tar archive (webdataset)", f"Unpack it; {_ROWS}."),
    rb"ARROW1|\xff{4}": ("Arrow", "Write it as parquet, what datasets.save_to_disk wrote with Dataset.to_parquet(…)."),
    rb"\xff\xfe|\xfe\xff|([^\0]\0){50}|(\0[^\0]){50}": ("UTF-16 text", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8."),
    rb"(\xef\xbb\xbf)?\s*\[\s*\{": ("a JSON array", _A_LINE),
    rb"(\xef\xbb\xbf)?\s*\{\s*\n": ("JSON over several lines", _A_LINE),
}
"""First bytes of a file (pattern) → (what it is, remedy)."""
_LAYOUTS = {
    "conversations": "LLaVA's layout (conversations)",
    "messages": "the layout of OpenAI and ms-swift (messages)",
    "texts": "the layout of The Cauldron (texts with user and assistant)",
    "qa": "several questions in one row (qa)",
}
_CHOICES = re.compile(r"(?i)(options?|candidates|multiple_choices|(option|choice)s?_?[a-f0-9]?|[ab])")
"""Names of columns that seem to hold choices."""


@contextmanager
def reading(source: DataSource) -> Iterator[None]:
    """Raises DataError, naming the source's file, when the block cannot read it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = cut(" ".join(str(error).split()), 300)
        told = f"cannot be read: is it damaged, or cut short? ({reason}). Copy or write it again."
        raise DataError(f"{source.path}: {told}") from error


def in_place_of(source: DataSource) -> str | None:
    """Returns "what is at the source's path. Remedy." when that is not a file of its format, judged by its first bytes;
    None when it may be one. Raises DataError when the file cannot be opened."""
    file = Path(source.path or "")
    with reading(source):
        if not file.exists():
            return (
                "none. Set data.*.path to one existing file: addresses and patterns of names are not read, and of a "
                "data set of the Hub, datasets.load_dataset(…, split=…).to_parquet(…) writes a file."
            )
        if not file.is_file():
            return "a folder, or no ordinary file. Join the files of a split into one, for instance with to_parquet(…)."
        with file.open("rb") as content:
            head = content.read(_HEAD)
    start = bare(head.decode("utf-8", "replace"))
    if not start:
        return f"no row ({len(head)} bytes). Was it written to its end?"
    for first, (found, remedy) in _MAGIC.items():
        if re.match(first, head, re.DOTALL):
            return f"{found}. {remedy}"
    found = "parquet" if head.startswith(b"PAR1") else "jsonl" if re.search(r"^\s*[{\[]", start, re.MULTILINE) else ""
    if found == source.format or (source.format == "parquet" and not found):  # pyarrow says what is wrong with it
        return None
    if found:
        return f"{found}. Set data.*.format={found}."
    return f"lines such as {shown(start.splitlines()[0])}. {_CONVERT}."


def wrong_columns(row: Mapping[str, Any]) -> str | None:
    """Returns why a row's columns cannot be used; None when they can. Also refuses a row whose choices seem to be in
    columns of another name, which would make it a free question."""
    given = [str(key) for key, value in row.items() if value is not None]
    missing = [key for key in ("question", "answer", "image") if key not in given]
    if missing:
        layout = next((name for key, name in _LAYOUTS.items() if key in given), None)
        held = f"holds {layout}" if layout else f"no {', '.join(missing)}, only {cut(', '.join(given)) or 'nothing'}"
        return f"{held}; {_CONVERT}"
    like = [key for key in given if _CHOICES.fullmatch(key) and row[key] not in ([], {}, "", "[]")]
    if like and not row.get("choices"):
        return f"{cut(', '.join(like))} may be meant as choices: rename it, or write them as one list"
    return None
