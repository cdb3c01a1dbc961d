"""The typed configuration.

YAML files in conf/ say only what differs from the schema's defaults; ``key=value`` words on the command line say what
differs from the file. ``load`` merges the three, lists every violation at once, and reads no file but the YAML.

A key is a field in schema.py: default, unit, bounds and ``KeyScope`` (types of fields.py). OmegaConf merges and follows
interpolations (load.py), pydantic checks each key (check.py), rules.py what keys must obey together.
"""

from masters_ray.config.check import scopes as scopes
from masters_ray.config.check import violations as violations
from masters_ray.config.fields import KeyScope as KeyScope
from masters_ray.config.load import load as load
from masters_ray.config.load import read as read
from masters_ray.config.load import to_yaml as to_yaml
from masters_ray.config.schema import Aggregation as Aggregation
from masters_ray.config.schema import Cluster as Cluster
from masters_ray.config.schema import Config as Config
from masters_ray.config.schema import CutAnswers as CutAnswers
from masters_ray.config.schema import Data as Data
from masters_ray.config.schema import DataSource as DataSource
from masters_ray.config.schema import Difficulty as Difficulty
from masters_ray.config.schema import Engine as Engine
from masters_ray.config.schema import Growth as Growth
from masters_ray.config.schema import Judge as Judge
from masters_ray.config.schema import JudgedBy as JudgedBy
from masters_ray.config.schema import KlEstimator as KlEstimator
from masters_ray.config.schema import Learner as Learner
from masters_ray.config.schema import Lora as Lora
from masters_ray.config.schema import MaskScope as MaskScope
from masters_ray.config.schema import Part as Part
from masters_ray.config.schema import Reward as Reward
from masters_ray.config.schema import Rollout as Rollout
from masters_ray.config.schema import Rule as Rule
from masters_ray.config.schema import Sampling as Sampling
from masters_ray.config.schema import Schedule as Schedule
from masters_ray.config.schema import ScheduledStage as ScheduledStage
from masters_ray.config.schema import Student as Student
from masters_ray.config.schema import Teacher as Teacher
from masters_ray.config.schema import Transfer as Transfer
from masters_ray.config.written import Written as Written
from masters_ray.config.written import as_written as as_written
from masters_ray.config.written import joined as joined
