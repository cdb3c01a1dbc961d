import itertools
import random
from collections.abc import Sequence

import pytest

from masters_ray import config as configuration
from masters_ray.errors import ConfigError
from masters_ray.replicas.placement import Nodes, Turns, fit, place, transfer
from masters_ray.replicas.processes import Processes
from tests.conftest import DEMO

ONLINE = "rollout.online_fraction=0.5"
ON_GPUS = f"{ONLINE} teacher.gpus=1 student.gpus=0.5 learner.gpus=1 learner.workers=2"
"""Two GPUs for rollouts, two for the learner."""


def loaded(words: str) -> configuration.Config:
    return configuration.load(DEMO, words.split())


def placed(nodes: Nodes, words: str = ONLINE, **more: bool) -> Turns | None:
    return place(loaded(words), nodes, **more)


def kind(count: int, gpus: float, cpus: float) -> Processes:
    return Processes(key="teacher", roles=("teacher",), count=count, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize("online", ["", ONLINE])
def test_what_makes_rollouts_only_needs_no_room_for_a_learner(online: str) -> None:
    words = "teacher.gpus=1 teacher.tensor_parallel=2 student.gpus=1 student.replicas=2 judge.share_process=true"
    words += f" judge.replicas=2 learner.workers=8 learner.gpus=1 {online}"
    with pytest.raises(ConfigError, match="learner for learning"):
        placed([{"CPU": 16.0, "GPU": 4.0}], words)
    assert placed([{"CPU": 16.0, "GPU": 4.0}], words, learns=False) is None
    with pytest.raises(ConfigError) as caught:
        placed([{"CPU": 16.0, "GPU": 3.0}], words, learns=False)
    assert [one.where for one in caught.value.complaints] == ["teacher beside student for making rollouts"]


def test_what_a_growing_cluster_does_not_hold_today_is_told_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert placed([{"CPU": 4.0}], "teacher.gpus=8 learner.workers=64", grows=True) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "the cluster has to grow, which is waited for: teacher beside" in said


FOUR_GPUS = [{"CPU": 8.0, "GPU": 4.0}] * 2
ONE_GPU = [{"CPU": 8.0, "GPU": 1.0}] * 2
UNEQUAL = [{"CPU": 32.0}, {"CPU": 4.0, "GPU": 4.0}]
MAKING = "teacher beside student for making rollouts: expected room on the nodes"
SPARE = "one node with all its ranks, and reading the data takes one CPU, found 1 of"


@pytest.mark.parametrize(
    ("nodes", "words", "parts"),
    [
        (FOUR_GPUS, "teacher.gpus=1 teacher.tensor_parallel=8", ["found 1 of 0.5 CPUs and 8 GPUs with 1 of"]),
        (UNEQUAL, "student.gpus=1 student.cpus=8", [f"{MAKING} (1 with 32 CPUs and 0 GPUs and 1 with 4 CPUs and 4"]),
        (UNEQUAL, "learner.cpus=33", ["learner for learning: expected room"]),
        ([{"CPU": 1.0}], ONLINE, [MAKING, "for learning: expected room", SPARE]),
        ([{"CPU": 2.0}], f"{ONLINE} rollout.placement=beside", ["for learning while making rollouts", SPARE]),
        ([{"CPU": 8.0, "GPU": 1.0}], ON_GPUS, [MAKING, "learner for learning: "]),
        (ONE_GPU, ON_GPUS, ["learner beside teacher beside student for learning"]),
        (ONE_GPU, f"{ON_GPUS} rollout.placement=turns", ["rollout.placement", "on one node, found turns, and 2 nodes"]),
    ],
)
def test_what_nodes_do_not_hold_is_refused_with_what_is_asked_and_what_there_is(
    nodes: Nodes, words: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        placed(nodes, words)
    assert [part for part in parts if part not in str(caught.value)] == []


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


@pytest.mark.parametrize(
    ("nodes", "words", "gpus"),
    [
        pytest.param([{"CPU": 3.0}], ONLINE, None, id="two CPUs for processes, one for reading the dataset"),
        ([{"CPU": 8.0, "GPU": 4.0}], ON_GPUS, None),
        ([{"CPU": 8.0, "GPU": 2.0}] * 2, f"{ON_GPUS} rollout.placement=beside", None),
        pytest.param([{"CPU": 2.0}], "rollout.placement=turns", None, id="nothing is made while it learns"),
        ([{"CPU": 2.0}], ONLINE, 0),
        ([{"CPU": 8.0, "GPU": 2.0}], ON_GPUS, 2),
        pytest.param([{"CPU": 64.0}], f"{ONLINE} rollout.placement=turns", 0, id="whatever would fit"),
    ],
)
def test_learner_and_rollouts_take_turns_on_one_node_that_does_not_hold_both(
    nodes: Nodes, words: str, gpus: int | None
) -> None:
    assert placed(nodes, words) == (None if gpus is None else Turns(gpus=gpus))


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
    config = loaded(f"{ONLINE} {words}")
    assert [transfer(config, turns) for turns in (None, Turns(gpus=1))] == [beside, "object_store"]


def test_weights_do_not_go_a_way_that_there_is_not() -> None:
    nccl = "learner.gpus=1 student.gpus=1 rollout.weight_transfer=nccl"
    with pytest.raises(ConfigError, match="found nccl, and they take turns. auto takes what fits"):
        transfer(loaded(f"{ONLINE} {nccl}"), Turns(gpus=1))
    assert transfer(loaded(nccl), None) == "object_store", "it means nothing without online iterations"
