"""Pictures, by reference or in memory → the pixels that every model and every reader of a report sees: upright, on
white, 8-bit RGB.

Colour profiles (ICC) are ignored, as in every server that a student will answer from.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import re
import stat
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from masters_ray.data.layouts import magic
from masters_ray.data.texts import BadPictureError, BadRowError, cut
from masters_ray.records import Picture, Problem

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow opens no picture with more pixels."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Not EPS or WMF, which start other programs, nor containers of other formats."""
TURNED = "turned upright"
ON_WHITE = "transparent and put on white"
SCALED = "scaled from 16 bits of grey to 8"
FIRST_FRAME = "animated or of several pages, of which the first is taken"

_AT_A_TIME = 100_000_000
"""Pixels that all threads of a process decode at a time; each may need 20 bytes."""
_MAX_BYTES = 1 << 30
"""Of a file; no picture with PILLOW_MAX_PIXELS needs more."""
_BASE64 = re.compile(r"(?i:data):[^,]*;base64,|(?=(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/]{60})")
"""How base64 begins: as an address, or as that of a PNG, JPEG, GIF or WebP does."""

# Pillow warns of half the pixels that it refuses, and of metadata that nobody reads here. For the whole process:
# warnings.catch_warnings around each picture is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_decoding = 0
"""Pixels that are being decoded now."""
_freed = threading.Condition()


class Checked(NamedTuple):
    picture: Picture
    """With its digest."""
    changes: frozenset[str]
    """What decoding it takes beside, in words that follow a number of pictures."""


def check(picture: Picture, max_pixels: int = PILLOW_MAX_PIXELS) -> Checked:
    """Read and decode a picture. Raises BadPictureError when it is missing, broken, or larger than ``max_pixels``."""
    content = encoded(picture)
    _, changes = _rgb(_name(picture), content, max_pixels)
    return Checked(replace(picture, digest=hashlib.sha256(content).hexdigest()), frozenset(changes))


def decode(picture: Picture, max_pixels: int = PILLOW_MAX_PIXELS) -> Image.Image:
    """The pixels that engine, learner, evaluation and report see. Raises BadPictureError, also when a file is not as it
    was when the data were read."""
    return _rgb(_name(picture), encoded(picture), max_pixels)[0]


def with_embedded_pictures(problem: Problem) -> Problem:
    """The same problem with its pictures' encoded bytes in memory. Raises BadPictureError when one cannot be read."""
    pictures = tuple(Picture(data=encoded(picture), digest=picture.digest) for picture in problem.pictures)
    return replace(problem, pictures=pictures)


def encoded(picture: Picture) -> bytes:
    """The encoded bytes. Raises BadPictureError when its file is missing, not an ordinary one, unreadable, or not as it
    was when the data were read."""
    if picture.data is not None:
        return picture.data
    name, path = _name(picture), Path(picture.path or "")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:  # opening a pipe would wait for a writer
            raise BadPictureError(f"{name} is not an ordinary file of at most 1 GiB")
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
        letters = "".join(_BASE64.sub("", text).split())  # mail's lines, and a blank behind the comma
        try:
            return Picture(data=base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True))
        except binascii.Error as error:
            raise BadRowError(f"image: {cut(text)!r} is not base64: {error}") from None
    if whole := re.fullmatch(r"(?i:file):(?://(?:localhost)?)?(/(?!/).*)", text, re.DOTALL):
        return Picture(path=unquote(whole[1]))
    if re.match(r"(?i)[^:]*://|(data|file):", text):
        raise BadRowError(
            f"image: {cut(text)!r}: expected a path, file:///… or data:image/…;base64,… Pictures are not fetched from "
            "elsewhere."
        )
    path = folder / text
    if not text.isascii() and not path.exists():  # a name that was typed on one system and written on another
        forms = (folder / unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        path = next((one for one in forms if one.exists()), path)
    return Picture(path=str(path))


def _name(picture: Picture) -> str:
    return "embedded picture" if picture.path is None else f"picture {cut(picture.path)}"


def _rgb(name: str, content: bytes, max_pixels: int) -> tuple[Image.Image, set[str]]:
    """The picture's first frame as RGB without metadata, and what was done for it.

    Raises BadPictureError, which begins with ``name``; for more than ``max_pixels`` before the picture is decoded.
    """
    changes: set[str] = set()
    try:
        with _opened(name, content, max_pixels) as image:
            turned = image.format == "TIFF" and _is_turned(image)  # Pillow turns those itself, and forgets it
            image.load()
            if turned or _is_turned(image):
                changes.add(TURNED)
                ImageOps.exif_transpose(image, in_place=True)
            pixels = _on_white(_eight_bits(name, image, changes), changes)
            if getattr(image, "is_animated", False):  # last: a GIF reads on for it
                changes.add(FIRST_FRAME)
    except (BadPictureError, MemoryError):
        raise
    except Image.DecompressionBombError:
        limits = f"{PILLOW_MAX_PIXELS} pixels; data.max_picture_pixels allows {max_pixels}"
        raise BadPictureError(f"{name} has more than {limits}") from None
    except Image.UnidentifiedImageError:
        told = (magic(content) or ["its content"])[0] if content else "an empty file"
        raise BadPictureError(f"{name} cannot be decoded: {told} is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # whatever Pillow's readers raise for content that is not what its format demands
        raise BadPictureError(f"{name} cannot be decoded: {error or type(error).__name__}") from error
    pixels.info = {}  # what reads an orientation there would turn it again
    return pixels, changes


@contextlib.contextmanager
def _opened(name: str, content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read; it waits until the threads of the process decode few enough other pixels."""
    global _decoding
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        pixels = image.width * image.height
        if not 1 <= pixels <= max_pixels:
            size = f"{image.width} x {image.height}"
            raise BadPictureError(f"{name} has {size} pixels; data.max_picture_pixels allows {max_pixels}")
        with _freed:
            _freed.wait_for(lambda: not _decoding or _decoding + pixels <= _AT_A_TIME)
            _decoding += pixels
        try:
            if image.format == "PNG":
                image.verify()  # the checksums of its pixels, which decoding ignores
                image = Image.open(io.BytesIO(content), formats=FORMATS)
                if isinstance(clear := image.info.get("transparency"), int) and image.tile:
                    # Pillow scales grey of 2 and 4 bits to 8, but not the grey that is transparent.
                    image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1)
            yield image
        finally:
            with _freed:
                _decoding -= pixels
                _freed.notify_all()


def _is_turned(image: Image.Image) -> bool:
    """By EXIF or XMP. False where they cannot be read: every viewer shows such a picture as it is."""
    with contextlib.suppress(Exception):
        return 2 <= int(image.getexif().get(ExifTags.Base.Orientation, 1)) <= 8
    return False


def _eight_bits(name: str, image: Image.Image, changes: set[str]) -> Image.Image:
    """A picture with 16 bits of grey as one with their high 8 (Pillow's own conversion clips them); others as they
    are."""
    if not image.mode.startswith(("I", "F")):
        return image
    tags = getattr(image, "tag_v2", {})
    is_16 = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
    if not is_16 or tags.get(BITSPERSAMPLE, (16,)) != (16,) or tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        raise BadPictureError(
            f"{name} has grey of 12 or 32 bits or floats, or with white as zero, whose brightness cannot be known. "
            "Save it with 8 or 16 bits."
        )
    changes.add(SCALED)
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        changes.add(ON_WHITE)
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _on_white(image: Image.Image, changes: set[str]) -> Image.Image:
    """As RGB, what is transparent over white."""
    if image.has_transparency_data:
        format_, image = image.format, image.convert("RGBA")
        alpha = image.getchannel("A").getextrema()
        if alpha == (0, 0) and format_ in ("BMP", "TGA"):  # whose writers often leave the fourth byte of a pixel at 0
            return image.convert("RGB")
        if alpha != (255, 255):
            changes.add(ON_WHITE)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
