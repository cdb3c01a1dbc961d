"""The questions of a run, as they are loaded for both of its models."""

import json
import shutil
from pathlib import Path

from masters_ray import config as configuration
from masters_ray.pipeline import inputs
from tests.conftest import PAIR, ROOT
from tests.sources import good, jsonl

DEMO = ROOT / "conf" / "demo.yaml"


def test_questions_that_hold_a_special_token_of_either_model_are_set_aside(tmp_path: Path) -> None:
    teacher = shutil.copytree(PAIR / "teacher", tmp_path / "teacher")
    settings = json.loads((teacher / "tokenizer_config.json").read_text())
    (teacher / "tokenizer_config.json").write_text(json.dumps(settings | {"eot_token": "<end_of_utterance>"}))
    rows = [good(1), good(2, question="<end_of_utterance>"), good(3, answer="<|im_end|>")]
    path = jsonl(tmp_path, rows).path
    words = [f"data.{part}.{key}" for part in ("train", "held_out") for key in (f"path={path}",)]
    config = configuration.load(DEMO, [*words, f"teacher.checkpoint={teacher}", "data.max_quarantined_share=0.9"])
    for loaded in inputs.load(config, tmp_path / "data"):
        assert [one.id for one in loaded] == ["q1"]
        reasons = [one.reason.split(" is a ")[0] for one in loaded.rejected]
        assert reasons == ["question: '<end_of_utterance>'", "answer: '<|im_end|>'"]
    assert sorted(file.name for file in (tmp_path / "data").glob("*.spool")) == ["held_out.spool", "train.spool"]
