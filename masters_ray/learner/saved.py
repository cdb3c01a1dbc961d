"""A DeepSpeed engine's own files: written, and read without running what a file may name.

They are pickles, which name the functions that rebuild them, so that a changed one could name any. DeepSpeed has
torch.load call whatever they name; here torch takes tensors, plain values, and the classes that DeepSpeed writes.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from masters_ray.errors import LearnerError

_TAG = "student"
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def save(engine: Any, folder: Path, state: dict[str, Any]) -> None:
    """This rank's part: optimizer, trained weights, and ``state`` (tensors and plain values)."""
    engine.save_checkpoint(str(folder), tag=_TAG, client_state=state, save_latest=False, exclude_frozen_parameters=True)


def load(engine: Any, folder: Path) -> dict[str, Any]:
    """Everything that ``save`` wrote, into the engine. Returns its ``state``. Raises LearnerError for a file that would
    run code."""
    with _without_code(folder):
        _, state = engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
    return dict(state)


@contextmanager
def _without_code(folder: Path) -> Iterator[None]:
    """What torch.load does inside the block, whatever it is asked for."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise LearnerError(
            f"{folder}: expected tensors, plain values and DeepSpeed's own, found "
            f"{named[1] if named else str(error).splitlines()[0]}. Nothing of it was run: this is no checkpoint of the "
            f"learner's. Delete {folder.parent} to train from the start."
        ) from error
    finally:
        del os.environ[_FORCE]
        os.environ |= {name: value for name, value in before.items() if value is not None}
