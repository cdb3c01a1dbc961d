"""Where a checkpoint lies: a directory, or the Hub's cache, which may hold a part of it alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from masters_ray import weights
from masters_ray.errors import CheckpointError
from tests.conftest import PAIR

NAME, WEIGHTS = "org/tiny", "model.safetensors"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a cache of the Hub's client, without its weights."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    return shutil.copytree(PAIR / "student", model / "snapshots" / ("a" * 40), ignore=shutil.ignore_patterns(WEIGHTS))


def hub(monkeypatch: pytest.MonkeyPatch, deliver: Callable[[], None]) -> None:
    """Its client, whose downloads do this and bring what the cache holds then."""
    own = huggingface_hub.snapshot_download

    def download(name: str, **options: Any) -> str:
        if not options.get("local_files_only"):
            deliver()
        return own(name, local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_a_snapshot_in_part_is_completed_and_then_taken_from_the_cache(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    def deliver() -> None:
        downloads.append(1)
        shutil.copyfile(PAIR / "student" / WEIGHTS, snapshot / WEIGHTS)

    hub(monkeypatch, deliver)
    assert weights.locate_locally(NAME) is None
    assert [weights.locate(NAME) for _ in range(2)] == [snapshot] * 2
    assert len(downloads) == 1
    assert weights.check(snapshot) == []


def test_a_snapshot_that_stays_in_part_is_told_with_what_it_lacks(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, lambda: None)
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"org/tiny: .* without one.safetensors. Download it where"):
        weights.locate(NAME)


def test_a_model_that_the_hub_does_not_know_is_told(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver() -> None:
        raise OSError("404")

    hub(monkeypatch, deliver)
    with pytest.raises(CheckpointError, match="org/other: no such directory, and the model hub did not deliver it"):
        weights.locate("org/other")
