"""Pictures by reference or in memory: their encoded bytes, their pixels, and why one cannot be used."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import stat
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from PIL import Image

from masters_ray.config import Data
from masters_ray.data.pixels import PILLOW_MAX_PIXELS, Change, rgb
from masters_ray.data.texts import BadPictureError, BadRowError
from masters_ray.records import Picture, Problem

DEFAULT_MAX_PIXELS = Data.max_picture_pixels
"""Pixels of the largest picture that a source may hold, unless the configuration says otherwise."""
_MAX_BYTES = 1 << 30
"""Of a file; no picture with PILLOW_MAX_PIXELS needs more."""
_LONGEST_NAME = 100
_BASE64 = re.compile(r"(?i:data):[^,]*;base64,|(?=(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/]{60})")
"""How base64 begins: as an address, or as that of a PNG, JPEG, GIF or WebP does."""


class Checked(NamedTuple):
    picture: Picture
    """With its digest."""
    changes: frozenset[Change]
    """What decoding it takes beside."""


def check(picture: Picture, max_pixels: int = DEFAULT_MAX_PIXELS) -> Checked:
    """Read and decode a picture. Raises BadPictureError when it is missing, broken, or larger than ``max_pixels``."""
    content = encoded(picture)
    _, changes = rgb(_name(picture), content, max_pixels)
    return Checked(replace(picture, digest=hashlib.sha256(content).hexdigest()), changes)


def decode(picture: Picture, max_pixels: int = PILLOW_MAX_PIXELS) -> Image.Image:
    """The picture as upright RGB pixels on white (``pixels``): what engine, learner, evaluation and report see.

    By default whatever a source was allowed to hold. Raises BadPictureError, also when a file is not as it was when the
    data were read.
    """
    return rgb(_name(picture), encoded(picture), max_pixels)[0]


def with_embedded_pictures(problem: Problem) -> Problem:
    """The same problem with its pictures' encoded bytes in memory. Raises BadPictureError when one cannot be read."""
    pictures = tuple(Picture(data=encoded(picture), digest=picture.digest) for picture in problem.pictures)
    return replace(problem, pictures=pictures)


def encoded(picture: Picture) -> bytes:
    """The encoded bytes. Raises BadPictureError when its file is missing, not an ordinary one, unreadable, larger than
    any picture, or not as it was when the data were read."""
    if picture.data is not None:
        return picture.data
    name = _name(picture)
    path = Path(picture.path or "")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for somebody who writes
            raise BadPictureError(f"{name} is not an ordinary file")
        if found.st_size > _MAX_BYTES:
            raise BadPictureError(f"{name} has {found.st_size} bytes: too large for a picture")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadPictureError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise BadPictureError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    if picture.digest not in (None, hashlib.sha256(content).hexdigest()):
        raise BadPictureError(f"{name} has changed since the data were read")
    return content


def named(text: str, folder: Path) -> Picture:
    """What a row means by ``text``: a path, which starts at ``folder``, a ``file:`` address, or base64, with
    ``data:image/…;base64,`` before it or without, also in lines or without the = at its end.

    Raises BadRowError for any other address.
    """
    if _BASE64.match(text):
        try:
            letters = "".join(_BASE64.sub("", text).split())  # mail's lines, and a blank behind the comma
            return Picture(data=base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True))
        except binascii.Error as error:
            raise BadRowError(f"image: {_shortened(text)!r} is not base64: {error}") from None
    scheme, colon, rest = text.partition(":")
    if scheme.lower() == "file" and (whole := re.fullmatch(r"(?://(?:localhost)?)?(/(?!/).*)", rest, re.DOTALL)):
        return Picture(path=unquote(whole[1]))
    if colon and (rest.startswith("//") or scheme.lower() in ("data", "file")):
        raise BadRowError(
            f"image: {_shortened(text)!r}: expected a path, file:///… or data:image/…;base64,… Pictures are not "
            "fetched from elsewhere."
        )
    path = folder / text
    if not text.isascii() and not path.exists():  # a name that was typed on one system and written on another
        forms = (folder / unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        path = next((one for one in forms if one.exists()), path)
    return Picture(path=str(path))


def _name(picture: Picture) -> str:
    return "embedded picture" if picture.path is None else f"picture {_shortened(picture.path)}"


def _shortened(text: str) -> str:
    """A name that fits into a line of a terminal and cannot govern it."""
    short = text if len(text) <= _LONGEST_NAME else f"{text[:29]} … {text[-68:]}"
    return "".join(letter if letter.isprintable() else "?" for letter in short)
