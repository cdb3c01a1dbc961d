"""Finds the tables of a source: told by their suffix or folder, files in the order of their names."""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs

from masters_ray.config import DataSource
from masters_ray.data.hub import HubTable
from masters_ray.data.tables import Archive, JsonLines, JsonValues, Parquet, Separated, Table, reading
from masters_ray.data.texts import bare, shown
from masters_ray.errors import DataError

_PACKED = (".gz", ".zst", ".bz2")
_KINDS: dict[str, Callable[..., Table]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".parquet": Parquet,
    ".csv": partial(Separated, delimiter=","),
    ".tsv": partial(Separated, delimiter="\t"),
    ".tar": Archive,
}
_ARROW = ".arrow"  # suffix of files that ``datasets`` reads
_READ = ", ".join([*_KINDS, _ARROW])
_MAGIC = {
    rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd": ("a compressed file", "Name it so, as in rows.jsonl.gz."),
    rb"PK\x03\x04": ("a zip archive", "Unpack it, and name a file in it."),
    rb".{257}ustar": ("a tar archive", "Name it .tar if it is in webdataset's layout; otherwise unpack it."),
    rb"PAR1": ("parquet", "Name it .parquet."),
    rb"\xff\xfe|\xfe\xff|([^\0]\0){50}|(\0[^\0]){50}": ("UTF-16 text", "Write it in UTF-8: iconv -f UTF-16 -t UTF-8."),
}
"""First bytes of what is no text (pattern) → (what it is, remedy)."""
_SPLIT = re.compile(
    r"(?:^|[-_./])((?:mini)?(?:train(?:ing|val)?|test(?:dev|_?std)?|val(?:id(?:ation)?)?|dev|eval))(?=$|[-_./\d])"
)
_SAME = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
_DESCRIBING = ("dataset_info.json", "dataset_infos.json", "meta.json", "stats.json")  # files beside rows that hold none
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")


def tables(source: DataSource) -> list[Table]:
    """Returns the source's tables. Raises DataError that says what is at its path instead, and what to do."""
    with reading(source.path):
        return _remote(source) if "://" in source.path else _local(source)


def _local(source: DataSource) -> list[Table]:
    path, place = source.path, Path(source.path)
    if place.is_dir() and (place / "state.json").exists():
        return [HubTable(path, _folder(source), "load_from_disk", path)]
    if place.is_dir() and (place / "dataset_dict.json").exists():
        if not source.split:
            raise DataError(f"{path}: expected a split of what datasets saved there: set split, for instance train")
        return [HubTable(f"{path} {source.split}", _folder(source), "load_from_disk", str(place / source.split))]
    if source.split and (source.subset or not place.exists()):
        return [_by_card(source)]
    files = _files(place, source)
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: expected a file, found a folder or no ordinary file")
    return [_table(str(file), _folder(source) or file.parent, fs.LocalFileSystem(), str(file)) for file in files]


def _folder(source: DataSource) -> Path | None:
    return Path(source.images) if source.images else None


def _files(place: Path, source: DataSource) -> list[Path]:
    """Returns the files of a path, a pattern or a folder, which hold rows of one kind and one split."""
    path = str(place)
    if os.path.lexists(place) and not place.is_dir():
        return [place]
    if not place.is_dir():
        names = glob.glob(path, recursive=True) if glob.has_magic(path) else []  # noqa: PTH207 - also absolute ones
        files = sorted(map(Path, names))
        if not files:
            found = "no file has such a name" if glob.has_magic(path) else "does not exist"
            raise DataError(
                f"{path}: {found}. Mend the path; a data set of the Hub needs split beside it, such as train."
            )
        return files
    inside = [one for one in sorted(place.rglob("*")) if one.is_file() and one.name not in _DESCRIBING]
    inside = [one for one in inside if not any(part[0] == "." for part in one.relative_to(place).parts)]
    splits = {one: _split_of(one.relative_to(place)) for one in inside}
    files = [one for one in inside if _suffix(one.name) in (*_KINDS, _ARROW)]
    if source.split:
        files = [one for one in files if splits[one] == _SAME.get(source.split, source.split)]
    kinds = Counter(_suffix(one.name) for one in files)
    if len(kinds) != 1:
        found = ", ".join(f"{n} {ending}" for ending, n in Counter(one.suffix for one in inside).most_common(5))
        one_kind = (
            f"Name a pattern such as {place}/**/*{kinds.most_common(1)[0][0]}" if kinds else "Name another folder"
        )
        raise DataError(f"{path}: expected files of one of the kinds {_READ}, found {found or 'none'}. {one_kind}.")
    if len(there := {splits[one] for one in files} - {""}) > 1:
        raise DataError(f"{path}: holds the splits {', '.join(sorted(there))}: set split, or name a pattern of files.")
    if len({_unpacked(str(one)) for one in files}) < len(files):
        raise DataError(f"{path}: holds a file both compressed and not. Name a pattern of files.")
    return files


def _split_of(file: Path) -> str:
    """Returns the split that a path names, "" for none."""
    found = _SPLIT.findall(str(file).lower())
    return _SAME.get(found[0], found[0]) if found else ""


def _unpacked(name: str) -> str:
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name


def _suffix(name: str) -> str:
    return Path(_unpacked(name.lower())).suffix


def _by_card(source: DataSource) -> Table:
    """Returns a data set of the Hub, or of a folder with a copy of one, whose card says what its subsets are."""
    name = " ".join(filter(None, (source.path, source.subset, source.split)))
    if not Path(source.path).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.path):
        raise DataError(f"{source.path}: expected a folder, or the id of a data set on the Hub such as org/name")
    options: dict[str, Any] = {"split": source.split, "streaming": True}
    return HubTable(name, _folder(source), "load_dataset", source.path, source.subset, **options)


def _remote(source: DataSource) -> list[Table]:
    address, folder = source.path, _folder(source)
    if address.partition("://")[0] not in _SCHEMES:
        expected = f"one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
        raise DataError(f"{address}: expected {expected}. Download it, or name a data set on the Hub as org/name.")
    root, pattern = re.fullmatch(r"([^*?\[]*?)((?:/[^/]*[*?\[].*)?)", address).groups()  # type: ignore[union-attr]
    filesystem, base = fs.FileSystem.from_uri(root)
    paths = [base]
    if not filesystem.get_file_info(base).is_file:
        inside = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        paths = sorted(one.path for one in inside if one.is_file and fnmatch(one.path, f"{base}{pattern or '/*'}"))
    if not paths:
        raise DataError(f"{address}: nothing is there")
    scheme = address.partition("://")[0]
    return [_table(f"{scheme}://{path}", folder, filesystem, path) for path in paths]


def _table(name: str, folder: Path | None, filesystem: Any, path: str) -> Table:
    """Returns the table in a file. Raises DataError when its content contradicts its name."""
    suffix = _suffix(path)
    if suffix == _ARROW and isinstance(filesystem, fs.LocalFileSystem):
        return HubTable(name, folder, "load_dataset", "arrow", data_files=path, split="train", streaming=True)
    if path.endswith(".tar") and isinstance(filesystem, fs.LocalFileSystem) and _end(path).strip(b"\0"):
        raise DataError(f"{name}: expected an archive that ends with zeros: was it cut short? Write it again.")
    if suffix not in _KINDS:
        raise DataError(f"{name}: expected a file named {_READ} (text also with {', '.join(_PACKED)}). Convert it.")
    kind: Callable[..., Table] = _KINDS[suffix]
    if kind not in (Parquet, Archive):
        head = _head(name, filesystem, path)
        start = bare(head.decode("utf-8", "replace"))
        for first, (found, remedy) in _MAGIC.items():
            if re.match(first, head, re.DOTALL):
                raise DataError(f"{name}: expected text, found {found}. {remedy}")
        if not start:
            raise DataError(f"{name}: no row ({len(head)} bytes). Was it written to its end?")
        if kind is JsonLines:
            if re.match(r"\[\s*[{\]]|\{\s*\n", start):
                kind = JsonValues
            elif not re.search(r"^\s*[{\[]", start, re.MULTILINE):
                first_line = shown(start.splitlines()[0])
                raise DataError(f"{name}: expected JSON, found lines such as {first_line}. Convert it.")
    return kind(name, folder, filesystem, path)


def _end(path: str) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1024))
        return file.read()


def _head(name: str, filesystem: Any, path: str) -> bytes:
    with reading(name), filesystem.open_input_stream(path, compression="detect") as content:
        return bytes(content.read(1 << 16))
