import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from masters_ray import checks, cluster, store
from masters_ray.config import Config
from masters_ray.pipeline.run_dir import RunDirectory
from masters_ray.studies import judge_audit, mask_scan, sample, study
from tests.e2e.runs import SMALL, long_form
from tests.study_pages import check_audit, check_scan, check_study

pytestmark = pytest.mark.e2e
DEMO = "conf/demo.yaml"


@pytest.fixture(autouse=True)
def no_other_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def config(folder: Path) -> Config:
    """Of a run whose stores lie elsewhere."""
    return checks.load(DEMO, [*SMALL, f"run.dir={folder}", f"rollout.store={folder}/stores"])


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_masks_are_scanned(tmp_path: Path) -> None:
    """Once finished, the same call makes nothing anew and needs no engine."""
    scan = sample(config(tmp_path), "mask-scan", 8, [0.9, 0.0])
    with cluster.connected(scan.cluster):
        page = mask_scan.scan(scan, RunDirectory(scan), DEMO)
        assert page.read_text().count("<svg") == 3
        before = read(tmp_path / "mask-scan-8" / "mask_scan.json")
        mask_scan.scan(scan, RunDirectory(scan), DEMO)
        assert read(tmp_path / "mask-scan-8" / "mask_scan.json") == before
    check_scan(tmp_path / "mask-scan-8")
    strong, none = before["ratios"]
    assert (strong["ratio"], round(strong["sparsity"], 3), none["sparsity"]) == (0.9, 0.9, 0.0)
    assert strong["teacher_right"]["value"] < none["teacher_right"]["value"], "nine tenths of the weights are missed"
    assert set(none["teacher_right_by_kind"]) == {"colour", "shape", "place"}
    assert all(kind["low"] <= kind["value"] <= kind["high"] for kind in none["teacher_right_by_kind"].values())
    assert 0 < none["jsd"]["low"] <= none["jsd"]["value"] <= none["jsd"]["high"] < 0.7
    assert set(none["jsd_by_source"]) == {"teacher", "student"}
    first, last = (
        [answer.judged.answer.token_ids for answer in row.answers if answer.judged.answer.source == "student"]
        for row in (next(iter(store.read(tmp_path / "mask-scan-8" / "rollouts" / f"stage-{n}"))) for n in (0, 1))
    )
    assert first == last, "the student writes once"
    assert not (tmp_path / "stores").exists(), "the run's own stores are not touched"


@long_form
def test_judges_are_audited(tmp_path: Path) -> None:
    audit = judge_audit.audit_config(config(tmp_path), 6, 0.0)
    with cluster.connected(audit.cluster):
        judge_audit.audit(audit, RunDirectory(audit), DEMO)
    found = read(tmp_path / "judge-audit-6" / "judge_audit.json")
    judges = {one["name"]: one for one in found["judges"]}
    assert found["answers"] == 6 * 8
    check_audit(tmp_path / "judge-audit-6")
    assert judges["student"]["unjudged"] <= 2 and judges["student"]["consistency"]["value"] > 0.9
    assert judges["student"]["seconds_per_answer"] > 0
    shares = {(pair["first"], pair["second"], pair["of"]): pair["share"] for pair in found["pairs"]}
    assert shares["student", "rule", "all"] > 0.85, "the shipped student was taught to judge"


@long_form
def test_variants_share_rollouts_and_are_compared_with_the_reference(tmp_path: Path) -> None:
    changes = {key: yaml.safe_load(value) for key, value in (word.split("=") for word in SMALL)}
    content = {
        "base": DEMO,
        "dir": str(tmp_path / "study"),
        "seeds": [3],
        "changes": changes | {"data.train.rows": 24},
        "reference": "whole",
        "variants": {"whole": {}, "distillation": {"learner.policy_weight": 0, "learner.updates_per_step": 2}},
    }
    (file := tmp_path / "study.yaml").write_text(json.dumps(content))
    page = study.run(study.read(str(file)))
    whole, other = (tmp_path / "study" / name / "seed-3" for name in ("whole", "distillation"))
    assert (whole / "rollouts").is_dir() and not (other / "rollouts").exists()
    assert (other / "evaluation" / "teacher.json").read_bytes() == (whole / "evaluation" / "teacher.json").read_bytes()
    first = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (whole, other)]
    assert first[0]["jsd"] == pytest.approx(first[1]["jsd"], rel=1e-5), "the same rows, before the first update"
    assert first[0]["loss"] != first[1]["loss"]
    _, outcome = read(tmp_path / "study" / "study.json")["outcomes"]
    assert outcome["seconds"]["value"] == read(other / "summary.json")["phases"]["learner"]
    assert "distillation" in page.read_text()
    check_study(tmp_path / "study")
