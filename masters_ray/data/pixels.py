"""Encoded pictures → the pixels that every model and every reader of a report sees: upright, on white, 8-bit RGB.

Profiles of colours (ICC) are left out of account, as in every server that a student will answer from.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow opens no picture with more pixels."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Not EPS or WMF, which start other programs, nor what is a container of something else."""
Change = Literal["turned", "on_white", "scaled", "first_frame"]
"""What was done to a picture beside decoding it."""

_AT_A_TIME = 100_000_000
"""Pixels that all threads of a process decode at a time; each may need 20 bytes."""
_WHITE = 255
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the EXIF orientation."""
_NO_PICTURES = {
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
    b"<svg": "an SVG",
    b"<?xml": "XML",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
"""First bytes, in lower case → what people mistake for a picture."""

# Pillow warns of half the pixels that it refuses, and of metadata that nobody reads here; limits that were set say what
# is too large. For the whole process, because warnings.catch_warnings around each picture is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class _Room:
    """Memory for pixels, which many threads share."""

    def __init__(self) -> None:
        self._taken = 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        with self._freed:
            self._freed.wait_for(lambda: not self._taken or self._taken + pixels <= _AT_A_TIME)
            self._taken += pixels
        try:
            yield
        finally:
            with self._freed:
                self._taken -= pixels
                self._freed.notify_all()


_room = _Room()


class NoPictureError(Exception):
    """Why bytes are no picture that can be used; the message goes on after the picture's name."""


def rgb(content: bytes, max_pixels: int) -> tuple[Image.Image, frozenset[Change]]:
    """The picture's first frame as RGB without metadata, and what was done for it.

    Raises NoPictureError, for one with more than ``max_pixels`` by its header, before it is decoded.
    """
    changes: set[Change] = set()
    try:
        with _opened(content, max_pixels) as image:
            turned = _orientation(image) if image.format == "TIFF" else 1  # Pillow turns those, and forgets it
            image.load()
            if turned in _UPRIGHT or _orientation(image) in _UPRIGHT:
                changes.add("turned")
            pixels = _on_white(_eight_bits(image, changes), changes)
            if (turn := _UPRIGHT.get(_orientation(image))) is not None:
                pixels = pixels.transpose(turn)
            if getattr(image, "is_animated", False):  # looked at last: a GIF reads on for it
                changes.add("first_frame")
    except (NoPictureError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise NoPictureError(
            f"has more than {PILLOW_MAX_PIXELS} pixels; data.max_picture_pixels allows {max_pixels}"
        ) from None
    except Image.UnidentifiedImageError:
        raise NoPictureError(f"cannot be decoded: {_told(content)} is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # whatever Pillow's readers raise for content that is not what its format demands
        raise NoPictureError(f"cannot be decoded: {error or type(error).__name__}") from error
    pixels.info = {}  # what reads an orientation there would turn it again
    return pixels, frozenset(changes)


@contextlib.contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        size = image.width * image.height
        if not 1 <= size <= max_pixels:
            raise NoPictureError(
                f"has {image.width} x {image.height} pixels; data.max_picture_pixels allows {max_pixels}"
            )
        with _room.of(size):
            if image.format != "PNG":
                yield image
                return
            image.verify()  # the checksums of its pixels, which are not looked at when they are decoded
            with Image.open(io.BytesIO(content), formats=("PNG",)) as again:
                _scale_clear(again)
                yield again


def _scale_clear(image: Image.Image) -> None:
    """Grey of 2 and 4 bits is spread over 8 when it is read; the grey that is transparent is not."""
    clear = image.info.get("transparency")
    spread = _SPREAD.get(next((str(tile.args) for tile in getattr(image, "tile", ())), ""))
    if spread is not None and isinstance(clear, int):
        image.info["transparency"] = clear * spread


def _orientation(image: Image.Image) -> int:
    """By EXIF or XMP; 1, upright, where they cannot be read: every viewer shows such a picture as it is."""
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _eight_bits(image: Image.Image, changes: set[Change]) -> Image.Image:
    """A picture with 16 or 32 bits of grey as one with 8; others as they are.

    Of 16 bits the high ones are taken. Floats are grey from 0 to 1, or from 0 to 255 when one is above 1.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        bits = 12 if tags.get(BITSPERSAMPLE) == (12,) else 16
        grey = (values >> bits - 8).astype(np.uint8)
    elif image.mode == "F":
        lowest, highest = float(values.min()), float(values.max())
        if not 0 <= lowest <= highest <= _WHITE:  # nor a number that is none
            raise NoPictureError(
                f"has floats from {lowest:g} to {highest:g}, expected 0 to 1 or 0 to 255: which of them is white "
                "cannot be known. Save it with 8 bits."
            )
        grey = np.rint(values * (_WHITE if highest <= 1 else 1)).astype(np.uint8)
    else:
        raise NoPictureError("has 32-bit integers: which of them is white cannot be known. Save it with 8 or 16 bits.")
    changes.add("scaled")
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow turns over 8 bits alone
        grey = _WHITE - grey
    if isinstance(clear, int):
        changes.add("on_white")
        grey = np.where(values == clear, np.uint8(_WHITE), grey)
    return Image.fromarray(grey)


_SPREAD = {"L;2": 85, "L;4": 17}
"""How Pillow calls grey of few bits → the step between two of its greys among 256."""
_UNUSED_ALPHA = ("BMP", "TGA")
"""Formats whose writers often leave the fourth byte of a pixel at 0."""


def _on_white(image: Image.Image, changes: set[Change]) -> Image.Image:
    """As RGB, what is transparent over white."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        format_, image = image.format, image.convert("RGBA")
        seen = image.getchannel("A").getextrema()
        if seen == (0, 0) and format_ in _UNUSED_ALPHA:
            return image.convert("RGB")
        if seen != (_WHITE, _WHITE):
            changes.add("on_white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _told(content: bytes) -> str:
    """What the bytes may be."""
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content:
        return "an empty file"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "HEIC"
    return next((kind for first, kind in _NO_PICTURES.items() if start.startswith(first.lower())), "its content")
