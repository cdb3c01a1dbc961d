"""What lies beside the weights of a checkpoint, for one with other weights: configuration, tokenizer, processor, chat
templates, licence, and a model card of its own. Needs no torch."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from masters_ray.progress import say

_KINDS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".spm")
_FOLDERS = ("additional_chat_templates", "licenses", "LICENSES")
_LEGAL = re.compile(r"(licen[cs]e|notice|copying|copyright|use_policy|acceptable)", re.IGNORECASE)
_ABOUT_WEIGHTS = re.compile(r".*\.index\.json|trainer_state\.json|training_args\..*|.*results\.json")
_CARD, _CARD_OF_SOURCE = "README.md", "README_of_base_model.md"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_LICENCE_LINE = re.compile(r"(license|license_name|license_link): *\S.*")


def copy(source: Path, target: Path, dtype: str) -> None:
    """Put them into ``target``, byte for byte; ``config.json`` says the number format of the new weights, and the
    source's model card stands beside a new one. What ``target`` has beside its weights is replaced.

    Code of the source is not copied, and that is said.
    """
    for file in _beside_weights(target):
        file.unlink()
    for file in _beside_weights(source):
        copied = target / file.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copied)
    card = source / _CARD
    if card.is_file():
        shutil.copyfile(card, target / _CARD_OF_SOURCE)
    (target / _CARD).write_text(_card(source), encoding="utf-8")
    _set_dtype(target / "config.json", dtype)
    if code := sorted(file.name for file in source.glob("*.py")):
        say(f"{target.name.removesuffix('.building')}: the code of {source} was not copied ({', '.join(code)})")


def _beside_weights(folder: Path) -> Iterator[Path]:
    files = [
        *folder.iterdir(),
        *(file for name in _FOLDERS if (folder / name).is_dir() for file in folder.glob(f"{name}/*")),
    ]
    for file in sorted(files):
        kept = file.suffix in _KINDS or _LEGAL.match(file.name)
        if file.is_file() and kept and file.suffix != ".py" and not _ABOUT_WEIGHTS.fullmatch(file.name):
            yield file


def _set_dtype(file: Path, dtype: str) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    parts = [content, *(part for part in content.values() if isinstance(part, dict))]
    named = [(part, key) for part in parts for key in ("dtype", "torch_dtype") if part.get(key) not in (None, dtype)]
    if not any(key in content for key in ("dtype", "torch_dtype")):
        named.append((content, "dtype"))
    for part, key in named:
        part[key] = dtype
    if named:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(source: Path) -> str:
    card = source / _CARD
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    licence = [line for line in (front[1].splitlines() if front else ()) if _LICENCE_LINE.fullmatch(line)]
    name = _name(source)
    head = [
        "---",
        f"base_model: {name}",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        *licence,
        "---",
    ]
    text = (
        f"# {name}, distilled\n\nThe weights of `{name}` after distillation by masters_ray. All that is beside them "
        "is that checkpoint's; so are its licence and its notices, which apply to these weights too.\n"
    )
    if card.is_file():
        text += (
            f"\nThe model card of `{name}`: [{_CARD_OF_SOURCE}]({_CARD_OF_SOURCE}). Its figures are not this model's.\n"
        )
    return "\n".join(head) + "\n\n" + text


def _name(source: Path) -> str:
    """The model id of a snapshot in the Hub's cache, or a directory's name."""
    in_cache = [part for part in source.parts if part.startswith("models--")]
    return in_cache[-1].removeprefix("models--").replace("--", "/") if in_cache else source.name
