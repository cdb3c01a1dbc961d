"""The typed configuration.

YAML files in conf/ say only what differs from the schema's defaults; ``key=value`` words on the command line say what
differs from the file. ``load`` merges the three, lists every violation at once, and reads no file but the YAML.
"""

from masters_ray.config.loading import as_dict, known_keys, load, read, to_yaml
from masters_ray.config.rules import violations
from masters_ray.config.schema import (
    Aggregation,
    Cluster,
    Config,
    CutAnswers,
    Data,
    DataSource,
    Difficulty,
    Engine,
    Growth,
    Judge,
    JudgedBy,
    KlEstimator,
    Learner,
    Lora,
    MaskScope,
    Part,
    Reward,
    Rollout,
    Rule,
    Sampling,
    Schedule,
    ScheduledStage,
    Student,
    Teacher,
    Transfer,
)
from masters_ray.config.written import Written, as_written, joined

__all__ = [
    "Aggregation",
    "Cluster",
    "Config",
    "CutAnswers",
    "Data",
    "DataSource",
    "Difficulty",
    "Engine",
    "Growth",
    "Judge",
    "JudgedBy",
    "KlEstimator",
    "Learner",
    "Lora",
    "MaskScope",
    "Part",
    "Reward",
    "Rollout",
    "Rule",
    "Sampling",
    "Schedule",
    "ScheduledStage",
    "Student",
    "Teacher",
    "Transfer",
    "Written",
    "as_dict",
    "as_written",
    "joined",
    "known_keys",
    "load",
    "read",
    "to_yaml",
    "violations",
]
