"""The shipped toy pair: a tiny Qwen3-VL teacher and student over easy-vqa's pictures, and how they are built."""

from __future__ import annotations

from pathlib import Path

PAIR = Path(__file__).parent / "pair"
"""Where the shipped pair lies: ``teacher/``, ``student/`` and ``manifest.json``."""
