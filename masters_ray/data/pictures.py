"""Encoded pictures: a look at the header, the pixels, and why a picture cannot be used."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from PIL import Image

from masters_ray.config import Data
from masters_ray.records import Picture, Problem

DEFAULT_MAX_PIXELS = Data.max_picture_pixels
"""Pixels of the largest picture that a source may hold, unless the configuration says otherwise."""
PILLOW_MAX_PIXELS = 178_956_970
"""Pillow opens no picture with more pixels."""

# From half of that on Pillow warns; a limit that was set says what is too large. For the whole process, because
# warnings.catch_warnings around each picture is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise for content that is not what its format demands."""


class BadPictureError(Exception):
    """A picture that is missing, broken or too large; the message is the reason."""


def check(picture: Picture, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """The picture with its digest, if it is there, of a known format, and of at most ``max_pixels`` pixels.

    Raises BadPictureError. What passes can still be broken further on.
    """
    with _opened(picture, max_pixels):
        return replace(picture, digest=hashlib.sha256(picture.read()).hexdigest())


def decode(picture: Picture, max_pixels: int = PILLOW_MAX_PIXELS) -> Image.Image:
    """The picture as RGB pixels; one with more than ``max_pixels`` is refused by its header, before it is decoded.

    Without a limit of its own a call takes whatever a source was allowed to hold. Raises BadPictureError.
    """
    with _opened(picture, max_pixels) as image:
        return image.convert("RGB")


def with_embedded_pictures(problem: Problem) -> Problem:
    """The same problem with its pictures' encoded bytes in memory. Raises BadPictureError when one cannot be read."""
    try:
        pictures = tuple(Picture(data=picture.read(), digest=picture.digest) for picture in problem.pictures)
    except FileNotFoundError as error:
        raise BadPictureError(f"picture {error.filename} does not exist") from None
    except OSError as error:
        raise BadPictureError(f"picture {error.filename} cannot be read: {error.strerror}") from error
    return replace(problem, pictures=pictures)


@contextmanager
def _opened(picture: Picture, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read; what goes wrong inside the block becomes a BadPictureError too."""
    name = f"picture {picture.path}" if picture.path else "embedded picture"
    try:
        with _content(picture) as content, Image.open(content) as image:
            if image.width * image.height > max_pixels:
                raise BadPictureError(
                    f"{name} has {image.width} x {image.height} pixels; data.max_picture_pixels allows {max_pixels}"
                )
            yield image
    except FileNotFoundError:
        raise BadPictureError(f"{name} does not exist") from None
    except Image.DecompressionBombError:
        raise BadPictureError(
            f"{name} has more than {PILLOW_MAX_PIXELS} pixels; data.max_picture_pixels allows {max_pixels}"
        ) from None
    except _BROKEN as error:
        raise BadPictureError(f"{name} cannot be decoded: {error}") from error


def _content(picture: Picture) -> IO[bytes]:
    if picture.data is None and picture.path is not None:
        return Path(picture.path).open("rb")
    return io.BytesIO(picture.read())
