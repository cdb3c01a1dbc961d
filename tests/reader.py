"""A directory in which the documentation's commands run as they are written: the project with other files beside it, as
a reader has them, and small."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from examples import easy_vqa
from tests import facts
from tests.conftest import PAIR, ROOT

SHAPES = ("Qwen3-VL-32B-Instruct", "Qwen3-VL-8B-Instruct", "Qwen3-VL-2B-Instruct")
"""Checkpoints of the Hub that are here with their sizes and without weights."""


def directory(folder: Path, written: Mapping[str, Any]) -> Path:
    """Returns a folder with links to the project's entries, a copy of conf/ with the reader's conf/mine.yaml, 48 + 24
    questions in data/ and checkpoints by their names on the Hub. written: file of conf/ → what is merged into it."""
    for entry in ROOT.iterdir():
        if entry.name not in ("conf", "runs", "data"):
            (folder / entry.name).symlink_to(entry)
    for file in (ROOT / "conf").rglob("*.yaml"):
        copied = folder / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    (folder / "runs").mkdir()
    (folder / easy_vqa.FOLDER).symlink_to(ROOT / easy_vqa.FOLDER)
    rows = [json.loads(line) for line in (ROOT / easy_vqa.FOLDER / "train.jsonl").read_text().splitlines()[:72]]
    for row in rows:
        row["image"] = str(ROOT / easy_vqa.FOLDER / row["image"])
    (folder / "data").mkdir()
    for name, some in (("train", rows[:48]), ("held_out", rows[48:])):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "data" / "train.json").write_text(json.dumps([_dialogue(row) for row in rows[:40]]))
    (folder / "conf" / "mine.yaml").write_bytes((ROOT / "conf" / "demo.yaml").read_bytes())
    for name, changes in written.items():
        merged = OmegaConf.merge(yaml.safe_load((folder / name).read_text()), changes)
        OmegaConf.save(merged, folder / name)
    for name in SHAPES:
        facts.checkpoint(name, folder / "Qwen", PAIR / "student")
    return folder


def _dialogue(row: dict[str, Any]) -> dict[str, Any]:
    """As LLaVA has it."""
    said = [{"from": "human", "value": f"<image>\n{row['question']}"}, {"from": "gpt", "value": row["answer"]}]
    return {"id": row["id"], "image": row["image"], "conversations": said}


def call(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as it stands, in bash."""
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    surroundings["PATH"] = f"{Path(sys.executable).parent}:{surroundings['PATH']}"
    surroundings["PYTHONPATH"] = str(ROOT)
    words = ["bash", "-euc", command]
    return subprocess.run(words, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=900, check=False)
