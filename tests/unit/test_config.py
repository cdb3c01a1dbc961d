from pathlib import Path

import pytest

from masters_ray.config import MaskScope, known_keys, load
from masters_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = """
run: {dir: runs/x}
data: {train: {path: train.jsonl}, held_out: {path: test.jsonl}}
teacher: {checkpoint: t}
student: {checkpoint: s}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "c.yaml"
    file.write_text(text)
    return file


def complaints(file: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(file, list(overrides))
    return {complaint.where: str(complaint) for complaint in caught.value.complaints}


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda file: file.name)
def test_every_file_in_conf_is_a_valid_configuration(file: Path) -> None:
    load(file)


@pytest.mark.parametrize("file", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda file: file.name)
def test_every_file_in_conf_says_its_hardware_time_and_purpose(file: Path) -> None:
    head = "\n".join(file.read_text().splitlines()[:4])
    assert all(word in head for word in ("Hardware:", "Time:", "Purpose:"))


def test_defaults_file_and_words_are_merged_in_that_order(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "learner: {workers: 2, groups_per_step: 32}\n")
    config = load(file, ["learner.groups_per_step=16", "rollout.sampling.top_p=1"])
    assert (config.learner.workers, config.learner.groups_per_step) == (2, 16)
    assert config.rollout.sampling.top_p == 1.0
    assert config.rollout.sampling.top_k == 50


def test_the_defaults_are_the_papers_values_and_what_is_decided_where_it_gives_none(tmp_path: Path) -> None:
    """The paper's, and [ours] of docs/METHOD.md."""
    config = load(write(tmp_path, MINIMAL))
    sampling = config.rollout.sampling
    drawn = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty)
    assert drawn == (1.0, 0.9, 50, 1.05)
    assert (config.rollout.teacher_answers, config.rollout.student_answers) == (4, 4)
    assert (config.schedule.max_ratio, config.schedule.step, config.schedule.stages) == (0.2, 0.05, [])
    assert (config.reward.alpha, config.reward.rho) == (1.0, 0.0)
    learner = config.learner
    assert (learner.policy_weight, learner.jsd_weight) == (1.0, 1.0)
    assert (learner.kl_beta, learner.kl_estimator) == (0.1, "k3")  # the estimator [ours]
    assert (learner.clip_epsilon, learner.updates_per_step) == (0.2, 1)
    assert (learner.learning_rate, learner.warmup_steps, learner.weight_decay) == (1e-6, 0, 0.0)
    assert learner.gradient_clipping == 1.0  # [ours]
    assert learner.aggregation == "answer"
    assert learner.frozen == ["vision"]  # [ours]
    assert (config.judge.of_teacher, config.judge.of_student) == ("student", "student")
    assert config.teacher.mask == MaskScope(
        language=True, vision=False, projector=False, embeddings=False, lm_head=False
    )
    assert (config.rollout.student_refresh, config.schedule.stage_data, config.data.order) == ("run", "share", "seeded")


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    found = complaints(write(tmp_path, MINIMAL), "learner.workrs=2")
    assert "Did you mean learner.workers?" in found["learner.workrs (command line)"]


def test_a_wrong_type_says_what_was_expected_and_found(tmp_path: Path) -> None:
    found = complaints(write(tmp_path, MINIMAL), "teacher.replicas=two")
    assert "expected a whole number, found 'two'" in found["teacher.replicas (command line)"]


def test_fewer_replicas_at_most_than_at_first_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    found = complaints(file, "teacher.replicas=3", "teacher.max_replicas=2", "student.max_replicas=0")
    assert (
        "expected at least teacher.replicas = 3, or null for no more than those, found 2"
        in (found["teacher.max_replicas"])
    )
    assert "student.max_replicas" in found
    assert load(file, ["teacher.replicas=3", "teacher.max_replicas=3"]).student.max_replicas is None


@pytest.mark.parametrize("key", ["run.dir", "teacher.checkpoint", "student.checkpoint"])
@pytest.mark.parametrize("folder", ["runs/what?", "runs/*", "runs/[a]"])
def test_a_directory_that_vllm_cannot_load_weights_from_is_refused(tmp_path: Path, key: str, folder: str) -> None:
    found = complaints(write(tmp_path, MINIMAL), f"{key}={folder}")
    assert list(found) == [key]
    assert folder in found[key]


@pytest.mark.parametrize("key", ["run.dir", "rollout.store", "rollout.reuse", "data.train.path", "student.checkpoint"])
def test_what_is_no_path_and_no_address_is_refused(tmp_path: Path, key: str) -> None:
    file = write(tmp_path, MINIMAL)
    for path in ("~/x", "~", "s3:/bucket/x", "GS:/bucket/x"):
        found = complaints(file, f"{key}=['{path}']" if key.endswith("reuse") else f"{key}='{path}'")
        [told] = [one for where, one in found.items() if where.startswith(key)]
        assert repr(path) in told and ("$HOME" in told) == path.startswith("~")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    found = complaints(write(tmp_path, MINIMAL.replace("student: {checkpoint: s}", "")))
    assert "Set student.checkpoint" in found["student.checkpoint"]


def test_a_group_of_one_and_a_ratio_above_one_are_refused(tmp_path: Path) -> None:
    found = complaints(
        write(tmp_path, MINIMAL), "rollout.teacher_answers=1", "rollout.student_answers=0", "schedule.max_ratio=1.2"
    )
    assert "at least 2 answers, found 1" in found["rollout.teacher_answers + rollout.student_answers"]
    assert "found 1.2" in found["schedule.max_ratio"]


def test_all_complaints_come_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "learner: 3\nreward: {alpha: -1}\n")
    found = complaints(file, "nonsense", "learner.zero_stage=4", "run.sed=1", "data.train.format=csv")
    assert {"nonsense", f"learner ({file})", "reward.alpha", "learner.zero_stage"} <= set(found)
    assert {"run.sed (command line)", "data.train.format (command line)"} <= set(found)


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path: Path) -> None:
    assert "no such file" in complaints(tmp_path / "none.yaml")[str(tmp_path / "none.yaml")]
    broken = write(tmp_path, "run: [")
    assert "expected YAML" in complaints(broken)[str(broken)]


def test_schedules_that_do_not_end_at_zero_are_refused_with_a_step_that_does(tmp_path: Path) -> None:
    found = complaints(write(tmp_path, MINIMAL), "schedule.max_ratio=0.2", "schedule.step=0.15")
    assert "0.2 gives 2 stages" in found["schedule.step"]


@pytest.mark.parametrize("pixels", [0, 178_956_971])
def test_pictures_may_have_as_many_pixels_as_pillow_opens(tmp_path: Path, pixels: int) -> None:
    file = write(tmp_path, MINIMAL)
    found = complaints(file, f"data.max_picture_pixels={pixels}")["data.max_picture_pixels"]
    assert f"expected from 1 to 178956970, above which Pillow opens no picture, found {pixels}" in found
    load(file, ["data.max_picture_pixels=178956970"])


def test_every_key_has_a_type_in_words() -> None:
    assert known_keys()["run.seed"] == "a whole number"
    assert known_keys()["data.train.rows"] == "a whole number or null"
    assert all(known_keys().values())


def test_online_iterations_want_their_share_a_bound_and_engines_of_the_learners_number_format() -> None:
    words = ["rollout.online_fraction=1.5", "rollout.max_staleness=-1", "rollout.max_wait_seconds=0"]
    words += ["learner.dtype=bfloat16", "teacher.max_replicas=3", "rollout.student_refresh=stage"]
    with pytest.raises(ConfigError) as caught:
        load(ROOT / "conf" / "demo.yaml", words)
    assert [one.where for one in caught.value.complaints] == [
        "rollout.online_fraction",
        "rollout.max_staleness",
        "rollout.max_wait_seconds",
        "rollout.student_refresh",
        "teacher.max_replicas",
        "student.engine.dtype",
    ]
    load(ROOT / "conf" / "demo.yaml", ["teacher.max_replicas=3", "rollout.student_refresh=stage"])


def test_weights_go_between_gpus_only_where_there_are_gpus() -> None:
    def wrong(*words: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(ROOT / "conf" / "demo.yaml", ["rollout.online_fraction=1", *words])
        return [one.where for one in caught.value.complaints]

    for transfer in ("nccl", "ipc"):
        assert wrong(f"rollout.weight_transfer={transfer}") == ["rollout.weight_transfer"]
    gpus = ["learner.gpus=1", "student.gpus=1"]
    assert wrong("rollout.weight_transfer=ipc", "learner.workers=2", *gpus) == ["rollout.weight_transfer"]
    for transfer in ("nccl", "ipc"):
        load(ROOT / "conf" / "demo.yaml", ["rollout.online_fraction=1", f"rollout.weight_transfer={transfer}", *gpus])


def test_an_engine_takes_no_more_of_a_gpu_than_its_replica_reserves(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    key = "student.engine.gpu_memory_utilization"
    found = complaints(file, "student.gpus=0.25", f"{key}=0.3")
    assert "at most student.gpus = 0.25: other replicas on the same GPU have the rest, found 0.3" in found[key]
    assert load(file, ["student.gpus=0.25", f"{key}=0.2"]).student.engine.gpu_memory_utilization == 0.2
    assert load(file, ["student.gpus=1", f"{key}=0.95"]).student.engine.gpu_memory_utilization == 0.95


def test_ranks_have_whole_gpus() -> None:
    with pytest.raises(ConfigError, match="teacher.gpus: expected a whole number with teacher.tensor_parallel = 2"):
        load(ROOT / "conf" / "demo.yaml", ["teacher.gpus=0.5", "teacher.tensor_parallel=2"])


@pytest.mark.parametrize("text", ["1e5", "yes", "007", "a #b", "*x", "%x", "@x", "[x", "a: b", "!x", "x?y", "ü"])
def test_a_text_stays_as_it_was_typed(tmp_path: Path, text: str) -> None:
    assert load(write(tmp_path, MINIMAL), [f"rollout.store={text}"]).rollout.store == text


def test_texts_of_a_list_and_of_the_file_stay_as_they_were_typed(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL.replace("runs/x", "1e5") + "rollout: {store: no, reuse: [1e3, yes]}\n")
    config = load(file, ["rollout.reuse=[colour,no]", "teacher.max_replicas=null", "student.checkpoint='a b'"])
    assert config.run.dir == "1e5"
    assert (config.rollout.store, config.rollout.reuse) == ("no", ["colour", "no"])
    assert load(file, []).rollout.reuse == ["1e3", "yes"]
    assert config.teacher.max_replicas is None
    assert config.student.checkpoint == "a b"
    assert "found 'off'" in complaints(file, "learner.offload=off")["learner.offload (command line)"]


@pytest.mark.parametrize("value", ["inf", "-.inf", "nan"])
@pytest.mark.parametrize("key", ["learner.learning_rate", "reward.alpha", "rollout.max_wait_seconds", "teacher.cpus"])
def test_numbers_without_an_end_are_refused_once(tmp_path: Path, key: str, value: str) -> None:
    found = complaints(write(tmp_path, MINIMAL), f"{key}={value}")
    assert list(found) == [key]
    assert "expected a finite number" in found[key]


def test_a_number_without_an_end_in_a_list_is_named(tmp_path: Path) -> None:
    found = complaints(write(tmp_path, MINIMAL), "schedule.stages=[{ratio: nan}]")
    assert "schedule.stages[0].ratio" in found


def test_interpolations_that_lead_nowhere_are_named_with_the_other_complaints(tmp_path: Path) -> None:
    words = ["run.dir=${nope}", "run.seed=${oc.env:HOME}", "rollout.store=${oc.env:MASTERS_UNSET}"]
    words += ["data.train.path=${data.train.path}", "student.checkpoint=${no:x}", "learner.workrs=1"]
    words += ["growth=[{teacher: {checkpoint: '${gone}'}}]"]
    found = complaints(write(tmp_path, MINIMAL), *words)
    assert "Interpolation key 'nope' not found" in found["run.dir"]
    assert "expected a whole number" in found["run.seed"]
    assert "'MASTERS_UNSET' not found" in found["rollout.store"]
    assert "Recursive" in found["data.train.path"]
    assert "growth[0].teacher.checkpoint" in found
    assert {"student.checkpoint", "learner.workrs (command line)"} <= found.keys()


def test_an_interpolation_that_leads_somewhere_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERS_PLACE", "/place")
    assert load(write(tmp_path, MINIMAL), ["run.dir=${oc.env:MASTERS_PLACE}/${run.seed}"]).run.dir == "/place/0"
