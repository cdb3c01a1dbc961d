"""From a configuration to a distilled student: the stages, and the driver that puts them in order."""
