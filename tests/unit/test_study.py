from __future__ import annotations

import json
from pathlib import Path

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.studies import study as studies
from masters_ray.studies import study_page
from tests.conftest import ROOT

TEXT = """
base: conf/demo.yaml
dir: {dir}
seeds: [0, 1]
changes: {{data.train.rows: 48, learner: {{groups_per_step: 8}}}}
reference: whole
variants:
  whole: {{}}
  No mask!: {{schedule: {{max_ratio: 0}}}}
"""


def written(tmp_path: Path, text: str = TEXT) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(text.format(dir=tmp_path / "runs"))
    return str(file)


def test_every_variant_is_a_run_of_its_own_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = studies.read(written(tmp_path))
    configs = dict(studies._configs(study))
    assert list(configs) == [("whole", 0), ("whole", 1), ("No mask!", 0), ("No mask!", 1)]
    masked, plain = configs["whole", 1], configs["No mask!", 1]
    assert (masked.schedule.max_ratio, plain.schedule.max_ratio) == (0.2, 0.0)
    assert (plain.run.seed, plain.data.train.rows, plain.learner.groups_per_step) == (1, 48, 8)
    assert plain.run.dir == str(tmp_path / "runs" / "no-mask" / "seed-1")


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "study").glob("*.yaml")), ids=lambda file: file.name)
def test_every_study_in_conf_has_valid_variants_and_changes_no_unknown_key(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    study = studies.read(str(file))
    for changes in study.variants.values():
        words = [f"{key}={json.dumps(value)}" for key, value in (study.changes | changes).items()]
        configuration.load(study.base, words)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("reference: whole", "reference: nobody", "reference .*expected one of whole, No mask!"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds .*different whole numbers"),
        ("seeds: [0, 1]", "seedz: [0, 1]", "seedz .*unknown key(.|\n)*seeds .*expected a list"),
        ("No mask!", "Whole", "names that differ in letters and digits"),
        ("No mask!", "whole", "duplicate key whole"),
        ("schedule: {{max_ratio: 0}}", "schedule: {{max_ration: 0}}", "max_ration .*variant No mask!"),
        ("schedule: {{max_ratio: 0}}", "rollout.store: /x", "rollout.store, variant No mask!"),
        ("base: conf/demo.yaml", "base: conf/none.yaml", "none.yaml.*no such file"),
        ("variants:", "variants: [", "expected a study in YAML"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(
    old: str, new: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=told):
        dict(studies._configs(studies.read(written(tmp_path, TEXT.replace(old, new)))))


def finished(folder: Path, correct: list[int], jsd: float, first: int) -> None:
    (folder / "evaluation").mkdir(parents=True)
    value = sum(correct) / len(correct)
    summary = {"accuracy": {"student_after": {"value": value}}, "learner": {"seconds": 10.0}}
    (folder / "summary.json").write_text(json.dumps(summary))
    steps = [{"step": step, "jsd": 1.0 if step < 18 else jsd} for step in range(20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    marks = [{"id": str(index), "correct": bool(one)} for index, one in enumerate(correct, first)]
    (folder / "evaluation" / "student_after.json").write_text(json.dumps(marks))


def test_differences_are_paired_by_seed_and_by_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = studies.read(written(tmp_path))
    configs = dict(studies._configs(study))
    right = {("whole", 0): 8, ("whole", 1): 6, ("No mask!", 0): 7, ("No mask!", 1): 5}
    for place, config in configs.items():
        first_question = 7 * place[1]  # every seed asks other held-out questions; three are asked by both
        finished(Path(config.run.dir), [1] * right[place] + [0] * (10 - right[place]), 0.25, first_question)
    whole, plain = studies.outcomes(study, configs)
    assert whole.accuracy.value == pytest.approx(0.7)
    assert whole.difference.value == 0.0
    assert plain.difference.value == pytest.approx(-0.1)
    assert plain.difference.high - plain.difference.low < 1e-9, "the seeds' own spread is gone"
    assert plain.difference_by_question.value == pytest.approx(-0.1)
    assert plain.difference_by_question.n == 17
    assert plain.difference_by_question.low < -0.1 < plain.difference_by_question.high
    assert plain.jsd.value == 0.25
    lines = studies.markdown(study, [whole, plain])
    assert lines[-2].startswith("| whole | 70.0 | ")
    assert lines[-1].startswith("| No mask! | 60.0 | ") and " | -10.0 | -10.0 to -10.0 | " in lines[-1]
    page = study_page.write(tmp_path / "study.html", study, [whole, plain]).read_text()
    assert "schedule.max_ratio=0" in page and page.count("<svg") == 1
