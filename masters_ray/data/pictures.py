"""Decodes pictures to the pixels that all models and the report use: upright, on white, 8-bit RGB. Colour profiles
(ICC) are ignored, as inference servers do."""

import base64
import binascii
import contextlib
import hashlib
import io
import os
import re
import stat
import threading
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from masters_ray.data.texts import BadPictureError, BadRowError, cut, shown
from masters_ray.records import Picture, Problem

Stamp: TypeAlias = tuple[int, int]  # a file's size in bytes and modification time in ns; (-1, -1): no readable file
PILLOW_MAX_PIXELS = 178_956_970  # Pillow opens no picture with more pixels
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Formats that are decoded; without EPS and WMF, which start other programs, and without containers of formats."""
TURNED = "turned upright"
ON_WHITE = "transparent and put on white"
SCALED = "scaled from 16 bits of grey to 8"
FIRST_FRAME = "animated or of several pages, of which the first is taken"

_LARGE = 4_000_000  # pixels above which few pictures are decoded at a time; a pixel may need 20 bytes
_LARGE_ONES = threading.Semaphore(4)
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation → Image.Transpose that turns the picture upright
_BASE64 = re.compile(r"(?i:data):[^,]*;base64,|(?=(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/]{60})")
"""Beginning of base64: a data: address, or the content of a PNG, JPEG, GIF or WebP."""

# Pillow warns from half the pixels that it refuses, and of metadata that is not used here. Filtered for the whole
# process, since warnings.catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def check(picture: Picture, max_pixels: int = PILLOW_MAX_PIXELS) -> tuple[Picture, set[str]]:
    """Reads and decodes a picture. Returns it with its digest, and the changes made while decoding, such as ``TURNED``.
    Raises BadPictureError when it is missing, broken, or larger than ``max_pixels``."""
    content = encoded(picture)
    _, changes = _rgb(_name(picture), content, max_pixels)
    return replace(picture, digest=hashlib.sha256(content).hexdigest()), changes


def decode(picture: Picture, max_pixels: int = PILLOW_MAX_PIXELS) -> Image.Image:
    """Returns the RGB pixels. Raises BadPictureError, also for a file that has changed since the data was read."""
    return _rgb(_name(picture), encoded(picture), max_pixels)[0]


def stamp(path: str) -> Stamp:
    with contextlib.suppress(OSError, ValueError):
        found = Path(path).stat()
        if os.access(path, os.R_OK):
            return found.st_size, found.st_mtime_ns
    return -1, -1


def with_embedded_pictures(problem: Problem) -> Problem:
    """Returns the problem with its pictures' encoded bytes in memory. Raises BadPictureError as ``encoded`` does."""
    pictures = tuple(Picture(data=encoded(picture), digest=picture.digest) for picture in problem.pictures)
    return replace(problem, pictures=pictures)


def encoded(picture: Picture) -> bytes:
    """Returns the encoded bytes. Raises BadPictureError when the file is missing, not an ordinary one, unreadable, or
    changed since the data was read."""
    if picture.data is not None:
        return picture.data
    name, path = _name(picture), Path(picture.path or "")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > 1 << 30:  # opening a pipe would wait for a writer
            raise BadPictureError(f"{name} is not an ordinary file of at most 1 GiB")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadPictureError(f"{name} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise BadPictureError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    if picture.digest not in (None, hashlib.sha256(content).hexdigest()):
        raise BadPictureError(f"{name} has changed since the data were read")
    return content


def named(image: Any, folder: Path | None) -> Picture:
    """Returns the picture that a row means: encoded bytes, a path relative to ``folder``, file:///…, base64 with or
    without ``data:image/…;base64,`` before it, or a struct of bytes and path. Raises BadRowError for anything else."""
    if isinstance(image, dict):  # as datasets libraries write pictures
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return Picture(data=image)
    if isinstance(image, str) and _BASE64.match(image):
        letters = "".join(_BASE64.sub("", image).split())  # without MIME's line breaks and blanks behind the comma
        with contextlib.suppress(binascii.Error):
            return Picture(data=base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True))
    if isinstance(image, str) and image.startswith("file:///"):
        return Picture(path=unquote(image.removeprefix("file://")))
    if not isinstance(image, str) or not image or re.match(r"(?i)[^:]*://|(data|file):", image):
        expected = "a path, bytes, file:///… or data:image/…;base64,…, perhaps at a key below, such as image.path"
        raise BadRowError(f"image: expected {expected}, found {shown(image)}. Pictures are not fetched from elsewhere.")
    if folder is None and not image.startswith("/"):
        raise BadRowError(f"image: {shown(image)} is relative, and the rows lie in no folder: set images to its folder")
    folder = folder or Path()
    # Systems differ in the Unicode normal form of file names.
    paths = [str(folder / one) for one in (image, *(unicodedata.normalize(form, image) for form in ("NFC", "NFD")))]
    return Picture(path=next(filter(os.path.exists, paths), paths[0]))


def _name(picture: Picture) -> str:
    return "embedded picture" if picture.path is None else f"picture {cut(picture.path)}"


def _rgb(name: str, content: bytes, max_pixels: int) -> tuple[Image.Image, set[str]]:
    """Returns the picture's first frame as RGB without metadata, and the changes made to it. Raises BadPictureError
    about ``name``; for more than ``max_pixels`` before decoding."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
            if not 1 <= pixels <= max_pixels:
                size = f"{image.width} x {image.height}"
                raise BadPictureError(f"{name} has {size} pixels; data.max_picture_pixels allows {max_pixels}")
            with _LARGE_ONES if pixels > _LARGE else contextlib.nullcontext():
                if image.format == "PNG":  # decoding ignores the checksums of the pixels
                    Image.open(io.BytesIO(content), formats=FORMATS).verify()
                return _decoded(name, image)
    except (BadPictureError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        start = f"what begins with {shown(content[:40])}" if content else "an empty file"
        raise BadPictureError(f"{name} cannot be decoded: {start} is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers raise many types for malformed content
        raise BadPictureError(f"{name} cannot be decoded: {error or type(error).__name__}") from error


def _decoded(name: str, image: Image.Image) -> tuple[Image.Image, set[str]]:
    changes: set[str] = set()
    turn = None
    with contextlib.suppress(Exception):  # viewers show a picture as it is when its EXIF or XMP cannot be read
        turn = Image.Transpose(_TURNS[int(image.getexif()[ExifTags.Base.Orientation])])
    image.load()
    pixels = _on_white(_eight_bits(name, image, changes), changes)
    if turn is not None:
        changes.add(TURNED)
        # Pillow turns a TIFF in load. Not ImageOps.exif_transpose: it fails on EXIF that it cannot write.
        pixels = pixels if image.format == "TIFF" else pixels.transpose(turn)
    if getattr(image, "is_animated", False):  # last, since a GIF is read further for it
        changes.add(FIRST_FRAME)
    pixels.info = {}  # a reader that finds an orientation there would turn the picture again
    return pixels, changes


def _eight_bits(name: str, image: Image.Image, changes: set[str]) -> Image.Image:
    """Returns 16-bit grey as its high 8 bits (Pillow's own conversion clips), other pictures unchanged. Raises
    BadPictureError for grey of other depths."""
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
    """Returns the picture as RGB, transparent parts over white."""
    if image.has_transparency_data:
        format_, image = image.format, image.convert("RGBA")
        alpha = image.getchannel("A").getextrema()
        if alpha == (0, 0) and format_ in ("BMP", "TGA"):  # writers of these often leave the unused fourth byte at 0
            return image.convert("RGB")
        if alpha != (255, 255):
            changes.add(ON_WHITE)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
