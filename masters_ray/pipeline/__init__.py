"""The driver of a run: its stages, from a configuration to a distilled student."""
