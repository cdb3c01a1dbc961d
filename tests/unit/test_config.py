from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from masters_ray.config import KeyScope, load, scopes, violations
from masters_ray.config.fields import seconds_of
from masters_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = """
run: {dir: runs/x}
data: {train: {path: train.jsonl}, held_out: {path: test.jsonl}}
teacher: {checkpoint: t}
student: {checkpoint: s}
"""

# Words that are refused by themselves, each for its own key: every form of a value, and bounds that are not 0 or 1.
REFUSED = """
run.seed=-1 run.seed=x run.seed=1.5 run.seed=null run.seed=[1] run.dir=runs/what? run.dir=[a] cluster.local_cpus=0
cluster.grows=maybe data.train.answer_is=csv data.max_quarantined_share=1.5 data.max_picture_pixels=178956971
teacher.checkpoint=runs/* student.checkpoint=a?b teacher.replicas=two teacher.cpus=inf teacher.mask.vision=perhaps
teacher.engine.max_model_len=1000 teacher.engine.max_num_batched_tokens=100 student.engine.gpu_memory_utilization=1.1
student.engine=x judge.of_teacher=nobody reward.alpha=nan rollout.sampling.temperature=0 rollout.sampling.top_p=1.01
rollout.sampling.top_k=0 rollout.sampling.top_k=-2 rollout.online_fraction=1.5 rollout.max_wait_seconds=-.inf
rollout.store=??? rollout.reuse=abc schedule.max_ratio=1 schedule.step=0 schedule.step=0.15 schedule.stages=3 learner=3
learner=null learner.workrs=2 leaner.workers=2 zzz=1 run.dir.x=1 growth[].x=1 learner.gpus=2 learner.gpus=0.5
learner.zero_stage=4 learner.zero_stage=0 learner.frozen=[language,vision,projector,embeddings,lm_head]
learner.learning_rate=fast learner.clip_epsilon=1 learner.max_logprob_gap=-1 evaluation.examples=-1 growth=3
run.dir=${nope} run.dir=${a run.seed=${oc.env:HOME} rollout.store=${oc.env:MASTERS_UNSET} learner.offload=${run.dir}
data.train.path=${data.train.path} run.stop_after=soon run.stop_after=90 run.stop_after=0s run.stop_after=5m1h
evaluation.every=0 evaluation.every=often evaluation.every=-5 evaluation.questions=0 learner.keep=first
"""
# Words -> the keys that are complained of.
TOGETHER = """
rollout.teacher_answers=1|rollout.student_answers=0 -> rollout.teacher_answers + rollout.student_answers
teacher.gpus=0.5|teacher.tensor_parallel=2 -> teacher.gpus
data.train.path=null -> data.train.path
reward.rho=0.5 -> judge.reasoning
judge.reasoning=true|judge.of_teacher=rule -> judge.reasoning
learner.policy_weight=0|learner.jsd_weight=0 -> learner.policy_weight
learner.offload=optimizer|learner.zero_stage=0|learner.dtype=float32 -> learner.zero_stage
learner.offload=everything -> learner.zero_stage
learner.keep=best -> evaluation.every
learner.lora.rank=4|learner.frozen=[language] -> learner.frozen
learner.frozen=[vision,wings] -> learner.frozen[1]
rollout.online_fraction=1|rollout.student_refresh=stage -> rollout.student_refresh
rollout.online_fraction=1|learner.dtype=float32 -> student.engine.dtype
rollout.online_fraction=1|rollout.weight_transfer=nccl|learner.gpus=1 -> rollout.weight_transfer
rollout.sampling.max_tokens=9000 -> student.engine.max_model_len|teacher.engine.max_model_len
schedule.max_ratio=1.2|schedule.step=0.3 -> schedule.max_ratio
schedule.stages=[{ratio: nan}] -> schedule.stages[0].ratio
schedule.stages=[{}] -> schedule.stages[0].ratio
schedule.stages=[{ratio: 0.2, share: 0.5}, {ratio: 0}] -> schedule.stages
schedule.stages=[{ratio: 0.2, share: 1}]|schedule.stage_data=all -> schedule.stages
rollout.reuse=[ok,[a]] -> rollout.reuse[1]
rollout.reuse=['${a'] -> rollout.reuse[0]
growth=[{}] -> growth[0].teacher.checkpoint
growth=[{teacher: {checkpoint: '${a'}}] -> growth[0].teacher.checkpoint
growth=[{teacher: {checkpoint: 'g*'}, scedule: 1}] -> growth[0].scedule|growth[0].teacher.checkpoint
growth=[{teacher: {checkpoint: g, replicas: two}}] -> growth[0].teacher.replicas
growth=[{teacher: {checkpoint: g, mask: {language: no}}}] -> growth[0].teacher.mask
growth=[{teacher: {checkpoint: g}, schedule: {step: 0.15}}] -> growth[0].schedule.step
teacher.mask.language=false -> teacher.mask
run.dir=???|rollout.store=${run.dir}/x -> rollout.store|run.dir
rollout.store=${rollout.reuse} -> rollout.store
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def write(folder: Path, text: str) -> Path:
    file = folder / "c.yaml"
    file.write_text(text)
    return file


def complaints(file: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(file, list(overrides))
    found = {complaint.where: str(complaint) for complaint in caught.value.complaints}
    assert len(found) == len(caught.value.complaints)
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda file: file.name)
def test_every_file_in_conf_is_valid_and_says_its_hardware_time_and_purpose(file: Path) -> None:
    head = "\n".join(file.read_text().splitlines()[:4])
    assert all(word in head for word in ("Hardware:", "Time:", "Purpose:"))
    if file.parent.name == "conf":
        load(file)


def test_defaults_file_and_words_are_merged_in_that_order(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "learner: {workers: 2, groups_per_step: 32}\n")
    config = load(file, ["learner.groups_per_step=16", "rollout.sampling={top_p: 1}"])
    assert (config.learner.workers, config.learner.groups_per_step) == (2, 16)
    assert (config.rollout.sampling.top_p, config.rollout.sampling.top_k) == (1.0, 50)


def test_the_defaults_are_the_papers_values_and_what_is_decided_where_it_gives_none(file: Path) -> None:
    """The paper's; kl_estimator, gradient_clipping and frozen are [ours] of docs/METHOD.md."""
    expected: dict[str, dict[str, Any]] = {
        "rollout.sampling": {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05},
        "rollout": {"teacher_answers": 4, "student_answers": 4, "student_refresh": "run"},
        "schedule": {"max_ratio": 0.2, "step": 0.05, "stages": [], "stage_data": "share"},
        "reward": {"alpha": 1.0, "rho": 0.0},
        "judge": {"of_teacher": "student", "of_student": "student"},
        "data": {"order": "seeded"},
        "learner": {"policy_weight": 1.0, "jsd_weight": 1.0, "kl_beta": 0.1, "kl_estimator": "k3", "clip_epsilon": 0.2}
        | {"updates_per_step": 1, "learning_rate": 1e-6, "warmup_steps": 0, "weight_decay": 0.0}
        | {"gradient_clipping": 1.0, "aggregation": "answer", "frozen": ["vision"]},
        "teacher.mask": dict.fromkeys(("vision", "projector", "embeddings", "lm_head"), False) | {"language": True},
    }
    config = load(file)
    for section, values in expected.items():
        found = vars(attrgetter(section)(config))
        assert {name: found[name] for name in values} == values


@pytest.mark.parametrize("word", REFUSED.split())
def test_a_value_that_breaks_a_rule_is_refused_once_with_its_key(file: Path, word: str) -> None:
    assert list(complaints(file, word)) == [word.partition("=")[0]]


@pytest.mark.parametrize("row", TOGETHER.strip().splitlines())
def test_what_does_not_fit_together_or_stands_in_a_list_is_refused_with_its_key(file: Path, row: str) -> None:
    words, _, keys = row.partition(" -> ")
    assert "|".join(sorted(complaints(file, *words.split("|")))) == keys


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("learner.workrs=2", "expected a known key, found an unknown one. Did you mean learner.workers?"),
        ("teacher.replicas=two", "expected a valid integer, unable to parse string as an integer, found 'two'. Th"),
        ("rollout.teacher_answers=-1", "expected greater than or equal to 0, found '-1'. The default is 4."),
        ("student.checkpoint=???", "expected a value, found '???'. Set student.checkpoint in the file or"),
        ("schedule.step=0.15", "expected schedule.max_ratio divided by a whole number, found 0.15"),
        ("learner.offload=off", "expected 'nothing', 'optimizer' or 'everything', found 'off'"),
        ("teacher.checkpoint=runs/[a]", "found 'runs/[a]'"),
        ("student.engine.gpu_memory_utilization=0.3", "at most 0.25, as student.gpus reserves, found 0.3"),
        ("run.stop_after=5m1h", "expected a duration such as 60s, 90m or 11h30m, found '5m1h'. The default is null."),
        ("evaluation.every=0", "expected steps such as 50, or stage, found '0'. The default is null."),
        ("run.dir=${nope}", "found '${nope}'. Interpolation key 'nope' not found. ${oc.env:NAME,x} is a variable"),
        ("run.seed=${oc.env:HOME}", "found '${oc.env:HOME}'"),
        ("data.train.path=~/x", "a path without ~, which only a shell expands (or write $HOME), found '~/x'"),
        ("rollout.store=GS:/bucket/x", "an address with two slashes, or a path, found 'GS:/bucket/x'"),
    ],
)
def test_a_complaint_says_what_was_expected_and_found_and_how_to_mend_it(file: Path, word: str, told: str) -> None:
    assert told in complaints(file, "student.gpus=0.25", word)[word.partition("=")[0]]


def test_all_complaints_come_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL.replace("student: {checkpoint: s}", "") + "learner: 3\nreward: {alpha: -1}\n")
    words = ["nonsense", "learner.zero_stage=4", "run.sed=1", "run.dir=${a", "data.train.answer_is=csv", "reward.rho=1"]
    words += ["schedule.step=0.15", "growth=[{teacher: {top_k: 0}}]"]
    told = "nonsense learner learner.zero_stage run.sed run.dir data.train.answer_is reward.alpha judge.reasoning "
    told += "schedule.step growth[0].teacher.top_k growth[0].teacher.checkpoint student.checkpoint"
    assert set(complaints(file, *words)) == set(told.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("run: [", "a YAML file"),
        ("run: {dir: a, dir: b}", "a YAML file, found dir stands twice"),
        ("- a", "a mapping, found ['a']"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path, text)
    assert complaints(file)[str(file)].startswith(f"{file}: expected {told}")
    missing = tmp_path / "none.yaml"
    assert "No such file" in complaints(missing)[str(missing)]


def test_values_at_their_bounds_are_taken(file: Path) -> None:
    words = ["data.max_picture_pixels=178956970", "student.engine.gpu_memory_utilization=0.95", "schedule.max_ratio=0"]
    words += ["rollout.online_fraction=1", "student.gpus=1", "learner.gpus=1", "rollout.weight_transfer=nccl"]
    assert load(file, words).rollout.online_fraction == 1.0


def test_texts_stay_as_they_were_typed(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    for text in ("1e5", "yes", "007", "a #b", "*x", "%x", "@x", "[x", "a: b", "!x", "x?y", "ü"):
        assert load(file, [f"rollout.store={text}"]).rollout.store == text
    lists = "rollout: {store: no, reuse: [1e3, yes]}\ngrowth: [{teacher: {checkpoint: on}}]\n"
    config = load(
        write(tmp_path, MINIMAL.replace("runs/x", "1e5") + lists),
        ["rollout.reuse=[colour,no]", "data.train.rows=null", "student.checkpoint='a b'"],
    )
    assert config.run.dir == "1e5"
    assert (config.rollout.store, config.rollout.reuse) == ("no", ["colour", "no"])
    assert (config.student.checkpoint, config.growth[0].teacher.checkpoint) == ("a b", "on")


def test_numbers_are_read_alike_at_the_top_and_in_lists(file: Path) -> None:
    words = ["growth=[{teacher: {checkpoint: g, replicas: 10}, schedule: {step: 1e-1}}]", "learner.learning_rate=1e-5"]
    config = load(file, [*words, "cluster.grows=on", "cluster.local_cpus=8.0"])
    assert (config.growth[0].teacher.replicas, config.growth[0].schedule.step) == (10, 0.1)
    assert (config.learner.learning_rate, config.cluster.grows, config.cluster.local_cpus) == (1e-5, True, 8)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90m", 5400), ("11h30m", 41400), ("1h1s", 3601), ("0h2s", 2)]
)
def test_durations_are_seconds_and_say_what_was_written(file: Path, text: str, seconds: int) -> None:
    assert load(file, [f"run.stop_after={text}"]).run.stop_after == text
    assert (seconds_of(text), seconds_of(""), seconds_of("soon")) == (seconds, 0, 0)


def test_an_interpolation_that_leads_somewhere_is_followed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERS_PLACE", "/place")
    words = ["run.dir=${oc.env:MASTERS_PLACE}/${run.seed}", "learner.workers=${oc.env:NONE,3}"]
    words += ["growth=[{teacher: {checkpoint: '${teacher.checkpoint}'}, schedule: '${schedule}'}]"]
    config = load(file, words)
    assert (config.run.dir, config.learner.workers) == ("/place/0", 3)
    assert (config.growth[0].teacher.checkpoint, config.growth[0].schedule) == ("t", config.schedule)


def test_a_configuration_changed_in_the_program_is_checked_too() -> None:
    config = load(ROOT / "conf" / "demo.yaml")
    assert violations(config) == []
    config.teacher.top_k, config.rollout.online_fraction = 0, 1.0
    config.rollout.student_refresh = "stage"
    assert [one.where for one in violations(config)] == ["teacher.top_k", "rollout.student_refresh"]


def test_keys_in_sections_and_lists_say_what_their_change_leaves_valid() -> None:
    assert scopes("growth[1].teacher.engine.max_num_seqs") == scopes("teacher.replicas") == {KeyScope.RESUMABLE}
    assert scopes("learner.logits_mib") == {KeyScope.RESUMABLE, KeyScope.LEARNING}
    assert scopes("learner.lora.rank") == scopes("reward.no_longer_there") == {KeyScope.LEARNING}
    assert scopes("rollout.spare_rows") == scopes("evaluation.questions") == {KeyScope.LATER}
    assert scopes("run.stop_after") == scopes("evaluation.every") == {KeyScope.RESUMABLE}
    assert scopes("learner.keep") == {KeyScope.LEARNING}
    assert scopes("run.seed") == scopes("growth[0].schedule.stages[0].ratio") == scopes("nothing") == frozenset()
