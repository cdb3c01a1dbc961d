import pytest

from masters_ray import config as configuration
from masters_ray import validation
from masters_ray.errors import ConfigError
from masters_ray.placement import Kind, Turns, crowded, decide
from tests.conftest import ROOT


def told(nodes: list[dict[str, float]], *overrides: str) -> dict[str, str]:
    config = configuration.load(ROOT / "conf" / "demo.yaml", list(overrides))
    return {one.where: str(one) for one in decide(config, nodes)[1]}


def turns(nodes: list[dict[str, float]], *overrides: str) -> Turns | None:
    """Of a configuration with online iterations that can be placed."""
    config = configuration.load(ROOT / "conf" / "demo.yaml", ["rollout.online_fraction=0.5", *overrides])
    found, complaints = decide(config, nodes)
    assert complaints == []
    return found


def kind(count: int, gpus: float, cpus: float = 1.0, name: str = "teacher") -> Kind:
    keys = {"counted_by": f"{name}.replicas", "cpus_by": f"{name}.cpus", "gpus_by": f"{name}.gpus"}
    return Kind(count=count, cpus=cpus, gpus=gpus, on_one_node="its ranks share a node", **keys)


def test_a_cluster_with_room_has_nothing_to_complain_about() -> None:
    assert told([{"CPU": 2.0}]) == {}
    assert told([{"CPU": 8.0, "GPU": 4.0}] * 2, "teacher.gpus=1", "teacher.tensor_parallel=4") == {}


def test_what_makes_rollouts_only_needs_no_room_for_a_learner() -> None:
    words = ["teacher.gpus=1", "teacher.tensor_parallel=2", "student.gpus=1", "student.replicas=2"]
    words += ["judge.share_process=true", "judge.replicas=2", "learner.workers=8", "learner.gpus=1"]
    for online in ([], ["rollout.online_fraction=0.5"]):
        config = configuration.load(ROOT / "conf" / "demo.yaml", [*words, *online])
        nodes = [{"CPU": 16.0, "GPU": 4.0}]
        assert decide(config, nodes)[1] != []
        assert decide(config, nodes, learns=False) == (None, [])
        assert validation.placed(config, nodes, learns=False) is None
    too_few = decide(config, [{"CPU": 16.0, "GPU": 3.0}], learns=False)[1]
    assert [one.where for one in too_few] == ["GPU for making rollouts"]


def test_what_a_growing_cluster_does_not_hold_today_is_told_and_not_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configuration.load(ROOT / "conf" / "demo.yaml", ["teacher.gpus=8", "learner.workers=64"])
    with pytest.raises(ConfigError, match="teacher.gpus x teacher.tensor_parallel"):
        validation.placed(config, [{"CPU": 4.0}])
    assert validation.placed(config, [{"CPU": 4.0}], grows=True) is None
    told = " ".join(capsys.readouterr().out.split())
    assert "the cluster has to grow, which is waited for: teacher.gpus x teacher.tensor_parallel is 8" in told


def test_the_sum_of_all_nodes_must_hold_everything_at_once() -> None:
    found = told([{"CPU": 1.0}] * 2, "teacher.replicas=4", "teacher.max_replicas=40")
    assert "at most the cluster's 2, found 2.5" in found["CPU for making rollouts"]
    assert set(found) == {"CPU for making rollouts"}


def test_a_tensor_parallel_replica_does_not_span_two_nodes() -> None:
    found = told([{"CPU": 8.0, "GPU": 4.0}] * 2, "teacher.gpus=1", "teacher.tensor_parallel=8")
    assert set(found) == {"teacher.gpus x teacher.tensor_parallel"}
    assert (
        "at most 4, the most GPUs of one node: a replica's ranks share a node, found 8"
        in (found["teacher.gpus x teacher.tensor_parallel"])
    )


def test_what_one_process_reserves_must_be_on_one_node() -> None:
    nodes = [{"CPU": 32.0}, {"CPU": 4.0, "GPU": 4.0}]
    assert (
        "no node has"
        in told(nodes, "student.gpus=1", "student.cpus=8")["student.cpus with student.gpus x student.tensor_parallel"]
    )
    assert "at most 32, the most CPUs of one node" in told(nodes, "learner.cpus=33")["learner.cpus"]


def test_replicas_are_counted_node_by_node() -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}] * 2
    three = ["teacher.gpus=1", "teacher.tensor_parallel=3"]
    assert told(nodes, *three, "teacher.replicas=2") == {}
    assert "GPU for making rollouts" in told(nodes, *three, "teacher.replicas=3")
    assert [one.expected.split(",")[0] for one in crowded("x", [kind(3, 3.0)], nodes)] == ["at most 2"]
    assert crowded("x", [kind(2, 3.0)], nodes) == []


def test_two_kinds_of_replicas_share_the_nodes() -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}] * 2
    overrides = ["teacher.gpus=1", "teacher.tensor_parallel=3", "student.gpus=1"]
    assert told(nodes, *overrides, "teacher.replicas=2", "student.replicas=2", "judge.replicas=2") == {}
    found = told(nodes, *overrides, "teacher.replicas=2", "student.tensor_parallel=2")
    [where] = found
    assert where == "teacher.replicas beside student.replicas with judge.replicas for making rollouts"
    assert "for instance 1 with 1" in found[where]
    assert "found 2 with 1" in found[where]


@pytest.mark.parametrize(("held", "of"), [(10, 1.0), (3, 3.0), (1, 8.0)])
def test_fractions_are_counted_to_the_last_one(held: int, of: float) -> None:
    assert kind(100, 0.0, cpus=of / 10).fit(cpus=held * of / 10, gpus=0.0) == held


ON_GPUS = ["teacher.gpus=1", "student.gpus=0.5", "learner.gpus=1", "learner.workers=2"]
"""Two GPUs for rollouts, two for the learner."""


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
    assert str(Turns(cpus=8.0, gpus=2)) == "one node of 8 CPUs and 2 GPUs"
    assert str(Turns(cpus=1.0, gpus=0)) == "one node of 1 CPU"


def test_a_run_without_online_iterations_takes_no_turns() -> None:
    config = configuration.load(ROOT / "conf" / "demo.yaml", ["rollout.placement=turns"])
    assert decide(config, [{"CPU": 2.0}]) == (None, [])


def test_what_does_not_fit_even_in_turns_is_refused_with_what_is_asked_and_what_there_is() -> None:
    online = "rollout.online_fraction=0.5"
    found = told([{"CPU": 1.0}], online)
    assert set(found) == {"CPU for making rollouts", "CPU for the learner"}
    assert "at most the cluster's 1, found 1.5" in found["CPU for making rollouts"]
    found = told([{"CPU": 8.0, "GPU": 1.0}], online, *ON_GPUS)
    assert "at most the cluster's 1, found 2" in found["GPU for the learner"]
    assert "GPU for making rollouts" in found


def test_beside_each_other_is_refused_where_it_does_not_fit_if_it_must_be_or_on_several_nodes() -> None:
    online = "rollout.online_fraction=0.5"
    found = told([{"CPU": 2.0}], online, "rollout.placement=beside")
    assert "at most the cluster's 2, found 3" in found["CPU for learning while making rollouts"]
    found = told([{"CPU": 8.0, "GPU": 1.0}] * 2, online, *ON_GPUS)
    assert set(found) == {"GPU for learning while making rollouts"}, "turns are taken on one node"
    found = told([{"CPU": 8.0, "GPU": 1.0}] * 2, online, *ON_GPUS, "rollout.placement=turns")
    assert "turns are taken on one node, found turns, and 2 nodes" in found["rollout.placement"]
