"""Reads sources of any layout into problems in a seeded order; sets bad rows aside with their reason."""

from masters_ray.data.loading import Overlap, count, load, overlap, reasons, refuse_too_many
from masters_ray.data.pictures import PILLOW_MAX_PIXELS, check, decode, with_embedded_pictures
from masters_ray.data.spool import Problems
from masters_ray.data.texts import NO_SPECIAL, BadPictureError, special_in
