"""What of a configuration a simulation takes over."""

import pytest

from masters_ray import config as configuration
from masters_ray.simulation import Call, Rates, setup_of
from tests.conftest import ROOT

RATES = Rates(
    learner_seconds=1.0,
    offline_step_seconds=None,
    online_step_seconds=None,
    publish_seconds=0.5,
    load_seconds=0.5,
    start_seconds=10.0,
    cores_worth=None,
    calls=(Call(pool="teacher", method="answer", seconds_per_call=0.0, seconds_per_question=0.1),),
)


@pytest.mark.parametrize(("placement", "colocated"), [("auto", False), ("beside", False), ("turns", True)])
def test_replicas_that_take_turns_work_only_while_the_learner_waits(placement: str, colocated: bool) -> None:
    words = [f"rollout.placement={placement}", "rollout.online_fraction=0.5"]
    assert setup_of(configuration.load(ROOT / "conf" / "demo.yaml", words), RATES, cores=None).colocated == colocated
