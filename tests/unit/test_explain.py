import dataclasses
from pathlib import Path

import pytest

from masters_ray import config, explain
from masters_ray.cli import main
from masters_ray.config import SHIPPED, Config, keys
from masters_ray.explain import explained, planned, sentence
from tests.conftest import DEMO, ROOT

CONFS = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "conf").glob("[!bs]*/*.yaml"))
NEEDED = ["run.dir=x", "teacher.checkpoint=t", "student.checkpoint=s", "data.held_out.path=h"]
MINIMAL = """
run: {dir: "${oc.env:PLACE}/x", seed: 0}
data: {train: {path: t.jsonl}, held_out: {path: h.jsonl}}
teacher: {checkpoint: t}
student: {checkpoint: s}
"""


def test_each_value_has_its_origin_default_and_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/there")
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(MINIMAL)
    Path("more.yaml").write_text("learner: {workers: 2}\n")
    words = ["more.yaml", "learner.lora={rank: 4}", "growth=[{teacher: {checkpoint: g}, schedule: {step: 0.1}}]"]
    text = explained(config.load("c.yaml", words), "c.yaml", words, changed=True)
    assert (
        text
        == """\
run:
  # Directory of all that the run writes; on a cluster a path that every node sees.
  dir: ${oc.env:PLACE}/x  # = /there/x, c.yaml
data:
  # A source, or a list of them, whose questions are mixed in the seeded order.
  train:
    # File, pattern of names (*.parquet), folder, address (s3://, gs://), or id of a data set on the Hub.
    path: t.jsonl  # c.yaml
  # Questions that accuracy is measured on: a source, or a list.
  held_out:
    # File, pattern of names (*.parquet), folder, address (s3://, gs://), or id of a data set on the Hub.
    path: h.jsonl  # c.yaml
teacher:
  checkpoint: t  # c.yaml
# A model, and the replicas that hold it while rollouts are made.
student:
  checkpoint: s  # c.yaml
# Larger teachers of the same family, used one after the other, each with its schedule; the student continues.
growth:  # command line (default: [])
  - teacher:
      checkpoint: g
    schedule:
      step: 0.1
learner:
  workers: 2  # more.yaml (default: 1)
  # Low-rank adapters on the language model's linear layers, trained in place of the weights.
  lora:
    # 0: no adapters; the weights are trained.
    rank: 4  # command line (default: 0)
"""
    )
    whole = explained(config.load("c.yaml", words), "c.yaml", words)
    assert "  seed: 0  # c.yaml\n" in whole
    assert "  groups_per_step: 64  # default\n" in whole
    words = ["learner.workers=${oc.env:NONE,3}", "run.seed=${learner.workers}"]
    text = explained(config.load("c.yaml", words), "c.yaml", words, changed=True)
    assert "  workers: 3  # command line, ${oc.env:NONE,3} (default: 1)\n" in text
    assert "  seed: 3  # command line, ${learner.workers} (default: 0)\n" in text


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("file", [str(DEMO), *CONFS])
def test_what_is_printed_loads_again_as_the_same_configuration(file: str, changed: bool, tmp_path: Path) -> None:
    """With interpolations as they are written, mixtures of sources, anchors, several teachers."""
    words = [*NEEDED, *(["data.train.path=t"] if "conf/data" not in file else [])]
    before = config.load(file, words)
    (tmp_path / "again.yaml").write_text(explained(before, file, words, changed=changed))
    after = config.load(tmp_path / "again.yaml")
    assert dataclasses.asdict(after) == dataclasses.asdict(before)
    assert config.plain(after) == config.plain(before)


def test_sentences_are_those_of_the_schemas_source() -> None:
    assert sentence("learner.checkpoint_every") == "Optimizer steps between checkpoints."
    assert sentence("growth[].teacher.cpus") == sentence("teacher.cpus") == "CPUs that Ray reserves for each replica."
    assert sentence("data.train.fields.turns").startswith("Key of a dialogue (conversations, messages, texts, qa)")
    assert sentence("rollout.sampling") == "Sampling of rollouts; defaults are the paper's."
    assert sentence("learner.lora.alpha") == "Scales an adapter's product by alpha / rank."
    assert sentence("learner.workers") == ""
    assert {key for key in keys() if sentence(key)} > {"run.dir", "evaluation.examples"}


def test_the_plan_has_the_questions_and_steps_of_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.train.rows=100", "learner.groups_per_step=16", "rollout.online_fraction=0.2", "--changed"]
    words += ["learner.dtype=bfloat16", *(f"{one}.engine.dtype=bfloat16" for one in ("teacher", "student"))]
    assert main(["config", "conf/demo.yaml", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("""
# The plan: 100 questions, 16 a step
# stage  teacher                          mask ratio  questions  steps  online steps
#     0  examples/toy/pair/teacher               0.2         33      3             1
#     1  examples/toy/pair/teacher               0.1         33      3             0
#     2  examples/toy/pair/teacher                 0         34      3             1
""")


def test_questions_that_would_have_to_be_fetched_are_not_counted() -> None:
    loaded = config.load(DEMO, ["data.train.split=train", "data.train.rows=null", "schedule={max_ratio: 0, step: 0.1}"])
    why = "the Hub or a bucket would have to be read: set data.train_rows"
    assert list(planned(loaded)) == [
        f"# The plan: questions not counted ({why})",
        "# stage  teacher                          mask ratio  questions",
        "#     0  examples/toy/pair/teacher                 0      100 %",
    ]
    assert next(planned(config.load(DEMO, ["data.train={path: gone.jsonl, rows: null}"]))).startswith(
        "# The plan: questions not counted (gone.jsonl: does not exist"
    )


def test_what_is_missing_is_printed_and_complained_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "conf/pairs/qwen3_vl_8b_2b.yaml"]) == 1
    told = capsys.readouterr()
    assert "  dir: ???  # default\n" in told.out
    assert "run.dir: expected a value" in told.err


def test_a_name_that_is_not_here_is_looked_up_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file, more = "conf/pairs/qwen3_vl_8b_2b.yaml", "conf/machines/1x80gb.yaml"
    assert config.load(file, [more, *NEEDED, "data.train.path=t"]).cluster.gpu == "h100-80gb"
    assert main(["config", file, more]) == 1
    assert capsys.readouterr().err.startswith(
        f"{file} is that of the package, {SHIPPED / file}\n{more} is that of the package, {SHIPPED / more}\n"
    )
    (tmp_path / "conf" / "pairs").mkdir(parents=True)
    (tmp_path / file).write_text("cluster: {gpu: l4}\n")
    assert config.load(file, ["teacher.checkpoint=t", *NEEDED, "data.train.path=t"]).cluster.gpu == "l4"
    assert explain.explained(Config(), file, []).count("# default\n") > 50
