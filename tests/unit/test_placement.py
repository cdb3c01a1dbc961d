import itertools
import random
from collections.abc import Sequence

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.replicas.placement import Nodes, Turns, decide, fit, place, transfer
from masters_ray.replicas.processes import Processes
from tests.conftest import ROOT

ONLINE = "rollout.online_fraction=0.5"
ON_GPUS = ["teacher.gpus=1", "student.gpus=0.5", "learner.gpus=1", "learner.workers=2"]
"""Two GPUs for rollouts, two for the learner."""


def loaded(*overrides: str) -> configuration.Config:
    return configuration.load(ROOT / "conf" / "demo.yaml", list(overrides))


def told(nodes: Nodes, *overrides: str) -> list[str]:
    return [str(one) for one in decide(loaded(*overrides), nodes)[1]]


def turns(nodes: Nodes, *overrides: str) -> Turns | None:
    """Of a configuration with online iterations that can be placed."""
    found, complaints = decide(loaded(ONLINE, *overrides), nodes)
    assert complaints == []
    return found


def kind(count: int, gpus: float, cpus: float) -> Processes:
    return Processes(key="teacher", roles=("teacher",), count=count, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize("online", [[], [ONLINE]])
def test_what_makes_rollouts_only_needs_no_room_for_a_learner(online: list[str]) -> None:
    words = ["teacher.gpus=1", "teacher.tensor_parallel=2", "student.gpus=1", "student.replicas=2"]
    words += ["judge.share_process=true", "judge.replicas=2", "learner.workers=8", "learner.gpus=1"]
    config, nodes = loaded(*words, *online), [{"CPU": 16.0, "GPU": 4.0}]
    assert decide(config, nodes)[1] != []
    assert place(config, nodes, learns=False) is None
    too_few = decide(config, [{"CPU": 16.0, "GPU": 3.0}], learns=False)[1]
    assert [one.where.partition(" for ")[2] for one in too_few] == ["making rollouts"]


def test_what_a_growing_cluster_does_not_hold_today_is_told_and_not_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = loaded("teacher.gpus=8", "learner.workers=64")
    with pytest.raises(ConfigError, match="teacher.replicas beside .* of 0.5 CPUs and 8 GPUs"):
        place(config, [{"CPU": 4.0}])
    assert place(config, [{"CPU": 4.0}], grows=True) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "the cluster has to grow, which is waited for: teacher.replicas beside" in said


FOUR_GPUS = [{"CPU": 8.0, "GPU": 4.0}] * 2
ONE_GPU = [{"CPU": 8.0, "GPU": 1.0}] * 2
UNEQUAL = [{"CPU": 32.0}, {"CPU": 4.0, "GPU": 4.0}]
TURNS = " ".join([ONLINE, *ON_GPUS])
MAKING = "teacher.replicas beside student.replicas with judge.replicas for making rollouts: expected room on the nodes"
SPARE = "one node with all its ranks, and reading the data takes one CPU, found 1 of"


@pytest.mark.parametrize(
    ("nodes", "words", "parts"),
    [
        (FOUR_GPUS, "teacher.gpus=1 teacher.tensor_parallel=8", ["found 1 of 0.5 CPUs and 8 GPUs with 1 of"]),
        (UNEQUAL, "student.gpus=1 student.cpus=8", [f"{MAKING} (1 with 32 CPUs and 0 GPUs and 1 with 4 CPUs and 4"]),
        (UNEQUAL, "learner.cpus=33", ["learner.workers for the learner: expected room"]),
        ([{"CPU": 1.0}], ONLINE, [MAKING, "for the learner: expected room", SPARE]),
        ([{"CPU": 2.0}], f"{ONLINE} rollout.placement=beside", ["for learning while making rollouts", SPARE]),
        (ONE_GPU, TURNS, ["learner.workers beside teacher.replicas beside student.replicas with judge.replicas for"]),
        (ONE_GPU, f"{TURNS} rollout.placement=turns", ["rollout.placement", "on one node, found turns, and 2 nodes"]),
    ],
)
def test_what_nodes_do_not_hold_is_refused_with_what_is_asked_and_what_there_is(
    nodes: Nodes, words: str, parts: list[str]
) -> None:
    found = "\n".join(told(nodes, *words.split()))
    assert [part for part in parts if part not in found] == [], found


def test_a_cluster_with_room_has_nothing_to_complain_about() -> None:
    """Two teachers on three GPUs each leave a GPU of each node to a student that judges."""
    words = "teacher.gpus=1 teacher.tensor_parallel=3 teacher.replicas=2 student.gpus=1 student.replicas=2"
    assert told(FOUR_GPUS, *words.split(), "judge.replicas=2") == []
    assert told(FOUR_GPUS, *words.split(), "judge.replicas=3") != []


def by_trying(kinds: Sequence[Processes], nodes: Nodes) -> bool:
    """Tries each node for each process."""
    each = [one for one in kinds for _ in range(one.count)]
    for places in itertools.product(range(len(nodes)), repeat=len(each)):
        left = [(node["CPU"], node["GPU"]) for node in nodes]
        for one, index in zip(each, places, strict=True):
            left[index] = (left[index][0] - one.cpus, left[index][1] - one.gpus)
        if min(itertools.chain(*left)) >= 0:
            return True
    return False


def test_what_fits_is_what_trying_all_places_finds() -> None:
    random.seed(0)
    outcomes = []
    for _ in range(200):
        kinds = [
            kind(random.randint(0, 2), random.choice([0, 0.5, 1, 2]), random.choice([0.5, 1, 2]))
            for _ in range(random.randint(1, 3))
        ]
        nodes = [{"CPU": random.randint(1, 4), "GPU": random.randint(0, 2)} for _ in range(random.randint(1, 3))]
        outcomes.append(fit(kinds, nodes))
        assert outcomes[-1] == by_trying(kinds, nodes), (kinds, nodes)
    assert 50 < sum(outcomes) < 150


@pytest.mark.parametrize(("held", "of"), [(10, 1.0), (3, 3.0), (1, 8.0)])
def test_fractions_are_counted_to_the_last_one(held: int, of: float) -> None:
    room = [{"CPU": held * of / 10}]
    assert [fit([kind(count, 0.0, cpus=of / 10)], room) for count in (held, held + 1)] == [True, False]


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
    assert [one.split(" for ")[1].partition(":")[0] for one in found] == ["making rollouts", "the learner"]


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        ("", "object_store"),
        ("learner.gpus=1 student.gpus=1", "nccl"),
        ("learner.gpus=1 student.gpus=0.25", "object_store"),
        ("learner.gpus=1 student.gpus=1 rollout.weight_transfer=object_store", "object_store"),
    ],
)
def test_weights_go_from_gpu_to_gpu_where_both_sides_have_one_of_their_own(words: str, beside: str) -> None:
    config = loaded(ONLINE, *words.split())
    assert [transfer(config, turns) for turns in (None, Turns(cpus=8.0, gpus=1))] == [beside, "object_store"]


def test_weights_do_not_go_a_way_that_there_is_not() -> None:
    nccl = ["learner.gpus=1", "student.gpus=1", "rollout.weight_transfer=nccl"]
    with pytest.raises(ConfigError, match="they take turns on one node of 8 CPUs and 1 GPUs. auto takes what"):
        transfer(loaded(ONLINE, *nccl), Turns(cpus=8.0, gpus=1))
    assert transfer(loaded(*nccl), None) == "object_store", "it means nothing without online iterations"
