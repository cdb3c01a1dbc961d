"""Where a store lies: a directory of a disk, or of an object store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from pyarrow import fs

from masters_ray.errors import DamagedError, StoreError, masked

_LEFTOVER = ".tmp"
DAMAGED = ".damaged"
"""How the names of files end that were set aside; nothing lists them."""


class Folder:
    """A directory whose files are written whole or not at all.

    ``where`` is a path, or an address that pyarrow's file systems know: ``s3://bucket/…``, ``gs://bucket/…``,
    ``file:///…``; keys and regions come from the environment, as for all programs that use these. An object store
    shows an object only when all of it has arrived; on a disk a file is written under another name, flushed to the
    device and renamed.

    Every method raises StoreError, which names the file, when the place refuses what is asked.
    """

    def __init__(self, where: Where) -> None:
        """Raises StoreError when ``where`` names no place."""
        self._name = str(where)
        self.filesystem: Any
        self._path: str
        if isinstance(where, Folder):
            self.filesystem, self._path = where.filesystem, where._path
        elif "://" in self._name:
            self.filesystem, self._path = _at_address(self._name)
        else:
            self.filesystem, self._path = fs.LocalFileSystem(), str(Path(where).absolute())
        self.on_disk = isinstance(self.filesystem, fs.LocalFileSystem)

    def __str__(self) -> str:
        return self._name

    def __truediv__(self, name: str) -> Folder:
        child = Folder(self)
        child._name, child._path = f"{self._name.rstrip('/')}/{name}", self.path(name)
        return child

    def path(self, name: str) -> str:
        """Of a file in it, as ``filesystem`` knows it."""
        return f"{self._path.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        if self.on_disk:
            return Path(self.path(name)).is_file()
        return bool(self._ask("read", name, self.filesystem.get_file_info, self.path(name)).is_file)

    def names(self, beginning: str = "") -> list[str]:
        """Files whose name begins so, sorted; none when the directory is not there."""
        found = [name for name, is_file in self._entries() if is_file]
        return sorted(name for name in found if name.startswith(beginning) and not name.endswith((_LEFTOVER, DAMAGED)))

    def folders(self) -> list[str]:
        """Directories in it, sorted."""
        return sorted(name for name, is_file in self._entries() if not is_file)

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self.open(name) as file:
            return bytes(self._ask("read", name, file.read))

    def read_object(self, name: str) -> dict[str, Any]:
        """A JSON file's content. Raises DamagedError when it is no JSON object."""
        try:
            found = json.loads(self.read(name))
        except ValueError as error:
            raise DamagedError(f"{self / name}: not as it was written: not JSON ({error})") from error
        if not isinstance(found, dict):
            raise DamagedError(f"{self / name}: not as it was written: it is no JSON object")
        return found

    def open(self, name: str) -> Any:
        """A file for reading at any place."""
        opener = pa.OSFile if self.on_disk else self.filesystem.open_input_file
        return self._ask("read", name, opener, self.path(name))

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """A whole file, in place of one of the same name."""
        self._ask("written", name, self._put, self.path(name), content)

    def remove(self, name: str) -> None:
        """Delete a file."""
        self._ask("deleted", name, self.filesystem.delete_file, self.path(name))

    def move(self, name: str, into: Folder, new_name: str = "") -> str:
        """Put a file into a directory of the same file system, by default under the name that it has; returns its
        name there."""
        if into is not self:
            into._ask("made", "", self.filesystem.create_dir, into._path)
        self._ask("moved", name, self.filesystem.move, self.path(name), into.path(new_name or name))
        return new_name or name

    def remove_folder(self, name: str) -> None:
        """Delete a directory with all that is in it."""
        self._ask("deleted", name, self.filesystem.delete_dir, self.path(name))

    def try_out(self) -> None:
        """Write a file and remove it."""
        self.write("tried", b"")
        self.remove("tried")

    def clear(self) -> None:
        """Remove what a killed writer left half-written."""
        if self.on_disk:
            for leftover in Path(self._path).glob(f"*{_LEFTOVER}"):
                leftover.unlink()

    def _put(self, path: str, content: bytes | pa.Buffer) -> None:
        if not self.on_disk:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        Path(self._path).mkdir(parents=True, exist_ok=True)
        with Path(path + _LEFTOVER).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(path + _LEFTOVER).replace(path)

    def _entries(self) -> list[tuple[str, bool]]:
        """(name, whether it is a file) of all that is in it."""
        if self.on_disk:
            place = Path(self._path)
            entries = self._ask("listed", "", lambda: list(place.iterdir())) if place.is_dir() else []
            return [(one.name, one.is_file()) for one in entries]
        selector = fs.FileSelector(self._path, allow_not_found=True)
        found = self._ask("listed", "", self.filesystem.get_file_info, selector)
        return [(one.base_name, one.is_file) for one in found]

    def _ask(self, done: str, name: str, ask: Any, *arguments: Any) -> Any:
        try:
            return ask(*arguments)
        except OSError as error:
            raise StoreError(
                f"{self / name if name else self}: cannot be {done} ({error}). Make room or mend the directory, and "
                "call again: what is stored stays."
            ) from error


Where: TypeAlias = str | Path | Folder
"""What names a store."""


def _at_address(address: str) -> tuple[Any, str]:
    """The file system, and the path in it."""
    if (shown := masked(address)) != address:
        raise StoreError(
            f"{shown}: expected an address without credentials. Leave them to the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(address)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{address}: expected a path, or an address such as s3://bucket/folder or gs://bucket/folder ({error})"
        ) from error
    return found
