"""What ``validate`` says of checkpoints whose own files do not fit each other, or not what is asked of them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from masters_ray import checks
from masters_ray.checks.pair import most_positions
from masters_ray.errors import ConfigError
from tests.builders import png
from tests.conftest import PAIR, ROOT

DEMO = ROOT / "conf" / "demo.yaml"
ROW = {"question": "what color?", "answer": "red", "image": "a.png"}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that make three rows a run's data."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "a.png").write_bytes(png())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(ROW | {"id": str(number)}) + "\n" for number in range(3)))
    found = [f"run.dir={tmp_path / 'run'}"]
    for name in ("train", "held_out"):
        found += [f"data.{name}.format=jsonl", f"data.{name}.path={rows}", f"data.{name}.rows=null"]
    return found


def refused(words: list[str], folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        checks.validate(DEMO, [*words, f"student.checkpoint={folder}"], all_rows=False)
    return next(str(one) for one in caught.value.complaints if one.where == "student.checkpoint")


def changed(folder: Path, **change: Any) -> Path:
    """A copy of the shipped student, with other entries in config.json."""
    shutil.copytree(PAIR / "student", folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | change))
    return folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": None}, "names no architectures"),
        ({"image_token_id": 6, "video_token_id": 5}, "pictures stand at token 6, and the processor puts none there"),
    ],
)
def test_a_config_json_that_does_not_fit_its_processor(
    change: dict[str, Any], told: str, tmp_path: Path, words: list[str]
) -> None:
    assert told in refused(words, changed(tmp_path / "student", **change))


@pytest.mark.parametrize("name", ["patch_size", "temporal_patch_size", "merge_size"])
def test_a_processor_that_cuts_other_patches_than_the_model_has(name: str, tmp_path: Path, words: list[str]) -> None:
    folder = shutil.copytree(PAIR / "student", tmp_path / "student")
    [file] = [one for one in folder.glob("*processor_config.json") if f'"{name}"' in one.read_text()]
    doubled = re.sub(rf'("{name}": )(\d+)', lambda found: f"{found[1]}{int(found[2]) * 2}", file.read_text(), count=1)
    file.write_text(doubled)
    assert f"cuts pictures with {name}" in refused(words, folder)


def test_no_engine_is_asked_for_more_tokens_than_its_model_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    keys = ("max_model_len", "max_num_batched_tokens")
    words = [f"{model}.engine.{key}=4097" for model in ("teacher", "student") for key in keys]
    with pytest.raises(ConfigError) as caught:
        checks.load(DEMO, words)
    found = {one.where: str(one) for one in caught.value.complaints}
    assert "at most 4096" in found["teacher.engine.max_model_len"]
    assert "student.engine.max_model_len=4096" in found["student.engine.max_model_len"]
    text = json.loads((PAIR / "student" / "config.json").read_text())["text_config"]
    for kind, longest in (("linear", 8192), ("yarn", 4096)):
        scaled = text | {"rope_parameters": {"rope_type": kind, "factor": 2.0}}
        assert most_positions(changed(tmp_path / kind, text_config=scaled)) == longest
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    checks.load(DEMO, words)
