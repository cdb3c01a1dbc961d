"""A pair whose language weights were made by pretraining: SmolLM2-135M inside Qwen2.5-VL, over easy-vqa's pictures."""

from __future__ import annotations
