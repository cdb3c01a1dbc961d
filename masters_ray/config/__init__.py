"""The typed configuration.

YAML files in conf/ say only what differs from the schema's defaults; ``key=value`` words on the command line say what
differs from the file. ``load`` merges the three, lists every violation at once, and reads no file but the YAML.

A key is a field in schema.py: default, unit, bounds and ``KeyScope`` (types of fields.py). OmegaConf merges and follows
interpolations (load.py), pydantic checks each key (check.py), rules.py what keys must obey together.
"""

from masters_ray.config.check import scopes, violations
from masters_ray.config.fields import KeyScope, Written, as_written, joined
from masters_ray.config.load import load, read, to_yaml
from masters_ray.config.schema import *
