"""Access to the files of a store, in a directory on disk or in an object store."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from pyarrow import fs

from masters_ray.errors import DamagedError, StoreError, without_secrets, writing
from masters_ray.files import HALF_WRITTEN, write_bytes

DAMAGED = ".damaged"  # suffix of files that were set aside; ``Folder.names`` leaves them out


class Folder:
    """A directory whose files are written whole or not at all: an object store shows an object only after all of it has
    arrived, and ``files.write_bytes`` does the same on a disk. Every method raises StoreError, which names the file,
    when the file system refuses the operation.

    where: a path, or an address that pyarrow's file systems know: ``s3://bucket/…``, ``gs://bucket/…``, ``file:///…``;
    keys and regions come from the environment."""

    def __init__(self, where: "Where") -> None:
        """Raises StoreError when ``where`` is an unknown address, or holds credentials."""
        self._name = str(where)
        self.filesystem: Any
        self._path: str
        if isinstance(where, Folder):
            self.filesystem, self._path = where.filesystem, where._path
        elif (shown := without_secrets(self._name)) != self._name:
            remedy = "Leave them to the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            raise StoreError(f"{shown}: expected an address without credentials. {remedy}")
        else:
            address = self._name if "://" in self._name else str(Path(where).absolute())
            try:
                self.filesystem, self._path = fs.FileSystem.from_uri(address)
            except (pa.ArrowException, OSError) as error:
                expected = "a path, or an address such as s3://bucket/folder or gs://bucket/folder"
                raise StoreError(f"{where}: expected {expected} ({error})") from error
        self.on_disk = isinstance(self.filesystem, fs.LocalFileSystem)

    def __str__(self) -> str:
        return self._name

    def __truediv__(self, name: str) -> "Folder":
        child = Folder(self)
        child._name, child._path = f"{self._name.rstrip('/')}/{name}", self.path(name)
        return child

    def path(self, name: str) -> str:
        """Returns the path of a file in the folder, for ``filesystem``."""
        return f"{self._path.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        return bool(self._ask("read", name, self.filesystem.get_file_info, self.path(name)).is_file)

    def names(self, beginning: str = "") -> list[str]:
        """Returns the sorted names of files that start with ``beginning``; none when the directory does not exist."""
        names = sorted(one.base_name for one in self._entries() if one.is_file)
        return [name for name in names if name.startswith(beginning) and not name.endswith((HALF_WRITTEN, DAMAGED))]

    def folders(self) -> list[str]:
        """Returns the sorted names of subdirectories."""
        return sorted(one.base_name for one in self._entries() if not one.is_file)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return bytes(self._ask("read", name, file.read))

    def read_object(self, name: str) -> dict[str, Any]:
        """Returns a JSON file's content. Raises DamagedError when it is not a JSON object."""
        content = self.read(name)
        with undamaged(self / name):
            found = json.loads(content)
            if not isinstance(found, dict):
                raise TypeError("it is no JSON object")
            return found

    def open(self, name: str) -> Any:
        """Opens a file for reading with random access."""
        return self._ask("read", name, self.filesystem.open_input_file, self.path(name))

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Writes a whole file; replaces a file of the same name."""
        if self.on_disk:
            write_bytes(Path(self.path(name)), content)
            return
        with writing(self / name), self.filesystem.open_output_stream(self.path(name)) as stream:
            stream.write(content)

    def remove(self, name: str) -> None:
        self._ask("deleted", name, self.filesystem.delete_file, self.path(name))

    def rename(self, name: str, new_name: str) -> None:
        self._ask("renamed", name, self.filesystem.move, self.path(name), self.path(new_name))

    def bytes(self) -> int:
        """Returns the size of the folder's files together."""
        return sum(one.size for one in self._entries() if one.is_file)

    def try_writing(self) -> None:
        """Tests write access: writes a file and removes it."""
        self.write("tried", b"")
        self.remove("tried")

    def _entries(self) -> list[fs.FileInfo]:
        """Returns every entry of the folder; none when there is no folder."""
        with writing(self, done="listed"):
            place: Any = fs.FileSelector(self._path, allow_not_found=True)
            if self.on_disk:  # pyarrow's listing threads sometimes abort a process that ends right afterwards
                place = list(map(str, Path(self._path).iterdir())) if Path(self._path).is_dir() else []
            found: list[fs.FileInfo] = self.filesystem.get_file_info(place)
            return found

    def _ask(self, done: str, name: str, ask: Any, *arguments: Any) -> Any:
        with writing(self / name, done=done):
            return ask(*arguments)


@contextmanager
def undamaged(where: object) -> Iterator[None]:
    """Turns errors of parsers inside the block into a DamagedError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DamagedError(f"{where}: not as it was written ({told})") from error


Where: TypeAlias = str | Path | Folder  # what names a store: a path, an address, or an open folder
