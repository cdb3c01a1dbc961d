"""Copies a checkpoint's files other than weights to a checkpoint with new weights: configuration, tokenizer, processor,
chat templates, licence. Writes a new model card. Needs no torch."""

import json
import re
import shutil
from pathlib import Path

_KINDS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".spm")
_FOLDERS = ("additional_chat_templates", "licenses", "LICENSES")
_LEGAL = re.compile(r"(licen[cs]e|notice|copying|copyright|use_policy|acceptable)", re.IGNORECASE)
_ABOUT_WEIGHTS = re.compile(r".*\.index\.json|trainer_state\.json|.*results\.json")
_CARD_OF_SOURCE = "README_of_base_model.md"
_CARD = f"""\
---
base_model: {{name}}
library_name: transformers
pipeline_tag: image-text-to-text
---

# {{name}}, distilled

The weights of `{{name}}` after distillation by masters_ray. All that is beside them is that checkpoint's; so are its \
licence and its notices, which apply to these weights too. Its model card is {_CARD_OF_SOURCE}, if it had one; the \
figures there are not this model's.
"""


def copy(source: Path, target: Path, dtype: str) -> None:
    """Copies the files beside the weights byte for byte from ``source`` to ``target``, after removing the target's own.
    Sets ``dtype`` in ``config.json``; writes a new model card and keeps the source's under another name. Does not copy
    Python code."""
    for file in _beside_weights(target):
        file.unlink()
    for file in _beside_weights(source):
        copied = target / file.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copied)
    if (card := source / "README.md").is_file():
        shutil.copyfile(card, target / _CARD_OF_SOURCE)
    (target / "README.md").write_text(_CARD.format(name=_name(source)), encoding="utf-8")
    _set_dtype(target / "config.json", dtype)


def _beside_weights(folder: Path) -> list[Path]:
    found = [*folder.glob("*"), *(file for name in _FOLDERS for file in folder.glob(f"{name}/*"))]
    kept = [file for file in found if file.suffix in _KINDS or (_LEGAL.match(file.name) and file.suffix != ".py")]
    return [file for file in kept if file.is_file() and not _ABOUT_WEIGHTS.fullmatch(file.name)]


def _name(source: Path) -> str:
    """Returns the model id of a checkpoint in the Hub's cache, the name of another directory."""
    in_cache = [part for part in source.parts if part.startswith("models--")]
    return in_cache[-1].removeprefix("models--").replace("--", "/") if in_cache else source.name


def _set_dtype(file: Path, dtype: str) -> None:
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    content.setdefault("torch_dtype" if "torch_dtype" in content else "dtype", dtype)
    for part in (content, *(part for part in content.values() if isinstance(part, dict))):
        part.update({key: dtype for key in ("dtype", "torch_dtype") if part.get(key) is not None})
    if content != json.loads(text):
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
