"""The typed configuration. YAML files in conf/ hold only what differs from the schema's defaults; ``key=value``
overrides hold what differs from the file. A key is a field in schema.py, of data in data_schema.py, with default, unit,
bounds and ``KeyScope`` (types in fields.py). OmegaConf merges and resolves interpolations, pydantic checks each key
(load.py), rules.py checks rules across keys."""

from masters_ray.config.data_schema import *
from masters_ray.config.fields import KeyScope, Written, as_written
from masters_ray.config.load import SHIPPED, keys, load, located, plain, read, scopes, to_yaml, violations
from masters_ray.config.schema import *
