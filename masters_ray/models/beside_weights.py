"""Copies a checkpoint's files other than weights to a checkpoint with new weights: configuration, tokenizer, processor,
chat templates, licence. Needs no torch."""

import json
import re
import shutil
from pathlib import Path

_NOT_COPIED = re.compile(r"(^|/)\.|\.(safetensors|bin|pth?|gguf|onnx|onnx_data|h5|msgpack|index\.json|py)$")
"""Hidden files, weights and code."""
_CARD, _CARD_OF_SOURCE = "README.md", "README_of_base_model.md"


def copy(source: Path, target: Path, dtype: str) -> None:
    """Copies the files beside the weights byte for byte from ``source`` to ``target``. Sets ``dtype`` in config.json;
    the model card, whose figures are the source's, gets another name."""
    (target / "generation_config.json").unlink(missing_ok=True)  # transformers writes one that the source may not have
    for file in source.rglob("*"):
        name = str(file.relative_to(source))
        if file.is_file() and not _NOT_COPIED.search(name):
            copied = target / (_CARD_OF_SOURCE if name == _CARD else name)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)
    _set_dtype(target / "config.json", dtype)


def _set_dtype(file: Path, dtype: str) -> None:
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    content.setdefault("torch_dtype" if "torch_dtype" in content else "dtype", dtype)
    for part in (content, *(part for part in content.values() if isinstance(part, dict))):
        part.update({key: dtype for key in ("dtype", "torch_dtype") if part.get(key) is not None})
    if content != json.loads(text):
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
