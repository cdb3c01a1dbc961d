"""Sources of problems: jsonl or parquet, in a deterministic order, bad rows set aside with their reason."""

from masters_ray.data.loading import Loaded, load, refuse_too_many, write_quarantine
from masters_ray.data.overlap import Overlap, overlap
from masters_ray.data.pictures import (
    CHANGES,
    DEFAULT_MAX_PIXELS,
    BadPictureError,
    check,
    decode,
    with_embedded_pictures,
)
from masters_ray.data.pixels import PILLOW_MAX_PIXELS
from masters_ray.data.sources import in_place_of
from masters_ray.data.spool import Problems
from masters_ray.data.texts import NO_SPECIAL, special_in

__all__ = [
    "CHANGES",
    "DEFAULT_MAX_PIXELS",
    "NO_SPECIAL",
    "PILLOW_MAX_PIXELS",
    "BadPictureError",
    "Loaded",
    "Overlap",
    "Problems",
    "check",
    "decode",
    "in_place_of",
    "load",
    "overlap",
    "refuse_too_many",
    "special_in",
    "with_embedded_pictures",
    "write_quarantine",
]
