"""Whether checkpoints can do what a run does with them: be masked, be trained. Reads headers, not weights."""

from __future__ import annotations

import os
from pathlib import Path

from masters_ray.config import Config, Engine, MaskScope
from masters_ray.errors import Complaint
from masters_ray.parts import is_unknown, matrices_in, part_of
from masters_ray.schedule import ratios
from masters_ray.weight_files import headers, quantisation, read_config

_SHOWN = 3
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CACHED_SEQUENCES = 2
_LONGER_BY_NOTHING = frozenset({"default", "mrope", "su", "longrope", "llama3", "yarn", "deepseek_yarn"})
"""Scalings of positions whose factor max_position_embeddings holds already, or that have none."""


def student(folder: Path) -> list[Complaint]:
    """A quantised student cannot be trained."""
    packed = quantisation(folder)
    if packed is None:
        return []
    return [
        Complaint(
            where="student.checkpoint",
            expected="weights that can be trained: float32, float16 or bfloat16",
            found=f"{folder}, which is quantised: {packed}",
            remedy="Take the checkpoint that it was made of.",
        )
    ]


def teacher(config: Config, number: int, folder: Path) -> list[Complaint]:
    """A teacher that is masked at some stage must have matrices to mask, all of them known; number: from 0."""
    one = config.of_teacher(number)
    key = "teacher" if number == 0 else f"growth[{number - 1}].teacher"
    if not any(ratio > 0 for ratio, _ in ratios(one.schedule)) and config.learner.teacher == "stored":
        return []
    packed = quantisation(folder)
    if packed is not None:
        return [
            Complaint(
                where=f"{key}.checkpoint",
                expected="weights that can be masked: float32, float16 or bfloat16",
                found=f"{folder}, which is quantised: {packed}",
                remedy="Take the checkpoint that it was made of; a teacher whose ratios are all 0 may be quantised.",
            )
        ]
    held = headers(folder)
    parts = scope(one.teacher.mask)
    complaints = []
    if not any(matrices_in(name, entry.shape) for name, entry in held.items() if part_of(name) in parts):
        complaints.append(
            Complaint(
                where=f"{key}.mask",
                expected=f"matrices of {' or '.join(sorted(parts)) or 'some part'} in {folder}",
                found="none",
                remedy="A mask would do nothing: name other parts, or set all ratios to 0.",
            )
        )
    unknown = sorted(name for name, entry in held.items() if is_unknown(name, entry.shape))
    if unknown:
        matrices = sum(matrices_in(name, entry.shape) for name, entry in held.items())
        complaints.append(
            Complaint(
                where=f"{key}.checkpoint",
                expected="weights whose names say which part of the model they belong to",
                found=f"{len(unknown)} of {matrices} matrices in no known part: {', '.join(unknown[:_SHOWN])}",
                remedy="This model's family is not supported as a masked teacher: whether these belong to the masked "
                "parts cannot be told.",
            )
        )
    return complaints


def context(config: Config, name: str, folder: Path) -> list[Complaint]:
    """A model reads no longer sequences than it was made for; name: of ``config.models``."""
    asked, longest = config.models[name].engine.max_model_len, most_positions(folder)
    if longest is None or asked <= longest or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1":
        return []
    return [
        Complaint(
            where=f"{name}.engine.max_model_len",
            expected=f"at most {longest}, the max_position_embeddings of {folder}",
            found=str(asked),
            remedy=f"Set {name}.engine.max_model_len={longest}, or less.",
        )
    ]


def most_positions(folder: Path) -> int | None:
    """Tokens of the longest sequence that a model can read, as vLLM reckons it; None when config.json does not say."""
    whole = read_config(folder)
    text = whole.get("text_config") or whole
    stated = text.get("max_position_embeddings", whole.get("max_position_embeddings"))
    if not isinstance(stated, int):
        return None
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    held = kind in _LONGER_BY_NOTHING or "gemma3" in str(whole.get("model_type"))
    factor = None if held else scaling.get("factor")
    return int(stated * (factor or 1.0))


def cache_bytes(folder: Path, engine: Engine) -> int:
    """KV cache of an engine on a CPU when the configuration does not say: two sequences of ``max_model_len`` tokens, at
    least 64 MiB; 1 GiB for a model whose config.json does not say how much a token takes."""
    whole = read_config(folder)
    text = whole.get("text_config") or whole
    try:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        per_token = 2 * text["num_hidden_layers"] * heads * width * _BYTES[engine.dtype]
    except (KeyError, TypeError):
        return 2**30
    return max(2**26, _CACHED_SEQUENCES * engine.max_model_len * per_token)


def scope(mask: MaskScope) -> set[str]:
    """The parts that are masked."""
    return {name for name, chosen in vars(mask).items() if chosen}
