"""Writes the model card of a trained student (and of its adapters), for the Hub and for whoever finds the directory."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from masters_ray.files import write_text
from masters_ray.models.weights import BASE_CARD
from masters_ray.records import StepMetrics
from masters_ray.report.render import render
from masters_ray.report.summary import Summary

_TAGS = ["masters", "masters-ray", "knowledge-distillation", "grpo", "vision-language-model"]


def write(folder: Path, summary: Summary, metrics: Sequence[StepMetrics]) -> None:
    """Writes README.md into the directories of a run's student and adapters, those that exist. The licence is what the
    base model's card states."""
    for name, relation, library in (("student", "finetune", "transformers"), ("student_adapters", "adapter", "peft")):
        if (folder / name).is_dir():
            sources = yaml.safe_load(summary.config)["data"]["train"]
            sources = sources if isinstance(sources, list) else [sources]
            front = _stated(folder / "student" / BASE_CARD)
            front |= {"library_name": library, "pipeline_tag": "image-text-to-text", "tags": _TAGS}
            if _on_hub(summary.student.checkpoint):
                front |= {"base_model": summary.student.checkpoint, "base_model_relation": relation}
            if datasets := [path for path in dict.fromkeys(one["path"] for one in sources) if _on_hub(path)]:
                front["datasets"] = datasets
            values = {"summary": summary, "metrics": metrics, "front": front, "sources": sources}
            text = render(__package__, "card.md.jinja", adapters=relation == "adapter", **values)
            write_text(folder / name / "README.md", f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n{text}")


def _stated(card: Path) -> dict[str, Any]:
    """Returns what a model card states of its licence; {} without a card, or where its metadata cannot be read."""
    found = re.match(r"---\n(.*?\n)---\n", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
    try:
        content = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return {}
    names = ("license", "license_name", "license_link") if isinstance(content, dict) else ()
    return {name: content[name] for name in names if name in content}


def _on_hub(name: str) -> bool:
    """Whether a checkpoint or data source is an id of the Hub rather than a path."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()
