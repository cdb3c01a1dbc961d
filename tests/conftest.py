import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from examples import easy_vqa
from masters_ray import cluster
from masters_ray.config import Cluster, Engine
from masters_ray.records import Problem

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("quick")
ROOT = Path(__file__).parents[1]
PAIR = ROOT / "examples" / "toy" / "pair"
DEMO = ROOT / "conf" / "demo.yaml"
NO_CHECKS = "run.skip_checks=[packing,export,agreement,pictures,remask]"
"""For runs that are about something else: these checks load the student and ask real engines."""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where paths of the configurations in conf/ begin."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session", autouse=True)
def demo_questions() -> None:
    """The questions that the examples' configurations name, written where they look for them."""
    easy_vqa.write(ROOT / easy_vqa.FOLDER)


@pytest.fixture(scope="session")
def toy_engine() -> Engine:
    """A vLLM engine in float32 that starts fast and fits beside others."""
    sizes: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 32, "max_num_batched_tokens": 2048}
    return Engine(dtype="float32", kv_cache_memory_bytes=64 * 2**20, enforce_eager=True, **sizes)


@pytest.fixture(scope="session")
def questions() -> list[Problem]:
    """Held-out questions about real pictures, the kinds in turn."""
    return easy_vqa.problems("test")[:12]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this module's own."""
    with cluster.connected(Cluster(local_cpus=8)):
        yield


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an object store on this machine that speaks S3's protocol."""
    from moto.server import ThreadedMotoServer  # loads Flask

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    settings = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "name", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"))
    yield "s3://bucket"
    server.stop()
