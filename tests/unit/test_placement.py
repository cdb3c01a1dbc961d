import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.replicas.placement import Turns, crowded, decide, fit, place
from masters_ray.replicas.processes import Processes
from tests.conftest import ROOT

ONLINE = "rollout.online_fraction=0.5"
ON_GPUS = ["teacher.gpus=1", "student.gpus=0.5", "learner.gpus=1", "learner.workers=2"]
"""Two GPUs for rollouts, two for the learner."""


def loaded(*overrides: str) -> configuration.Config:
    return configuration.load(ROOT / "conf" / "demo.yaml", list(overrides))


def told(nodes: list[dict[str, float]], *overrides: str) -> dict[str, str]:
    return {one.where: str(one) for one in decide(loaded(*overrides), nodes)[1]}


def turns(nodes: list[dict[str, float]], *overrides: str) -> Turns | None:
    """Of a configuration with online iterations that can be placed."""
    found, complaints = decide(loaded(ONLINE, *overrides), nodes)
    assert complaints == []
    return found


def kind(count: int, gpus: float, cpus: float = 1.0) -> Processes:
    return Processes(key="teacher", roles=("teacher",), count=count, cpus=cpus, gpus=gpus)


def test_a_cluster_with_room_has_nothing_to_complain_about() -> None:
    assert told([{"CPU": 2.0}]) == {}
    assert told([{"CPU": 8.0, "GPU": 4.0}] * 2, "teacher.gpus=1", "teacher.tensor_parallel=4") == {}


@pytest.mark.parametrize("online", [[], [ONLINE]])
def test_what_makes_rollouts_only_needs_no_room_for_a_learner(online: list[str]) -> None:
    words = ["teacher.gpus=1", "teacher.tensor_parallel=2", "student.gpus=1", "student.replicas=2"]
    words += ["judge.share_process=true", "judge.replicas=2", "learner.workers=8", "learner.gpus=1"]
    config, nodes = loaded(*words, *online), [{"CPU": 16.0, "GPU": 4.0}]
    assert decide(config, nodes)[1] != []
    assert decide(config, nodes, learns=False) == (None, [])
    assert place(config, nodes, learns=False) is None
    too_few = decide(config, [{"CPU": 16.0, "GPU": 3.0}], learns=False)[1]
    assert [one.where for one in too_few] == ["GPU for making rollouts"]


def test_what_a_growing_cluster_does_not_hold_today_is_told_and_not_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = loaded("teacher.gpus=8", "learner.workers=64")
    with pytest.raises(ConfigError, match="teacher.gpus x teacher.tensor_parallel"):
        place(config, [{"CPU": 4.0}])
    assert place(config, [{"CPU": 4.0}], grows=True) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "the cluster has to grow, which is waited for: teacher.gpus x teacher.tensor_parallel is 8" in said


FOUR_GPUS = [{"CPU": 8.0, "GPU": 4.0}] * 2
ONE_GPU = [{"CPU": 8.0, "GPU": 1.0}] * 2
UNEQUAL = [{"CPU": 32.0}, {"CPU": 4.0, "GPU": 4.0}]
WIDE = "teacher.gpus=1 teacher.tensor_parallel=8"
TWO_KINDS = "teacher.gpus=1 teacher.tensor_parallel=3 teacher.replicas=2 student.gpus=1 student.tensor_parallel=2"
BOTH = "student.cpus with student.gpus x student.tensor_parallel"
BESIDE = "teacher.replicas beside student.replicas with judge.replicas for making rollouts"
TURNS = " ".join([ONLINE, *ON_GPUS])


@pytest.mark.parametrize(
    ("nodes", "words", "where", "part"),
    [
        ([{"CPU": 1.0}] * 2, "teacher.replicas=4 teacher.max_replicas=40", "CPU for making rollouts", "2, found 2.5"),
        (FOUR_GPUS, WIDE, "teacher.gpus x teacher.tensor_parallel", "at most 4, the most GPUs of one node: a process"),
        (UNEQUAL, "student.gpus=1 student.cpus=8", BOTH, "no node has"),
        (UNEQUAL, "learner.cpus=33", "learner.cpus", "at most 32, the most CPUs of one node"),
        (FOUR_GPUS, TWO_KINDS, BESIDE, "for instance 1 with 1, counted node by node: a process lies on one node, fou"),
        ([{"CPU": 1.0}], ONLINE, "CPU for making rollouts CPU for the learner", "at most the cluster's 1, found 1.5"),
        ([{"CPU": 2.0}], f"{ONLINE} rollout.placement=beside", "CPU for learning while making rollouts", "2, found 3"),
        (ONE_GPU, TURNS, "GPU for learning while making rollouts", "at most the cluster's 2, found 4"),
        (
            ONE_GPU,
            f"{TURNS} rollout.placement=turns",
            "rollout.placement",
            "turns are taken on one node, found turns, a",
        ),
    ],
)
def test_what_nodes_do_not_hold_is_refused_with_what_is_asked_and_what_there_is(
    nodes: list[dict[str, float]], words: str, where: str, part: str
) -> None:
    found = told(nodes, *words.split())
    assert " ".join(found) == where
    assert part in next(iter(found.values()))


def test_replicas_are_counted_node_by_node() -> None:
    three = ["teacher.gpus=1", "teacher.tensor_parallel=3"]
    assert told(FOUR_GPUS, *three, "teacher.replicas=2") == {}
    beside = ["student.gpus=1", "student.replicas=2", "judge.replicas=2"]
    assert told(FOUR_GPUS, *three, "teacher.replicas=2", *beside) == {}
    assert "GPU for making rollouts" in told(FOUR_GPUS, *three, "teacher.replicas=3")
    assert [one.expected.split(",")[0] for one in crowded("x", [kind(3, 3.0)], FOUR_GPUS)] == ["at most 2"]
    assert crowded("x", [kind(2, 3.0)], FOUR_GPUS) == []


@pytest.mark.parametrize(("held", "of"), [(10, 1.0), (3, 3.0), (1, 8.0)])
def test_fractions_are_counted_to_the_last_one(held: int, of: float) -> None:
    assert fit(kind(100, 0.0, cpus=of / 10), cpus=held * of / 10, gpus=0.0) == held


def test_replicas_run_beside_the_learner_where_there_is_room() -> None:
    """Two CPUs for processes, one for reading the dataset."""
    assert turns([{"CPU": 3.0}]) is None
    assert turns([{"CPU": 8.0, "GPU": 4.0}], *ON_GPUS) is None
    assert turns([{"CPU": 8.0, "GPU": 2.0}] * 2, *ON_GPUS, "rollout.placement=beside") is None


def test_learner_and_rollouts_take_turns_on_one_node_that_does_not_hold_both() -> None:
    assert turns([{"CPU": 2.0}]) == Turns(cpus=2.0, gpus=0)
    assert turns([{"CPU": 8.0, "GPU": 2.0}], *ON_GPUS) == Turns(cpus=8.0, gpus=2)
    assert turns([{"CPU": 8.0, "GPU": 2.0}], *ON_GPUS, "rollout.placement=turns") == Turns(cpus=8.0, gpus=2)
    assert turns([{"CPU": 64.0}], "rollout.placement=turns") == Turns(cpus=64.0, gpus=0), "whatever would fit"
    assert decide(loaded("rollout.placement=turns"), [{"CPU": 2.0}]) == (None, []), "nothing is made while it learns"
    found = told([{"CPU": 8.0, "GPU": 1.0}], ONLINE, *ON_GPUS)
    assert "at most the cluster's 1, found 2" in found["GPU for the learner"] and "GPU for making rollouts" in found
    assert str(Turns(cpus=8.0, gpus=2)) == "one node of 8 CPUs and 2 GPUs"
    assert str(Turns(cpus=1.0, gpus=0)) == "one node of 1 CPU"
